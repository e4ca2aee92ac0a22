"""glibc's heap, settled before nodes are forked, so that they write little of what they inherit."""

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MAP_BYTES = 100_000
"""Larger blocks are mapped, and go back to the kernel when freed. The activations of a batch of 16
of the default model (104 KB a tensor) are such: in the heap they would leave holes of many sizes,
3 MB a client, for no time saved that a whole run shows."""
_KEEP_BYTES = 1 << 20
_HUGE_BYTES = 2 << 20
_MADV_COLLAPSE = 25
_LEAST_BYTES = 24
"""Of malloc's blocks."""


def settle() -> None:
    """Fix malloc's thresholds and tidy its free lists; nothing where the C library is another.

    Left alone, the thresholds rise as a training step's large blocks come and go, and what a step
    has freed is hoarded. Either call walks the heap and writes to it: in a forked process that
    would copy megabytes of shared pages, so both belong before the fork.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim"):
        libc.mallopt(_M_MMAP_THRESHOLD, _MAP_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)
        libc.malloc_trim(0)


def release() -> None:
    """Give pages that hold nothing back to the kernel; for a process that has done its work."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def collapse() -> None:
    """Have the kernel map this process's memory by pages of two megabytes, where it can.

    A fork copies an entry a page: with 300 MB that is most of what a fork costs. Pages that a
    forked process writes are still copied by four kilobytes. It takes a second itself.
    """
    libc = ctypes.CDLL(None)
    if sys.platform != "linux" or not hasattr(libc, "madvise"):
        return
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for line in Path("/proc/self/maps").read_text().splitlines():
        where, rights, _, _, _, *name = line.split()
        if rights == "rw-p" and name in ([], ["[heap]"]):
            begin, end = (int(part, 16) for part in where.split("-"))
            for page in range(-(-begin // _HUGE_BYTES), end // _HUGE_BYTES):
                # Refused by old kernels, and where there is nothing to collapse.
                libc.madvise(page * _HUGE_BYTES, _HUGE_BYTES, _MADV_COLLAPSE)


class Usage(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in _names.split()]


def fill() -> None:
    """Allocate every hole of the heap, for good: a megabyte once, in place of more in every node.

    A forked process fills holes, and with each it copies a page that all would share. On pages of
    their own a step's small blocks cost it time: a tenth of the default run's rounds, for a tenth
    of its clients' memory.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        return
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.sbrk.restype, libc.sbrk.argtypes = ctypes.c_void_p, [ctypes.c_ssize_t]
    libc.mallinfo2.restype = Usage
    for size in _sizes():
        while True:
            # What follows the last block grows as needed, and is no hole.
            end = libc.sbrk(0) - libc.mallinfo2().keepcost
            if (block := libc.malloc(size)) >= end:
                libc.free(block)
                break


def _sizes() -> Iterator[int]:
    """Of holes, the large ones first."""
    size = _MAP_BYTES
    while size > _LEAST_BYTES:
        yield size
        size = min(size - 16, 7 * size // 8)
    yield _LEAST_BYTES
