"""A forked process that works for its owner: it is heard, asked and stopped over a channel."""

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from testbed.processes.channel import Channel, ChannelClosed, Garbled
from testbed.processes.child import Child


class Go(msgspec.Struct, tag="go"):
    """An order to begin, or to go on."""


class Stop(msgspec.Struct, tag="stop"):
    """An order to come to an end, and to give the result."""


class Ready(msgspec.Struct, tag="ready"):
    """The process's word that it waits for what it is told."""


class Result(msgspec.Struct, tag="result"):
    """The process's last line: what its body returned."""

    value: Any


class Refusal(msgspec.Struct, tag="refusal"):
    """The process's last line in place of that: it cannot do what it is for."""

    reason: str


Order = Go | Stop
Answer = Ready | Result | Refusal
Kind = TypeVar("Kind", bound=msgspec.Struct)


class NoAnswer(Exception):
    """An answer that was waited for did not come; the text says why."""


class Refused(NoAnswer):
    """The process cannot do what it is for; the text is its reason."""


class Worker:
    """Owns the process, and one end of a channel whose other end ``body`` gets.

    What ``body`` returns is the process's ``Result``; an error of ``refusals`` is its ``Refusal``.
    """

    def __init__(
        self,
        name: str,
        body: Callable[[Channel], Any],
        *refusals: type[Exception],
        orders: Any = Order,
        answers: Any = Answer,
    ) -> None:
        """Fork, so the caller may not have threads yet.

        ``orders``, ``answers``: lines to the process and from it, Stop, Result and Refusal among
        them.
        """
        told: tuple[type[Exception], ...] = (*refusals, Garbled)
        self.channel, theirs = Channel.pair(answers, orders, f"the {name}")

        def run() -> None:
            # The owner's end would never close with a copy of it here.
            self.channel.close()
            # A killed run has nobody left to tell.
            with contextlib.suppress(ChannelClosed):
                try:
                    line: Result | Refusal = Result(body(theirs))
                except told as error:
                    line = Refusal(str(error))
                theirs.send(line)

        self.child = Child(name, run)
        theirs.close()

    def receive(self, kind: type[Kind], limit_s: float) -> Kind:
        """The process's next line, which is to be of ``kind``, such as Ready.

        Raises:
            Refused: it cannot be.
            NoAnswer: none came within ``limit_s``, or another, or the process has ended.
        """
        line = self._next(limit_s)
        if not isinstance(line, kind):
            said, awaited = (each.__struct_config__.tag for each in (line, kind))
            raise NoAnswer(f"the {self.child.name} said {said!r} and not {awaited!r}")
        return line

    def _next(self, limit_s: float) -> msgspec.Struct:
        try:
            line: msgspec.Struct = self.channel.receive(limit_s)
        except (ChannelClosed, TimeoutError, Garbled) as error:
            raise NoAnswer(str(error)) from error
        if isinstance(line, Refusal):
            raise Refused(line.reason)
        return line

    def tell(self, line: msgspec.Struct) -> None:
        """Send a line; that a process has ended is for who waits for its answer to find out."""
        with contextlib.suppress(ChannelClosed):
            self.channel.send(line)

    def ask(self, line: msgspec.Struct, kind: type[Kind], limit_s: float) -> Kind:
        """Send a line and receive one; raises what ``receive`` does."""
        self.tell(line)
        return self.receive(kind, limit_s)

    def stop(self, limit_s: float) -> Any:
        """Ask the process to stop, and return its result. Kills it where it gives none.

        Raises:
            NoAnswer: as in ``receive``, or because it was stopped before.
        """
        try:
            self.tell(Stop())
            while not isinstance(line := self._next(limit_s), Result):
                pass
            self.child.wait(limit_s)
            return line.value
        finally:
            self.close()

    def close(self) -> None:
        """End the process now. Idempotent."""
        self.child.kill()
        self.channel.close()
