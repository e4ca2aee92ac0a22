"""Hosts of a run as its driver has them: what it says to them and hears, and who is gone."""

import contextlib
import os
import select
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from testbed import clock
from testbed.fidelity import host_prober
from testbed.links.interface import LinkError
from testbed.links.process import Facts
from testbed.links.tunnel.clock_table import Reading
from testbed.links.tunnel.meeting import Meeting
from testbed.network import hosts
from testbed.network.topology import Node, Plan
from testbed.network.underlay import Path
from testbed.record import events
from testbed.record.host_clocks import HostClock, since_began
from testbed.run.config import RunConfig
from testbed.run.hosts.far_host import Bell, FarChannel, FarHost
from testbed.run.hosts.line import LineClosed, Refused, secret
from testbed.run.hosts.messages import (
    Begin,
    CaptureEnded,
    CapturePiece,
    Capturing,
    Closing,
    Counted,
    Give,
    Logged,
    Said,
    Severed,
    Spawn,
    Up,
)
from testbed.run.states import StatePiece, States
from testbed.run.zygote import Forked, Prepared, Reaped

CHANCE_BYTES = 32


class Links(Protocol):
    """The driver's own links, as far as they tell of the other hosts."""

    def fileno(self) -> int: ...

    def failure(self) -> str | None: ...

    def hosts_gone(self) -> dict[str, str]: ...


class Hosts:
    """All hosts of a run, of which the driver's own is the first.

    Owns the lines to the other hosts' agents.
    """

    def __init__(
        self,
        own: hosts.Host,
        others: Sequence[FarHost],
        ports: Mapping[str, int],
        listener: socket.socket,
        token: bytes,
        *,
        secure: bool = True,
    ) -> None:
        """``ports``: where other hosts' link processes will be met; ``listener``: the same here;
        ``secure``: whether what these say to one another is sealed."""
        self.own, self.others = own, others
        self._chance = os.urandom(CHANCE_BYTES)
        self.seed = secret(token, "keys", self._chance)
        """Of the keys of the nodes' connections."""
        address = listener.getsockname()
        self._addresses = {own.name: (str(address[0]), int(address[1]))}
        self._addresses |= {each.name: (each.address[0], ports[each.name]) for each in others}
        tunnel = secret(token, "tunnel", self._chance)
        self._meeting = Meeting(own.name, self._addresses, listener, tunnel, secure)
        self._server_host = own.name
        self.said: deque[Prepared | Forked | Reaped] = deque()
        """What their zygotes have said and nobody has taken."""
        self.bell = Bell()
        """Rings as something comes to be there."""
        self.poll = select.epoll()
        """Readable where there is anything to hear."""
        self.poll.register(self.bell, select.EPOLLIN)
        for far in others:
            self.poll.register(far.line, select.EPOLLIN)
        self.paths: list[Path] = []
        """The network of the hosts, as measured once theirs is up."""
        self.closing: Facts = {}
        """Of the driver's own part of the network, once that is down."""
        self.readings: Callable[[], dict[str, Reading]] = dict
        """Of the others' clocks, once the driver's own links are up."""
        self.links: Links | None = None
        """The driver's own, while they are up: they lose sight of hosts too."""
        self.among_clients = False
        """Clients send to one another, so that two hosts of theirs cannot do without each other."""
        self._severed: set[tuple[str, str]] = set()
        """Hosts that have lost sight of another, and which."""
        self._news: list[events.HostGone | events.HostsCut] = []
        self._nodes: tuple[Node, ...] = ()
        self.log: int | None = None
        """Where what nodes write to standard error goes."""
        self.captured: Callable[[CapturePiece], None] | None = None
        """Takes pieces of their captures."""
        self.states: States | None = None
        """Of the nodes on other hosts; None: they keep none."""
        self.heard: Callable[[FarHost, msgspec.Struct], None] | None = None
        """Takes what the hosts of another kind of run say beside."""

    def begin(self, plan: Plan) -> Meeting:
        """Have the others make their parts of the plan's network; the way to them."""
        self._server_host, self._nodes = plan.server.host, tuple(plan.nodes)
        self._give_states()
        place = hosts.written(plan)
        run = None if self.states is None else self.states.run
        for far in self.others:
            told = self._addresses, place, self._chance, far.ahead_s, run
            self.say(far, Begin(far.name, *told))
        return self._meeting

    def _give_states(self) -> None:
        """Have each node's host know what that goes on from."""
        for node in self._nodes:
            if self.states is not None and (far := self.of(node)) is not None:
                for piece in self.states.stored(node.name):
                    self.say(far, Give(node.index, piece))

    def about(self, plan: Plan) -> events.Hosts:
        """An account of who is where, and of what lies between."""
        machines = [(self.own, 0.0)]
        machines += [(far.machine, far.ahead_s) for far in self.others]
        parts = [
            events.HostPart(
                name=machine.name,
                address=self._addresses[machine.name][0],
                cores=machine.cores,
                memory_mb=round(machine.memory_bytes / 1e6),
                nodes=len(hosts.of_host(plan, machine.name)),
                ahead_s=round(ahead_s, 6),
            )
            for machine, ahead_s in machines
        ]
        ways = [msgspec.convert(each, events.Underlay, from_attributes=True) for each in self.paths]
        return events.Hosts(hosts=parts, place=hosts.written(plan), underlay=ways)

    def gone(self) -> dict[str, str]:
        """Hosts that are gone, and how that is known."""
        return {far.name: far.gone for far in self.others if far.gone is not None}

    def clocks(self) -> dict[str, HostClock]:
        """Errors of the times that the others' nodes tell, as they are known now."""
        ahead_s = {far.name: far.ahead_s for far in self.others}
        return {
            name: since_began(*reading, ahead_s[name], clock.dilation())
            for name, reading in self.readings().items()
        }

    def news(self) -> list[events.HostGone | events.HostsCut]:
        """Those of them, and cuts between others, that have not been told of yet."""
        found, self._news = self._news, []
        return found

    def left(self) -> list[events.HostLeft]:
        """How each host's links came to their end, once they have; none of who was gone."""
        told = {self.own.name: self.closing, **{far.name: far.closing for far in self.others}}
        return [
            events.HostLeft(host=name, links=plain(facts), tunnels=facts.get("tunnels", {}))
            for name, facts in told.items()
            if facts
        ]

    @property
    def there(self) -> list[FarHost]:
        """Other hosts that are not gone."""
        return [far for far in self.others if far.gone is None]

    def of(self, node: Node) -> FarHost | None:
        """The other host that has ``node``; None: the driver's own does."""
        return next((far for far in self.others if far.name == node.host), None)

    def say(self, far: FarHost, order: msgspec.Struct) -> None:
        """Give an order; a host that does not take it is gone."""
        if far.gone is None:
            try:
                far.line.send(order)
            except LineClosed as error:
                self.lose(far, str(error))

    def pump(self) -> None:
        """Take what the other hosts have said, without waiting."""
        for far in self.there:
            try:
                for message in far.line.read():
                    self._take(far, message)
            except LineClosed as error:
                self.lose(far, str(error))

    def _take(self, far: FarHost, message: msgspec.Struct) -> None:
        if isinstance(message, Said):
            self._hear_node(far, message)
        elif isinstance(message, Forked | Reaped):
            self._hear(far, message)
        elif isinstance(message, Prepared):
            far.is_ready = True
        elif isinstance(message, Up):
            far.facts = message.facts
        elif isinstance(message, Counted):
            far.counters, far.awaits_counters = message.counters, False
        elif isinstance(message, host_prober.Answer):
            far.probed = message
        elif isinstance(message, Logged):
            self.write_log(far.name, message)
        elif isinstance(message, Capturing):
            far.captures = True
        elif isinstance(message, CapturePiece):
            far.pieces += 1
            if self.captured is not None:
                self.captured(message)
        elif isinstance(message, CaptureEnded):
            far.captured = message
        elif isinstance(message, Closing):
            far.closing = message.facts
        elif isinstance(message, Severed):
            self._sever(far, message)
        elif isinstance(message, Refused):
            self.lose(far, message.reason)
        elif self.heard is not None:
            self.heard(far, message)

    def _hear_node(self, far: FarHost, said: Said) -> None:
        """Have a node be heard; a state is kept here, and told of as if the node had done so."""
        event: events.Event | StatePiece | None = said.event
        channel = far.channels.get(said.node)
        if isinstance(event, StatePiece):
            name = self._nodes[said.node].name
            event = None if self.states is None else self.states.take(name, event)
        if event is not None and channel is not None:
            channel.put(event)

    def write_log(self, host: str, logged: Logged) -> None:
        """Write lines of a host's to the nodes' log, each after whose it is."""
        if self.log is not None:
            names = [f"{node.name}: " for node in self._nodes if node.index == logged.node]
            who = "".join([f"host {host}: ", *names])
            lines = "".join(f"{who}{line}\n" for line in logged.text.splitlines())
            # A full disk takes no more, which is no reason to lose a host.
            with contextlib.suppress(OSError):
                os.write(self.log, lines.encode())

    def _hear(self, far: FarHost, message: Forked | Reaped) -> None:
        channel = far.channels.get(message.node)
        if channel is None:
            return
        if isinstance(message, Reaped):
            channel.end()
            far.running.discard(message.node)
        self.said.append(message)
        self.bell.ring()

    def _sever(self, far: FarHost, severed: Severed) -> None:
        """Act on what ``far`` has lost sight of, where one of the two is cut from the server."""
        other = next((each for each in self.others if each.name == severed.host), None)
        if other is None or severed.host == self._server_host:
            self.lose(far, f"cut from host {severed.host}")
        elif far.name == self._server_host:
            self.lose(other, f"cut from host {far.name}: {severed.reason}")
        else:
            self._cut(far, other, severed.reason)

    def _cut(self, far: FarHost, other: FarHost, reason: str) -> None:
        """Act on what ``far`` has lost sight of, once both say so: else it may be gone itself."""
        self._severed.add((far.name, other.name))
        if (other.name, far.name) not in self._severed or other.gone is not None:
            return
        # The later one of those that have as many.
        kept, less = sorted((far, other), key=lambda each: (-self._clients_of(each), each.name))
        self._news.append(events.HostsCut(hosts=sorted((kept.name, less.name)), reason=reason))
        if self.among_clients and self._clients_of(less):
            self.lose(less, f"cut from host {kept.name}: {reason}")
        self.bell.ring()

    def _clients_of(self, far: FarHost) -> int:
        return sum(node.host == far.name for node in self._nodes)

    def hear_links(self) -> None:
        """Take for gone whom the driver's own links have lost."""
        for name, reason in ({} if self.links is None else self.links.hosts_gone()).items():
            for far in self.others:
                if far.name == name:
                    self.lose(far, reason)

    def lose(self, far: FarHost, reason: str) -> None:
        """Take a host for gone, and its nodes for ended."""
        if far.gone is not None or far.closing is not None:
            return
        far.gone = reason
        self._news.append(events.HostGone(host=far.name, reason=reason))
        self.poll.unregister(far.line)
        far.line.close()
        self._end_nodes(far)

    def _end_nodes(self, far: FarHost) -> None:
        """Take the nodes of a host that is gone for ended."""
        for node in sorted(far.running):
            far.channels[node].end()
            self.said.append(Reaped(node, 0, f"host {far.name} is gone"))
        far.running.clear()
        self.bell.ring()

    def spawn(self, far: FarHost, node: int, channel: FarChannel) -> None:
        """Have a host start a node, which has ended where the host is gone."""
        far.channels[node] = channel
        far.running.add(node)
        self.say(far, Spawn(node))
        if far.gone is not None:
            self._end_nodes(far)

    def failure(self) -> str | None:
        """Why no run can go on without a host that is gone, where that is so."""
        if (reason := self.gone().get(self._server_host)) is not None:
            return f"host {self._server_host} is gone, which has the server: {reason}"
        return None

    def missing(self, run: RunConfig) -> str | None:
        """Why a run that is to keep all its hosts cannot go on, once one is gone."""
        asked = "--strict: " if run.strict else ""
        if not asked and run.on_lost_host != "stop":
            return None
        gone = self.gone().items()
        return next((f"{asked}host {name} is gone: {why}" for name, why in gone), None)

    def refuse_gone(self) -> None:
        """Raise LinkError where a host is."""
        for name, reason in self.gone().items():
            raise LinkError(f"host {name}: {reason}")

    def close(self) -> None:
        """End the lines, and with them what the agents still have of the run. Idempotent."""
        for far in self.others:
            far.close()
        self._meeting.listener.close()
        self.poll.close()
        self.bell.close()


def plain(facts: Facts) -> Facts:
    """Facts that are no tables, which belong to one host's record."""
    return {name: value for name, value in facts.items() if not isinstance(value, list | dict)}
