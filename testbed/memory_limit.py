"""Limit of the memory that this process takes at once, where a user says what: a template."""

import contextlib
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

PAGE_BYTES = resource.getpagesize()
SIZES = Path("/proc/self/statm")


@contextlib.contextmanager
def taking(limit_bytes: int) -> Iterator[None]:
    """Raises MemoryError within, where this process would grow by more. On Linux alone.

    For what Python computes: other libraries may end the process where they get no memory.
    """
    if sys.platform != "linux":
        yield
        return
    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = int(SIZES.read_bytes().split()[0]) * PAGE_BYTES + limit_bytes
    limits = [each for each in (most, before, hard) if each != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    try:
        yield
    except MemoryError as error:
        raise MemoryError(f"takes more than {limit_bytes >> 20:,} MiB of memory") from error
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))
