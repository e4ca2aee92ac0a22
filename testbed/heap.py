"""glibc's heap, settled before nodes are forked, so that they write little of what they inherit."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MAP_BYTES = 100_000
"""Larger blocks are mapped, and go back to the kernel when freed. The activations of a batch of 16
of the default model (104 KB a tensor) are such: in the heap they would leave holes of many sizes,
3 MB a client, for no time saved that a whole run shows."""
_KEEP_BYTES = 1 << 20


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
