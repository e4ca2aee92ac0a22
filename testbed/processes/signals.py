"""Signals that ask a program to end, as exceptions where it can take them."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED_EXIT = 130
"""Status of a command that one of them ended, whichever it was."""


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


def renew() -> None:
    """Have no signal blocked, and the ends of children told, whatever whoever started this process
    left to it: of children that are ignored no status is had, and a blocked signal ends nothing."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def ignore() -> None:
    """Have none of them change anything any more."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


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

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Within, signals are taken. Once one has come, this program is ending, and what it still
        writes for its user is written, however often it is asked again."""
        with handled(self.take, lambda: self.times > 0):
            if (came := COMMAND.handed_over()) is not None:
                self._came, self.times = came, self.times + 1
            yield

    @contextlib.contextmanager
    def raised(self) -> Iterator[None]:
        try:
            self._raising = True
            if self._came:
                raise Interrupted(self._came)
            yield
        finally:
            self._raising = False


class Command(Interruption):
    """The same of a command of ours as a whole, wherever no run of it hears signals: the first one
    that comes ends it, and another changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._begun = self._made = False

    @property
    def came(self) -> str | None:
        """The signal that came, if no run has taken it over."""
        return self._came

    def hear(self) -> None:
        """Take signals from now on, but those that are ignored. Idempotent."""
        for number in ENDING:
            if signal.getsignal(number) not in (signal.SIG_IGN, self.take):
                signal.signal(number, self.take)
        renew()

    def take(self, number: int, frame: FrameType | None) -> None:
        ignore()
        # In the midst of an import an exception may be swallowed, or be made another one.
        if not self._begun or (not self._made and _imports(frame)):
            _end_now(signal.Signals(number).name)
        super().take(number, frame)

    @contextlib.contextmanager
    def raised(self) -> Iterator[None]:
        self._begun = True
        with super().raised():
            yield

    @contextlib.contextmanager
    def making(self) -> Iterator[None]:
        """Within, something is made that is to be undone, or handed to a run that takes over what
        has come: it is raised after that, and only if nobody has."""
        raising, self._raising, self._made = self._raising, False, True
        try:
            yield
        finally:
            self._raising = raising
        if raising and self._came:
            self._raising = False
            raise Interrupted(self._came)

    def handed_over(self) -> str | None:
        """The signal that came, which is now for somebody else to act on."""
        came, self._came = self._came, None
        return came


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being imported there."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def told(name: str) -> str:
    """The sentence of a command that a signal of this name has ended."""
    return f"interrupted: stopped by {name}"


def _end_now(name: str) -> NoReturn:
    """End this process, which has nothing to undo; the kernel ends those that it has forked."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        os.write(2, f"{told(name)}\n".encode())
    os._exit(INTERRUPTED_EXIT)


COMMAND = Command()
"""This process, where it is a command of ours."""
