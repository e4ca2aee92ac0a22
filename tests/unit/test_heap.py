"""A forked process allocates beside what it inherited, and gives back what it no longer needs."""

import ctypes
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="no glibc 2.33"
)

BEGINNING = """
import ctypes, os
from pathlib import Path
from testbed import heap
KB = 1024
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.mallinfo2.restype = heap.Usage

def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
"""


def in_a_process(body: str) -> None:
    """Run ``body`` in a process of its own: a heap shows all that was done before in it."""
    done = subprocess.run(
        [sys.executable, "-c", BEGINNING + body], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_a_filled_heap_has_no_holes_to_copy_pages_for() -> None:
    in_a_process("""
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
""")


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


def test_collapsing_changes_nothing_that_is_there() -> None:
    in_a_process("""
block = libc.malloc(64 * KB * KB)
ctypes.memset(block, 7, 64 * KB * KB)
heap.collapse()
assert ctypes.string_at(block, 64 * KB * KB) == bytes([7]) * (64 * KB * KB)
""")
