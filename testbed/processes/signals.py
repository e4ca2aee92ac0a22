"""Signals that ask a program to end, as exceptions where it can take them."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal asked the program to end; the text is the signal's name."""


@contextlib.contextmanager
def handled(
    handler: Callable[[int, FrameType | None], None], over: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Within, ``handler`` takes the signals that ask for an end. ``over``: whether that was asked,
    and this program is to end by itself after it, whatever else asks for it."""
    # Ignored before, as by nohup or a shell's "&", is ignored now.
    heard = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    before = [(number, signal.signal(number, handler)) for number in heard]
    try:
        yield
    finally:
        for number, earlier in before:
            signal.signal(number, signal.SIG_IGN if over() else earlier)


def interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(signal.Signals(number).name)


class Interruption:
    """The first signal that came: raised within ``raised``, at once or as soon as that begins."""

    def __init__(self) -> None:
        self._raising = False
        self._came: str | None = None
        self.times = 0
        """How many signals have come."""

    def take(self, number: int, frame: FrameType | None) -> None:
        self._came = self._came or signal.Signals(number).name
        self.times += 1
        if self._raising:
            self._raising = False
            raise Interrupted(self._came)

    def heard(self) -> contextlib.AbstractContextManager[None]:
        """Within, signals are taken. Once one has come, this program is ending, and what it still
        writes for its user is written, however often it is asked again."""
        return handled(self.take, lambda: self.times > 0)

    @contextlib.contextmanager
    def raised(self) -> Iterator[None]:
        try:
            self._raising = True
            if self._came:
                raise Interrupted(self._came)
            yield
        finally:
            self._raising = False
