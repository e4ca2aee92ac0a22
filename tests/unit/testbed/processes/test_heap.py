"""A forked process allocates beside what it inherited, and gives back what it no longer needs."""

import ctypes
import resource
import subprocess
import sys
from unittest.mock import Mock

import pytest

from testbed.processes import heap

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="no glibc 2.33"
)

BEGINNING = """
import ctypes, os
from pathlib import Path
from testbed.processes import heap
KB = 1024
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.mallinfo2.restype = heap.Usage

def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
"""


def in_a_process(body: str, stack_bytes: int | None = None) -> None:
    """Run ``body`` in a process of its own: a heap shows all that was done before in it."""
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    limit = None if stack_bytes is None else (stack_bytes, hard)
    done = subprocess.run(
        [sys.executable, "-c", BEGINNING + body],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=limit and (lambda: resource.setrlimit(resource.RLIMIT_STACK, limit)),
    )
    assert done.returncode == 0, done.stderr


HOLES = """
def holes():
    usage = libc.mallinfo2()
    return usage.fordblks - usage.keepcost

blocks = [libc.malloc(8 * KB) for _ in range(200)]
for block in blocks[::2]:
    libc.free(block)
assert holes() > 700 * KB, holes()
heap.settle()
heap.fill()
assert holes() < 16 * KB, holes()
"""


def test_a_filled_heap_has_no_holes_to_copy_pages_for() -> None:
    in_a_process(HOLES)


@pytest.mark.skipif(
    resource.getrlimit(resource.RLIMIT_STACK)[1] != resource.RLIM_INFINITY,
    reason="the stack has a hard limit",
)
def test_so_has_one_above_all_mappings() -> None:
    # Mappings are laid out from below, then, as in User-Mode Linux always.
    body = "assert libc.malloc(4 * KB * KB) < libc.malloc(KB)"
    in_a_process(HOLES + body, resource.RLIM_INFINITY)


def test_filling_ends_where_malloc_is_another_librarys(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = Mock(return_value=heap.Usage(arena=10 << 20, fordblks=3 << 20, keepcost=1 << 20))
    libc = Mock(mallinfo2=usage)
    monkeypatch.setattr(heap, "_libc", libc)
    heap.fill()
    assert sum(call.args[0] for call in libc.malloc.call_args_list) <= 4 << 20


def test_a_filled_heap_has_no_holes_for_python_either() -> None:
    in_a_process("""
# Every other object goes, so that each of their pages has holes.
objects = [bytes(n) for n in range(2, 200) for _ in range(500)]
objects += [object() for _ in range(20_000)] + [complex(n) for n in range(20_000)]
others = objects[::2]
pages = {id(each) >> 12 for each in others}
del objects

def new_on_old_pages():
    new = [bytes(n) for n in range(2, 200) for _ in range(200)]
    new += [object() for _ in range(5_000)] + [complex(n) for n in range(5_000)]
    return sum(id(each) >> 12 in pages for each in new) / len(new)

assert (before := new_on_old_pages()) > 0.5, before
heap.settle()
heap.fill()
assert (after := new_on_old_pages()) < 0.01, after
""")


def test_released_pages_go_back_to_the_kernel() -> None:
    in_a_process("""
heap.settle()
blocks = [libc.malloc(32 * KB) for _ in range(500)]
for block in blocks:
    ctypes.memset(block, 1, 32 * KB)
# The last one stays, so that the heap does not shrink by itself.
for block in blocks[:-1]:
    libc.free(block)
full = resident()
heap.release()
assert full - resident() > 10 * KB * KB, (full, resident())
""")


def test_large_blocks_are_kept_until_released() -> None:
    in_a_process("""
MB = KB * KB
heap.settle()
for keep in (False, True):
    if keep:
        heap.keep_large()
    before = resident()
    block = libc.malloc(64 * MB)
    ctypes.memset(block, 1, 64 * MB)
    libc.free(block)
    kept = resident() - before
    assert kept > 60 * MB if keep else kept < MB, (keep, kept)
heap.release()
assert resident() - before < MB, resident() - before
""")


def test_blocks_of_a_step_are_kept_where_it_asks_for_that() -> None:
    in_a_process("""
MB = KB * KB
heap.settle()
for keep in (False, True):
    if keep:
        heap.keep_steps()
    for size, kept in ((3 * MB, keep), (8 * MB, False)):
        before = resident()
        block = libc.malloc(size)
        ctypes.memset(block, 1, size)
        libc.free(block)
        stayed = resident() - before
        assert stayed > 2 * MB if kept else stayed < MB, (keep, size, stayed)
        heap.release()
""")


def test_collapsing_changes_nothing_that_is_there() -> None:
    in_a_process("""
block = libc.malloc(64 * KB * KB)
ctypes.memset(block, 7, 64 * KB * KB)
heap.collapse()
assert ctypes.string_at(block, 64 * KB * KB) == bytes([7]) * (64 * KB * KB)
""")
