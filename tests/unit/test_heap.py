"""A forked process allocates beside what it inherited, and gives back what it no longer needs."""

import ctypes
import os
import sys
from pathlib import Path

import pytest

from testbed import heap

KB = 1024

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="no glibc 2.33"
)


def in_a_child(body) -> None:
    """Run ``body`` in a forked process; its exit says whether it raised."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            body()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def malloc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.mallinfo2.restype = heap.Usage
    return libc


def holes_bytes(libc: ctypes.CDLL) -> int:
    """Free bytes that are followed by others in use."""
    usage = libc.mallinfo2()
    return int(usage.fordblks - usage.keepcost)


def test_a_settled_heap_has_no_holes_to_copy_pages_for() -> None:
    def body() -> None:
        libc = malloc()
        blocks = [libc.malloc(8 * KB) for _ in range(200)]
        for block in blocks[::2]:
            libc.free(block)
        assert holes_bytes(libc) > 700 * KB
        heap.settle()
        # Arenas of other threads count too, and each begins with 132 KB.
        assert holes_bytes(libc) < 300 * KB

    in_a_child(body)


def test_released_pages_go_back_to_the_kernel() -> None:
    def resident() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def body() -> None:
        libc = malloc()
        heap.settle()
        blocks = [libc.malloc(32 * KB) for _ in range(500)]
        for block in blocks:
            ctypes.memset(block, 1, 32 * KB)
        # The last one stays, so that the heap does not shrink by itself.
        for block in blocks[:-1]:
            libc.free(block)
        full = resident()
        heap.release()
        assert full - resident() > 10 * KB * KB

    in_a_child(body)
