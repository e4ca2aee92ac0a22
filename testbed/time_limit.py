"""Limit of what this process computes at once, where a user says what: a search, a template."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class TooLong(Exception):
    """A computation has taken more than its limit."""


@contextlib.contextmanager
def computing(limit_s: float) -> Iterator[None]:
    """Raises TooLong within, once this process has computed for so long, be it in a search.

    For the main thread alone.
    """

    def give_up(number: int, frame: FrameType | None) -> None:
        raise TooLong(f"takes more than {limit_s:g} s of computing")

    before = signal.signal(signal.SIGVTALRM, give_up)
    # Again and again, since what is computed may go on after an error.
    signal.setitimer(signal.ITIMER_VIRTUAL, limit_s, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
