"""glibc's heap, settled before nodes are forked, so that they write little of what they inherit."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEEP_BYTES = 1 << 20


def settle() -> None:
    """Fix malloc's thresholds and tidy its free lists; nothing where the C library is another.

    Left alone, the thresholds rise as a training step's large blocks come and go, and what a step
    has freed is hoarded. Either call walks the heap and writes to it: in a forked process that
    would copy megabytes of shared pages, so both belong before the fork.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim"):
        libc.mallopt(_M_MMAP_THRESHOLD, _KEEP_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)
        libc.malloc_trim(0)
