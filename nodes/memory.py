"""A client's memory limit: as much as its device has, held by the kernel.

The limit is on what the process takes beyond what it was forked with: the program, the data and
the model as it was loaded are shared with all nodes and do not count.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import re
import resource
import sys
import traceback
from collections.abc import Iterator

from testbed.metering import meter
from testbed.processes.channel import Channel
from testbed.record.events import Failed, Limited

LEAST_MB = 3.0
"""With this no client of any method trains the smallest model."""
_LIBRARY_THREADS = 6
"""ZeroMQ's two, and pyzmq's own for what it sends without a copy, with ZeroMQ's two for that; one
to spare."""
_STACK_BYTES, _USUAL_STACK_BYTES = 512 << 10, 8 << 20
"""Of each. The kernel counts stacks as large as they may become, which is mostly 8 MB."""
_ATTRIBUTES_BYTES = 256
"""Room for a pthread_attr_t, which has 56."""
_WORDS = (
    "can't allocate memory",
    "not enough memory",
    "could not create a primitive",
    "can't start new thread",
)
"""Torch's; the third are oneDNN's, which says no more, and the last Python's."""


def unsupported() -> str | None:
    """Why a limit cannot be held here, or None."""
    return None if sys.platform == "linux" else "only Linux holds a process to RLIMIT_DATA"


@contextlib.contextmanager
def limited(limit_mb: float | None, whose: str, channel: Channel) -> Iterator[None]:
    """Let this process take ``limit_mb`` (of 10^6 bytes) more within; None: what it wants.

    Where it wants more, the reason goes to ``channel`` and the process ends. A library may end it
    instead, by a signal, so ``channel`` is told of the limit.
    """
    if limit_mb is None or unsupported():
        yield
        return
    before = meter.status_bytes("VmData")
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    stacks = _LIBRARY_THREADS * _with_small_stacks()
    channel.send(Limited(memory_mb=limit_mb, whose=whose))
    resource.setrlimit(resource.RLIMIT_DATA, (before + stacks + round(1e6 * limit_mb), hard))
    try:
        yield
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        taken = meter.status_bytes("VmData") - before - stacks
        # Telling it takes memory too.
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        reason = (
            f"out of memory: {max(0, taken) / 1e6:.1f} of the {whose} {limit_mb:g} MB were taken "
            f"when it asked for {_asked(error)}"
        )
        text = traceback.format_exc()
        channel.send(Failed(reason=reason, traceback=text))
        raise SystemExit(1) from None
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _with_small_stacks() -> int:
    """Have threads that start from now on take little for their stacks; bytes of each."""
    libc = ctypes.CDLL(None, use_errno=True)
    attributes, size = ctypes.create_string_buffer(_ATTRIBUTES_BYTES), ctypes.c_size_t()
    try:
        libc.pthread_getattr_default_np(attributes)
        libc.pthread_attr_setstacksize(attributes, ctypes.c_size_t(_STACK_BYTES))
        libc.pthread_setattr_default_np(attributes)
        libc.pthread_getattr_default_np(attributes)
        libc.pthread_attr_getstacksize(attributes, ctypes.byref(size))
    except AttributeError:
        return _USUAL_STACK_BYTES
    return size.value


def _is_out_of_memory(error: Exception) -> bool:
    return (
        isinstance(error, MemoryError)
        or getattr(error, "errno", None) == errno.ENOMEM
        or (isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS))
    )


def _asked(error: Exception) -> str:
    """How much, as torch and numpy say it; Python does not."""
    found = re.search(r"allocate ([\d.]+ \w+)", str(error))
    return found[1] if found else "more"
