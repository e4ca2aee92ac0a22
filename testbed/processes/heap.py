"""The heaps of glibc and of Python, settled before nodes are forked.

A forked process shares what it inherits until it writes to it, page by page. So what it allocates
belongs on pages of its own, all together, and not into holes of all the pages that it could share.
"""

import bisect
import ctypes
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from testbed import files

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8
_MAP_BYTES = 512 << 10
"""Larger blocks are mapped, and go back to the kernel when freed. With glibc's own 128 KB most
activations of a step of the default model would be such, and each step would fault their pages in
anew: a quarter of a client's time. With more, a heap of large models' would have holes as large:
clients of a batch of 430 images took 212 MB for 126 with 4 MB."""
_STEP_BYTES = 4 << 20
_KEEP_BYTES = 16 << 20
"""What a step may free at the heap's end without giving it back, for the next one to take."""
_HUGE_BYTES = 2 << 20
_MADV_COLLAPSE = 25
_LEAST_BYTES = 24
"""Of malloc's blocks."""
_CACHED_BYTES = 1 << 20
"""More than the blocks that glibc keeps for a thread and counts as used: 7 of each size to 1 KB."""
_MOST_BYTES = 64 << 20
"""Of Python's holes that are filled: what is no heap of the kind that this expects has an end."""
_PYTHON_STEP, _PYTHON_MOST = 16, 512
"""Sizes of blocks of Python's own allocator; what is larger comes from malloc."""

_libc = ctypes.CDLL(None)
_fillings: list[object] = []
"""What fills Python's holes."""


def settle() -> None:
    """Fix malloc's thresholds and tidy its free lists; nothing where the C library is another.

    Left alone, the thresholds rise as a training step's large blocks come and go, and what a step
    has freed is hoarded. Either call walks the heap and writes to it: in a forked process that
    would copy megabytes of shared pages, so both belong before the fork.
    """
    if hasattr(_libc, "mallopt") and hasattr(_libc, "malloc_trim"):
        _libc.mallopt(_M_MMAP_THRESHOLD, _MAP_BYTES)
        _libc.mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)
        _libc.malloc_trim(0)


def keep_large() -> None:
    """Take blocks of any size from one heap, which keeps what is freed until ``release``.

    For a process that takes the same large blocks again and again, such as a server its clients'
    updates, before it has other threads: it faults their pages in once, and not for each of them.
    Eight updates of 343 MB took it half the CPU time.
    """
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_ARENA_MAX, 1)
        _libc.mallopt(_M_MMAP_MAX, 0)
        _libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def keep_steps() -> None:
    """Keep blocks of up to 4 MB from step to step, in this process alone.

    For a client whose steps take many blocks of more than half a megabyte, as those of a small
    language model: one of ``llama-docs`` spent half its CPU time on faults of their pages. Its
    peak is higher then, for holes are as large; between rounds it has no more.
    """
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_MMAP_THRESHOLD, _STEP_BYTES)


def release() -> None:
    """Give pages that hold nothing back to the kernel; for a process that has done its work."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)


def collapse() -> None:
    """Have the kernel map this process's memory by pages of two megabytes, where it can.

    A fork copies an entry a page: with 300 MB that is most of what a fork costs. Pages that a
    forked process writes are still copied by four kilobytes. It takes half a second itself.
    """
    if sys.platform != "linux" or not hasattr(_libc, "madvise"):
        return
    _libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for begin, end, rights, name in _mappings():
        if rights == "rw-p" and name in ("", "[heap]"):
            for page in range(-(-begin // _HUGE_BYTES), end // _HUGE_BYTES):
                # Refused by old kernels, and where there is nothing to collapse.
                _libc.madvise(page * _HUGE_BYTES, _HUGE_BYTES, _MADV_COLLAPSE)


class Usage(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in _names.split()]


_NEW_MEMORY = ("arena", "hblks", "keepcost")
"""What a block changes that fills no hole: heaps grow, a mapping is made, or the last block, which
grows as needed and is no hole, is cut. Where a block lies tells nothing: mappings may be below."""


def fill() -> None:
    """Allocate every hole of both heaps, for good: a few megabytes once, for two in every node."""
    _fill_python()
    if not hasattr(_libc, "mallinfo2"):
        return
    _libc.malloc.restype, _libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    _libc.free.argtypes = [ctypes.c_void_p]
    _libc.mallinfo2.restype = Usage
    usage = _libc.mallinfo2()
    # Where malloc is another library's, these figures never change: this alone ends it there.
    left = usage.fordblks - usage.keepcost + _CACHED_BYTES
    for size in _sizes():
        while size <= left:
            before, block, after = _libc.mallinfo2(), _libc.malloc(size), _libc.mallinfo2()
            if any(getattr(before, grown) != getattr(after, grown) for grown in _NEW_MEMORY):
                _libc.free(block)
                break
            left -= size


def _fill_python() -> None:
    """Objects of each size until one stands where no memory was before."""
    begins, ends = [], []
    for begin, end, rights, name in _mappings():
        if rights == "rw-p" and not name:
            begins.append(begin)
            ends.append(end)
    left = _MOST_BYTES
    for size in range(_PYTHON_STEP, _PYTHON_MOST + 1, _PYTHON_STEP):
        make = _maker(size)
        while left > 0:
            left -= size
            block = make()
            place = bisect.bisect(begins, id(block)) - 1
            if place < 0 or id(block) >= ends[place]:
                break
            _fillings.append(block)


def _maker(size: int) -> Callable[[], object]:
    """A maker of objects of ``size`` bytes, a multiple of 16, that the collector ignores."""
    if size == object.__basicsize__:
        return object
    if size == complex.__basicsize__:
        return lambda: complex(len(_fillings))
    return lambda: bytes(size - bytes.__basicsize__)


def _mappings() -> Iterator[tuple[int, int, str, str]]:
    """Parts of this process's memory: begin, end, rights and name; none but on Linux."""
    maps = Path("/proc/self/maps")
    for line in files.system_lines(maps) if maps.exists() else ():
        where, rights, _, _, _, *name = line.split(maxsplit=5)
        begin, end = (int(part, 16) for part in where.split("-"))
        yield begin, end, rights, "".join(name)


def _sizes() -> Iterator[int]:
    """Sizes of holes, the large ones first."""
    size = _MAP_BYTES
    while size > _LEAST_BYTES:
        yield size
        size = min(size - 16, 7 * size // 8)
    yield _LEAST_BYTES
