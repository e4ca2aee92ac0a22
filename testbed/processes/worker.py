"""A forked process that works for its owner: it is heard, asked and stopped over a channel."""

import contextlib
from collections.abc import Callable
from typing import Any

from testbed.processes.channel import Channel, ChannelClosed, Line
from testbed.processes.child import Child


class NoAnswer(Exception):
    """An answer that was waited for did not come; the text says why."""


class Refused(NoAnswer):
    """The process cannot do what it is for; the text is its reason."""


class Worker:
    """Owns the process, and one end of a channel whose other end ``body`` gets.

    What ``body`` returns is the process's last line, ``{"result": …}``; an error of ``refusals``
    is ``{"failed": reason}``.
    """

    def __init__(
        self, name: str, body: Callable[[Channel], Any], *refusals: type[Exception]
    ) -> None:
        """Fork, so the caller may not have threads yet."""
        self.channel, theirs = Channel.pair()

        def run() -> None:
            # The owner's end would never close with a copy of it here.
            self.channel.close()
            # A killed run has nobody left to tell.
            with contextlib.suppress(ChannelClosed):
                try:
                    line = {"result": body(theirs)}
                except refusals as error:
                    line = {"failed": str(error)}
                theirs.send(line)

        self.child = Child(name, run)
        theirs.close()

    def receive(self, limit_s: float) -> Line:
        """The process's next line, such as that it is ready.

        Raises:
            Refused: it cannot be.
            NoAnswer: none came within ``limit_s``, or the process has ended.
        """
        try:
            line: Line = self.channel.receive(limit_s)
        except (ChannelClosed, TimeoutError) as error:
            raise NoAnswer(str(error)) from error
        if "failed" in line:
            raise Refused(line["failed"])
        return line

    def tell(self, line: Line) -> None:
        """Send a line; that a process has ended is for who waits for its answer to find out."""
        with contextlib.suppress(ChannelClosed):
            self.channel.send(line)

    def ask(self, line: Line, limit_s: float) -> Line:
        """Send a line and receive one; raises what ``receive`` does."""
        self.tell(line)
        return self.receive(limit_s)

    def stop(self, limit_s: float) -> Any:
        """Ask the process to stop, and return its result. Kills it where it gives none.

        Raises:
            NoAnswer: as in ``receive``, or because it was stopped before.
        """
        try:
            line = self.ask({"stop": True}, limit_s)
            while "result" not in line:
                line = self.receive(limit_s)
            self.child.wait(limit_s)
            return line["result"]
        finally:
            self.close()

    def close(self) -> None:
        """End the process now. Idempotent."""
        self.child.kill()
        self.channel.close()
