"""Emulated time: the machine's monotonic clock, ``dilation`` times slower.

With a dilation of 10 a second of the emulated network and its devices takes ten of the machine's,
so that few cores have time for what many devices do. All that a run says and all of its limits are
seconds of this clock; what works on real packets, the link backends and their probes, knows the
machine's alone, and is given links that are as much slower (``dilation``).

The dilation is set before a run's processes are forked, and is the same in all of them.
"""

import asyncio
import contextlib
import selectors
import time
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

Result = TypeVar("Result")

MOST_S = 1e6
"""A poll takes at most 2**31 ms; who waits longer looks again in between."""

_dilation = 1.0


@contextlib.contextmanager
def dilated(dilation: float) -> Iterator[None]:
    """Within, a second of this clock takes ``dilation`` of the machine's."""
    global _dilation
    before, _dilation = _dilation, dilation
    try:
        yield
    finally:
        _dilation = before


def dilation() -> float:
    return _dilation


def monotonic() -> float:
    """Seconds, the same in all processes of a run."""
    return time.monotonic() / _dilation


def monotonic_ns() -> int:
    """The same in whole nanoseconds."""
    host_ns = time.monotonic_ns()
    return host_ns if _dilation == 1 else round(host_ns / _dilation)


def sleep(seconds: float) -> None:
    time.sleep(seconds * _dilation)


def host_s(seconds: float) -> float:
    """How long that takes on this machine: for a system call that waits, and none takes more than
    MOST_S."""
    return min(seconds * _dilation, MOST_S)


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """``asyncio.run``, with every sleep and limit within in seconds of this clock."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(main)


class _Selector(selectors.DefaultSelector):
    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(None if timeout is None else host_s(timeout))


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        super().__init__(_Selector())

    def time(self) -> float:
        return monotonic()
