"""A client's memory: as much as its device has, held by the kernel.

The limit is on what the process takes beyond what it was forked with: the program, the data and
the model as it was loaded are shared with all nodes and do not count.
"""

from __future__ import annotations

import contextlib
import re
import resource
import sys
import traceback
from collections.abc import Iterator

from testbed import meter
from testbed.channel import Channel

_SOCKET_THREADS = 2
"""ZeroMQ's. The kernel counts their stacks, as large as they may become."""
_USUAL_STACK = 8 << 20
_TORCHS_WORDS = ("can't allocate memory", "not enough memory", "could not create a primitive")
"""The last are oneDNN's, which says no more."""


def unsupported() -> str | None:
    """Why a limit cannot be held here, or None."""
    return None if sys.platform == "linux" else "only Linux holds a process to RLIMIT_DATA"


@contextlib.contextmanager
def limited(limit_mb: float | None, whose: str, channel: Channel) -> Iterator[None]:
    """Let this process take ``limit_mb`` (of 10^6 bytes) more within; None: what it wants.

    Where it wants more, the reason goes to ``channel`` and the process ends.
    """
    if limit_mb is None or unsupported():
        yield
        return
    before = meter.status_bytes("VmData")
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    stack = resource.getrlimit(resource.RLIMIT_STACK)[0]
    stacks = _SOCKET_THREADS * (_USUAL_STACK if stack == resource.RLIM_INFINITY else stack)
    allowed = before + stacks + round(1e6 * limit_mb)
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, hard))
    try:
        yield
    except (MemoryError, RuntimeError) as error:
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
        channel.send({"event": "failed", "reason": reason, "traceback": text})
        raise SystemExit(1) from None
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(w in str(error) for w in _TORCHS_WORDS)


def _asked(error: Exception) -> str:
    """How much, as torch and numpy say it; Python does not."""
    found = re.search(r"allocate ([\d.]+ \w+)", str(error))
    return found[1] if found else "more"
