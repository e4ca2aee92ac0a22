"""Another host of a run as the driver has it: the line to its agent, and its nodes' channels."""

import contextlib
import os
import select
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from testbed.fidelity import host_prober
from testbed.links.interface import LinkCounters
from testbed.links.tunnel import silence
from testbed.links.tunnel.clocks import Contradiction, Offset
from testbed.links.tunnel.proof import Stranger
from testbed.network import hosts
from testbed.processes.channel import ChannelClosed
from testbed.run.hosts import line as lines
from testbed.run.hosts.line import Line, LineClosed, Refused
from testbed.run.hosts.messages import (
    Answer,
    Ask,
    CaptureEnded,
    Checked,
    Hello,
    Say,
    Tell,
)

HELLO_LIMIT_S = 10.0
CHECK_LIMIT_S = 300.0
"""For an agent to import, and to digest its model and data."""
EXCHANGES = 10
"""By which the other clock is known."""


class Unusable(Exception):
    """A host cannot have a part; the text says which and why."""


class Bell:
    """A descriptor that is readable from its ringing on until it is muted."""

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        return self._descriptor

    def ring(self) -> None:
        if self._descriptor >= 0:
            os.eventfd_write(self._descriptor, 1)

    def mute(self) -> None:
        if self._descriptor >= 0:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._descriptor)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class FarHost:
    """One host; owns the line to its agent, whose token was proved."""

    def __init__(
        self, name: str, address: tuple[str, int], token: bytes, hears: Any = Answer
    ) -> None:
        """Call the agent, and learn what its host is. ``hears``: all that it may say.

        Raises:
            Unusable: nobody answers, or it is no agent of that token, or has a run.
        """
        self.name, self.address = name, address
        self.where = f"host {name} at {address[0]}:{address[1]}"
        self.line = self._called(token, hears)
        self.channels: dict[int, FarChannel] = {}
        """Of its nodes that were started."""
        self.running: set[int] = set()
        """Nodes of these that have not ended, as far as is known."""
        self.facts: dict[str, Any] | None = None
        """Of its part of the network, once that is up."""
        self.is_ready = False
        """Whether its zygote has prepared."""
        self.counters: list[LinkCounters] | None = None
        self.awaits_counters = False
        self.probed: host_prober.Answer | None = None
        """Its prober's word on the last order that it got."""
        self.captures = False
        """Whether it captures packets."""
        self.pieces = 0
        """Of its captures that have come."""
        self.captured: CaptureEnded | None = None
        """Its last word on them."""
        self.closing: dict[str, Any] | None = None
        """Of its part of the network, once that is down."""
        self.gone: str | None = None
        """How it is known that it is."""
        try:
            self.hello = self._heard(self.line.receive(Hello, HELLO_LIMIT_S))
            self.ahead_s = self._exchanged()
        except (LineClosed, Contradiction) as error:
            self.line.close()
            raise Unusable(f"{self.where}: {error}") from error

    def _called(self, token: bytes, hears: Any) -> Line:
        try:
            return lines.call(self.address, token, hears)
        except Stranger as error:
            raise Unusable(f"{self.where}: {error}") from error
        except OSError as error:
            why = error.strerror or str(error) or "no answer"
            raise Unusable(
                f"{self.where}: no agent answers ({why}); start one there: wiretune agent "
                f"--listen={self.address[0]}:{self.address[1]}"
            ) from error

    def _heard(self, hello: Hello) -> Hello:
        if hello.busy:
            self.line.close()
            raise Unusable(f"{self.where}: its agent has a run already; wait for its end")
        return hello

    def _exchanged(self) -> float:
        """Seconds that our monotonic clock is ahead of its."""
        offset = Offset()
        for _ in range(EXCHANGES):
            self.line.send(Ask(time.monotonic()))
            told = self.line.receive(Tell, HELLO_LIMIT_S)
            offset.learn(told.asked, told.heard, told.answered, time.monotonic())
        return -offset.seconds

    @property
    def machine(self) -> hosts.Host:
        return hosts.Host(self.name, self.hello.cores, self.hello.memory_bytes)

    def say(self, order: msgspec.Struct) -> None:
        """Have it load, or check whether it can have a part of a run; both take seconds.

        Raises:
            Unusable: it is gone.
        """
        try:
            self.line.send(order)
        except LineClosed as error:
            raise Unusable(f"{self.where}: {error}") from error

    def checked(self, digests: Mapping[str, str | None]) -> int:
        """Take its answer, which comes; the port where it will be met.

        Raises:
            Unusable: it cannot, or one of ``digests`` is another there.
        """
        try:
            answer = self.line.receive(msgspec.Struct, HELLO_LIMIT_S)
        except LineClosed as error:
            raise Unusable(f"{self.where}: {error}") from error
        if isinstance(answer, Refused):
            raise Unusable(f"{self.where}: {answer.reason}")
        if not isinstance(answer, Checked):
            raise Unusable(f"{self.where}: it said {type(answer).__name__}")
        for name in digests.keys() | answer.digests.keys():
            if digests.get(name) != answer.digests.get(name):
                raise Unusable(
                    f"{self.where}: {name} is not what it is here (by SHA-256, "
                    f"{_short(answer.digests.get(name))} and {_short(digests.get(name))}); "
                    "have the same files on all hosts"
                )
        return answer.port

    def close(self) -> None:
        for channel in self.channels.values():
            channel.close()
        self.line.close()


def checked(
    hosts: Sequence[FarHost],
    question: Callable[[FarHost], msgspec.Struct],
    digests: Mapping[str, str | None],
    limit_s: float = CHECK_LIMIT_S,
) -> dict[str, int]:
    """Have all check at once that they can have their parts; by name, where each will be met.

    ``question``: what each is asked.

    Raises:
        Unusable: of the first that says it cannot, or says nothing within ``limit_s``.
    """
    for far in hosts:
        far.say(question(far))
    until = time.monotonic() + limit_s
    ports: dict[str, int] = {}
    while waits := [far for far in hosts if far.name not in ports]:
        waiter = select.poll()
        for far in waits:
            waiter.register(far.line, select.POLLIN)
        left_s = until - time.monotonic()
        if left_s <= 0:
            silent = ", ".join(far.where for far in waits)
            raise Unusable(f"{silent}: no answer within {limit_s:g} s")
        look_s = min(left_s, silence.LOOK_S)
        ready = {descriptor for descriptor, _ in waiter.poll(1000 * look_s)}
        for far in waits:
            if far.line.fileno() in ready or far.line.is_cut:
                ports[far.name] = far.checked(digests)
    return {far.name: ports[far.name] for far in hosts}


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:12]


class FarChannel:
    """The driver's end of a node's channel, where the node is on another host."""

    def __init__(
        self, host: FarHost, node: int, says: Callable[[int, Any], msgspec.Struct] = Say
    ) -> None:
        """``says``: the message to its host that brings the node a line."""
        self._host, self._node, self._says = host, node, says
        self._lines: deque[msgspec.Struct] = deque()
        self._bell = Bell()
        self.closed = False

    def fileno(self) -> int:
        """Readable where there is something to drain."""
        return self._bell.fileno()

    def send(self, line: msgspec.Struct) -> None:
        """Raises ChannelClosed: the host is gone."""
        try:
            self._host.line.send(self._says(self._node, line))
        except LineClosed as error:
            raise ChannelClosed(str(error)) from error

    def put(self, line: msgspec.Struct) -> None:
        self._lines.append(line)
        self._bell.ring()

    def end(self) -> None:
        """Nothing more will come."""
        if not self.closed:
            self.closed = True
            self._bell.ring()

    def drain(self) -> list[Any]:
        self._bell.mute()
        found = list(self._lines)
        self._lines.clear()
        return found

    def close(self) -> None:
        self.closed = True
        self._bell.close()
