"""The process that carries packets for a backend, with its counters in shared memory.

The supervisor reads the counters at any moment without asking: both sides see one anonymous
mapping, and the process that carries the packets is its only writer.
"""

import contextlib
import mmap
import os
from collections.abc import Callable, Collection, Sequence
from typing import Any

import msgspec

from testbed.links.interface import Counters, LinkCounters, LinkError
from testbed.network.direction import Direction
from testbed.processes import confinement
from testbed.processes.channel import MAX_FDS_PER_LINE, Channel, Garbled
from testbed.processes.confinement import Reach
from testbed.processes.worker import NoAnswer, Refusal, Refused, Result, Stop, Worker

Wait = Callable[[Channel, float], bool]
"""Waits until a channel can be read, whether it can within so many seconds; LinkError: no more."""
Facts = dict[str, Any]
"""What a backend says of its network."""
UP, DOWN = 0, 1
FRAMES, BYTES, QUEUE_DROPS, LOSSES = range(4)
_PER_DIRECTION = 4
_PER_NODE = 2 * _PER_DIRECTION
_WORD_BYTES = 8
HAND_OVER_LIMIT_S = 10.0


class Up(msgspec.Struct, tag="up"):
    """The link process's word that packets are carried now."""

    facts: Facts
    descriptors: int
    """How many come with the lines that follow."""


class Handed(msgspec.Struct, tag="handed"):
    """A line with which some of the link process's descriptors come."""


class Shape(msgspec.Struct, tag="shape"):
    """An order that gives a node's link new parameters."""

    node: int
    up: Direction
    down: Direction


class HostGone(msgspec.Struct, tag="host_gone"):
    """The link process's word that another host of the run is, and how it knows."""

    host: str
    reason: str


Order = Shape | Stop
Answer = Up | Handed | HostGone | Result | Refusal


def objection(what: str, attempt: Callable[[], None], limit_s: float) -> str | None:
    """Why ``attempt``, made in a child process, fails; None where it does not.

    ``what``: in the reason, where it does not come to an end.
    """
    worker = Worker("probe", lambda channel: attempt(), LinkError, OSError)
    try:
        worker.receive(Result, limit_s)
    except Refused as refused:
        return str(refused)
    except NoAnswer as error:
        return f"{what}: {error}"
    finally:
        worker.close()
    return None


class CounterTable:
    """Counters of every node's link: the kernel's word for a counter is 64 bits, so is ours."""

    def __init__(self, nodes: int) -> None:
        self.nodes = nodes
        self.words = memoryview(mmap.mmap(-1, nodes * _PER_NODE * _WORD_BYTES)).cast("Q")

    def offset(self, node: int, direction: int) -> int:
        """The first of the four words of one direction; add FRAMES, BYTES, ..."""
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


def say_up(
    channel: Channel, facts: Facts, descriptors: Sequence[int] = (), keep: Collection[int] = ()
) -> None:
    """Tell the owner that packets are carried now; give it descriptors and close them here.

    All is set up then, and this process is confined: of its capabilities it has those of ``keep``.
    It goes on to wake nodes by a signal.
    """
    held = confinement.confine(Reach(signals=True), keep).words()
    channel.send(Up({**facts, "privileges": held}, len(descriptors)))
    for start in range(0, len(descriptors), MAX_FDS_PER_LINE):
        channel.send(Handed(), tuple(descriptors[start : start + MAX_FDS_PER_LINE]))
    for descriptor in descriptors:
        os.close(descriptor)


class LinkProcess:
    """A child process that runs ``body(channel, counters)`` until its channel says stop.

    ``body`` first calls ``say_up``; then it carries packets, obeys Shape, and ends at Stop or at
    the channel's end. It returns its closing facts; a LinkError that it raises becomes ours.
    """

    def __init__(
        self,
        nodes: int,
        body: Callable[[Channel, CounterTable], Facts],
        limit_s: float,
        wait: Wait | None = None,
    ) -> None:
        """Start the process and wait until it is up; ``wait``: in this way.

        Raises:
            LinkError: it failed, with its own reason, or is not up within ``limit_s``.
        """
        self.counters = CounterTable(nodes)
        self._worker = Worker(
            "link process",
            lambda channel: body(channel, self.counters),
            LinkError,
            orders=Order,
            answers=Answer,
        )
        self.channel = self._worker.channel
        self._failure: str | None = None
        self.hosts_gone: dict[str, str] = {}
        """Other hosts of the run that are, and why, as of the last call of ``failure``."""
        self._closing: Facts = {}
        try:
            up = self._wait_up(limit_s, wait)
            self.facts, self.descriptors = up.facts, self._take(up.descriptors)
        except BaseException:
            # A signal too: nobody else knows of the process yet. It may hear nobody, either.
            self._worker.close()
            raise

    @property
    def pid(self) -> int:
        return self._worker.child.pid

    def _wait_up(self, limit_s: float, wait: Wait | None) -> Up:
        try:
            if wait is not None and not wait(self.channel, limit_s):
                raise NoAnswer(f"no answer within {limit_s:g} s")
            return self._worker.receive(Up, limit_s)
        except Refused as refused:
            raise LinkError(str(refused)) from None
        except NoAnswer as error:
            self._worker.child.wait(1)
            raise LinkError(f"start the link process: {self.failure() or error}") from error

    def _take(self, count: int) -> list[int]:
        received = self.channel.descriptors
        try:
            while len(received) < count:
                self._worker.receive(Handed, HAND_OVER_LIMIT_S)
        except NoAnswer as error:
            raise LinkError(f"receive the nodes' namespaces: {error}") from error
        return [received.popleft() for _ in range(count)]

    def shape(self, node: int, up: Direction, down: Direction) -> None:
        """Have a node's link take new parameters."""
        self.channel.send(Shape(node, up, down))

    def failure(self) -> str | None:
        """Why the process no longer carries packets, or None while it does."""
        try:
            for line in self.channel.drain():
                if isinstance(line, Refusal):
                    self._failure = line.reason
                elif isinstance(line, HostGone):
                    self.hosts_gone[line.host] = line.reason
        except Garbled as error:
            self._failure = str(error)
        if self._failure is None and (how := self._worker.child.ended()):
            self._failure = f"the link process {how}"
        return self._failure

    def halted(self) -> str | None:
        """That the process is stopped at this moment; None where it runs."""
        child = self._worker.child
        return f"the link process {child.condition()}" if child.is_stopped() else None

    def down(self, timeout_s: float = 5.0) -> Facts:
        """Stop the process and return its closing facts. Idempotent."""
        with contextlib.suppress(NoAnswer):
            self._closing = self._worker.stop(timeout_s)
        return self._closing
