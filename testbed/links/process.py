"""The process that carries packets for a backend, with its counters in shared memory.

The supervisor reads the counters at any moment without asking: both sides see one anonymous
mapping, and the process that carries the packets is its only writer.
"""

import mmap
from collections.abc import Callable
from typing import Any

import msgspec

from testbed.links.interface import Counters, LinkCounters, LinkError
from testbed.network.direction import Direction
from testbed.processes.channel import Channel, ChannelClosed
from testbed.processes.child import Child, describe_exit

UP, DOWN = 0, 1
FRAMES, BYTES, QUEUE_DROPS, LOSSES = range(4)
_PER_DIRECTION = 4
_PER_NODE = 2 * _PER_DIRECTION
_WORD_BYTES = 8


def objection(what: str, attempt: Callable[[], None], limit_s: float) -> str | None:
    """Why ``attempt``, made in a child process, fails; None where it does not.

    ``what``: in the reason, where it does not come to an end.
    """
    ours, theirs = Channel.pair()

    def run() -> None:
        try:
            attempt()
        except (LinkError, OSError) as error:
            theirs.send({"reason": str(error)})
        else:
            theirs.send({"reason": None})

    child = Child("probe", run)
    theirs.close()
    try:
        reason: str | None = ours.receive(limit_s)["reason"]
    except (ConnectionError, TimeoutError) as error:
        reason = f"{what}: {error}"
    child.kill()
    ours.close()
    return reason


class CounterTable:
    """Counters of every node's link: the kernel's word for a counter is 64 bits, so is ours."""

    def __init__(self, nodes: int) -> None:
        self.nodes = nodes
        self.words = memoryview(mmap.mmap(-1, nodes * _PER_NODE * _WORD_BYTES)).cast("Q")

    def offset(self, node: int, direction: int) -> int:
        """Where the four words of one direction begin; add FRAMES, BYTES, ..."""
        return node * _PER_NODE + direction * _PER_DIRECTION

    def read(self) -> list[LinkCounters]:
        words = self.words.tolist()
        return [
            LinkCounters(
                Counters(*words[start : start + _PER_DIRECTION]),
                Counters(*words[start + _PER_DIRECTION : start + _PER_NODE]),
            )
            for start in range(0, self.nodes * _PER_NODE, _PER_NODE)
        ]


class LinkProcess:
    """A child process that runs ``body(channel, counters)`` until its channel says stop.

    ``body`` first sends a line with "up": true and whatever the backend wants to know, or
    ``{"failed": reason}``; then it carries packets, obeys ``{"shape": node, "up": …, "down": …}``
    and ends at ``{"stop": true}`` or at the channel's end with a closing line ``{"closing": …}``.
    """

    def __init__(self, nodes: int, body: Callable[[Channel, CounterTable], None]) -> None:
        self.counters = CounterTable(nodes)
        self.channel, theirs = Channel.pair()

        def run() -> None:
            self.channel.close()
            try:
                body(theirs, self.counters)
            except LinkError as error:
                theirs.send({"failed": str(error)})

        self._child = Child("links", run)
        theirs.close()
        self._failure: str | None = None
        self._closing: dict[str, Any] = {}

    @property
    def pid(self) -> int:
        return self._child.pid

    def wait_up(self, timeout_s: float) -> dict[str, Any]:
        """The first line of the process.

        Raises:
            LinkError: it failed, with its own reason.
        """
        try:
            line = self.channel.receive(timeout_s)
        except (TimeoutError, ChannelClosed) as error:
            self._child.wait(1)
            raise LinkError(f"start the link process: {self.failure() or error}") from error
        if "failed" in line:
            raise LinkError(line["failed"])
        return line

    def shape(self, node: int, up: Direction, down: Direction) -> None:
        """Have a node's link take new parameters."""
        self.channel.send(
            {"shape": node, "up": msgspec.to_builtins(up), "down": msgspec.to_builtins(down)}
        )

    def failure(self) -> str | None:
        """Why the process no longer carries packets, or None while it does."""
        for line in self.channel.drain() if not self.channel.closed else ():
            if "failed" in line:
                self._failure = line["failed"]
        if self._failure is None and not self._child.poll() and self._child.exit_status is not None:
            self._failure = f"the link process {describe_exit(self._child.exit_status)}"
        return self._failure

    def halted(self) -> str | None:
        """That the process is stopped at this moment; None where it runs."""
        return f"the link process {self._child.condition()}" if self._child.is_stopped() else None

    def down(self, timeout_s: float = 5.0) -> dict[str, Any]:
        """Stop the process and return its closing facts. Idempotent."""
        if self._child.poll():
            try:
                self.channel.send({"stop": True})
                line: dict[str, Any] = {}
                while "closing" not in line:
                    line = self.channel.receive(timeout_s)
                self._closing = line["closing"]
            except (ChannelClosed, TimeoutError):
                pass
            if not self._child.wait(timeout_s):
                self._child.kill()
        if self.channel.fileno() >= 0:
            self.channel.close()
        return self._closing
