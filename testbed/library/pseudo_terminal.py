"""Pseudo-terminal of a visitor: a terminal of its own for a program, shown on the visitor's."""

import contextlib
import fcntl
import os
import select
import selectors
import signal
import termios
import tty

MOST_AT_ONCE = 1 << 16
MOST_TYPED = 1024
"""A terminal's line takes no more at once where nobody reads it."""
SILENCE_MS = 200
"""Of a terminal that something in the node still has open, after which all has been shown."""
LISTEN_POLL_S = 0.01
_KEYS, _SCREEN = 0, 1
_FLAGS, _SPECIAL = 3, 6
"""Of a terminal's attributes: local modes, and its special characters."""
_SIGNALS = {termios.VINTR: signal.SIGINT, termios.VQUIT: signal.SIGQUIT}
_NO_KEY = b"\0"
_SESSION = 0x5429
"""TIOCGSID: refused of a terminal that no session has."""


def usable() -> bool:
    """Whether this process has a terminal, and its foreground."""
    try:
        return os.isatty(_SCREEN) and os.tcgetpgrp(_KEYS) == os.getpgrp()
    except OSError:
        return False


class PseudoTerminal:
    """Both ends, until the program has its own; keys go there as they are while it is open."""

    def __init__(self) -> None:
        self._before = termios.tcgetattr(_KEYS)
        self._master, self._slave = os.openpty()
        os.set_blocking(self._master, False)
        termios.tcsetattr(self._slave, termios.TCSANOW, self._before)
        self.resize()
        self.streams = tuple(self._slave if os.isatty(n) else n for n in range(3))
        """For the program; what is no terminal's here is none's there."""
        self._typed = b""
        self.listens = False
        """Keys go to the program."""
        self.early: int | None = None
        """Number of the signal that was typed before the program had its terminal."""
        self._selector: selectors.BaseSelector | None = None
        # What has been typed already is kept.
        tty.setraw(_KEYS, termios.TCSADRAIN)

    def begin(self, selector: selectors.BaseSelector) -> None:
        """Carry what is typed and shown; the program has its end now."""
        os.close(self._slave)
        self._selector = selector
        selector.register(self._master, selectors.EVENT_READ)

    def listen(self) -> float | None:
        """Listen to keys once the program has its terminal; seconds until it is to be tried again.

        Before that an interrupt would reach nobody, and in its first moments it may be lost: a
        shell that starts a command with vfork heeds none meanwhile. So those go to ``early``.
        """
        if self.listens or self._selector is None:
            return None
        try:
            fcntl.ioctl(self._master, _SESSION, bytes(4))
        except OSError:
            return LISTEN_POLL_S
        self.listens = True
        self._selector.register(_KEYS, selectors.EVENT_READ)
        waiter = select.poll()
        waiter.register(_KEYS, select.POLLIN)
        if waiter.poll(0):
            self.carry(_KEYS, selectors.EVENT_READ)
            self.early = self._signal_in(self._typed)
        return None

    def _signal_in(self, typed: bytes) -> int | None:
        """The first signal that a terminal makes of these keys."""
        flags, keys = self._before[_FLAGS], self._before[_SPECIAL]
        if not flags & termios.ISIG:
            return None
        found = {keys[key]: number for key, number in _SIGNALS.items() if keys[key] != _NO_KEY}
        return next((found[key] for each in typed if (key := bytes([each])) in found), None)

    def resize(self) -> None:
        """Have it be as large as the visitor's."""
        with contextlib.suppress(termios.error):
            termios.tcsetwinsize(self._master, termios.tcgetwinsize(_KEYS))

    def carry(self, descriptor: int, events: int) -> None:
        """Do what is to be done for one of the two that ``begin`` registered."""
        assert self._selector is not None
        try:
            if descriptor == _KEYS:
                self._take()
            elif events & selectors.EVENT_WRITE and self._typed:
                self._type()
            if descriptor != _KEYS and events & selectors.EVENT_READ:
                self._show()
        except (OSError, KeyError):  # Nothing has the other end any more, or nobody this one.
            self.listens = True
            for each in (self._master, _KEYS):
                with contextlib.suppress(KeyError):
                    self._selector.unregister(each)

    def _take(self) -> None:
        assert self._selector is not None
        self._typed = os.read(_KEYS, MOST_TYPED)
        # No more keys are taken until these are in.
        self._selector.unregister(_KEYS)
        if self._typed:
            self._selector.modify(self._master, selectors.EVENT_READ | selectors.EVENT_WRITE)

    def _type(self) -> None:
        assert self._selector is not None
        with contextlib.suppress(BlockingIOError):
            self._typed = self._typed[os.write(self._master, self._typed) :]
        if not self._typed:
            self._selector.modify(self._master, selectors.EVENT_READ)
            self._selector.register(_KEYS, selectors.EVENT_READ)

    def _show(self) -> None:
        with contextlib.suppress(BlockingIOError):
            shown = os.read(self._master, MOST_AT_ONCE)
            while shown:
                shown = shown[os.write(_SCREEN, shown) :]

    def finish(self) -> None:
        """Show what the program has left."""
        waiter = select.poll()
        waiter.register(self._master, select.POLLIN)
        with contextlib.suppress(OSError):
            while waiter.poll(SILENCE_MS):
                self._show()

    def close(self) -> None:
        """Give the visitor's terminal back as it was."""
        termios.tcsetattr(_KEYS, termios.TCSADRAIN, self._before)
        if self._selector is None:
            os.close(self._slave)
        os.close(self._master)
