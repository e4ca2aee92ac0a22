"""A host's links in a run of several, as its agent has them: made, probed, changed and counted.

Whatever its nodes' programs are; who starts those says what else is heard and obeyed.
"""

import contextlib
import math
import selectors
import socket
import time
from collections.abc import Collection, Sequence
from typing import Protocol

import msgspec

from testbed import clock
from testbed.fidelity import host_prober
from testbed.fidelity.host_prober import HostProber
from testbed.links import dilation
from testbed.links.interface import LinkError
from testbed.links.process import Facts, Shape
from testbed.links.tunnel.meeting import Meeting
from testbed.links.userspace import backend as userspace
from testbed.metering import meter
from testbed.network import hosts
from testbed.network.topology import Plan
from testbed.processes.worker import Stop
from testbed.record.events import Shaped
from testbed.run.dynamics import Dynamics
from testbed.run.hosts import line as lines
from testbed.run.hosts import timing
from testbed.run.hosts.captures import PartCapture
from testbed.run.hosts.line import Line
from testbed.run.hosts.messages import (
    Begin,
    Capturing,
    Count,
    Counted,
    EndCapture,
    Said,
    Severed,
    StartCapture,
    Trained,
    Trains,
    Up,
)


class Source(Protocol):
    """Something that can be waited for."""

    def fileno(self) -> int: ...


def placed(plan: Plan, addresses: Collection[str], place: str | None) -> Plan:
    """The plan with all its nodes on the hosts of those names."""
    return hosts.placed(plan, [hosts.Host(name, 1, 0) for name in addresses], place=place)


def up(
    line: Line,
    token: bytes,
    begin: Begin,
    plan: Plan,
    listener: socket.socket,
    *,
    secure: bool,
) -> userspace.UserspaceNetwork:
    """This host's part of the plan's network, of which the driver is told.

    ``secure``: what goes between hosts is sealed.

    Raises:
        LinkError: naming the step that failed.
    """
    key = lines.secret(token, "tunnel", begin.chance)
    meeting = Meeting(begin.host, begin.addresses, listener, key, secure)
    network = userspace.up(dilation.plan(plan, clock.dilation()), meeting)
    listener.close()
    line.send(Up(network.facts))
    return network


class LinksPart:
    """The part while it goes on. A subclass has the nodes: it says what else is read, what comes of
    that, and what the driver's other orders are."""

    def __init__(
        self, line: Line, plan: Plan, host: str, network: userspace.UserspaceNetwork
    ) -> None:
        self._line, self._network = line, network
        self._plan, self._host = plan, host
        self._nodes = {node.index: node for node in hosts.of_host(plan, host)}
        self._capture: PartCapture | None = None
        self._severed: set[str] = set()
        self._slower = timing.Slower(network)
        self._dynamics: Dynamics | None = None
        """While training goes on."""
        self._prober: HostProber | None = None
        """Once links are probed."""
        self._busy_s, self._since_s = -meter.busy_cores_s(), time.monotonic()

    def _sources(self) -> list[Source]:
        """Channels that are read beside, from the beginning on."""
        return []

    @property
    def _looks_s(self) -> float:
        """Seconds of this machine after which ``_check`` is to be called again."""
        return math.inf

    def _hear(self, ready: Sequence[selectors.SelectorKey]) -> None:
        """Take what has come of that."""

    def serve(self) -> None:
        """Do what the driver says until that is stop."""
        with (
            selectors.DefaultSelector() as self._selector,
            contextlib.ExitStack() as self._owned,
        ):
            sources: list[Source] = [self._line, self._network, *self._sources()]
            for each in sources:
                self._selector.register(each, selectors.EVENT_READ)
            while True:
                due_s = math.inf if self._dynamics is None else self._dynamics.wait_s
                due_s = min(clock.host_s(due_s), self._looks_s)
                ready = [key for key, _ in self._selector.select(due_s)]
                for key in ready:
                    if isinstance(key.data, HostProber):
                        for answer in key.data.drain():
                            self._line.send(answer)
                self._hear(ready)
                self._check()
                if any(key.fileobj is self._line for key in ready):
                    for order in self._line.read():
                        if isinstance(order, Stop):
                            return
                        self._obey(order)
                self._change_links()

    def _obey(self, order: msgspec.Struct) -> None:
        if isinstance(order, Shape):
            self._network.shape(self._nodes[order.node], order.up, order.down)
        elif isinstance(order, Trains):
            self._dynamics = timing.of_part(list(self._nodes.values()), order)
        elif isinstance(order, Trained):
            self._dynamics = None
        elif isinstance(order, Count):
            self._line.send(Counted(self._network.counters()))
        elif isinstance(order, StartCapture):
            told = self._plan, self._host, self._network
            self._capture = PartCapture(*told, order.wall_s, server=order.server)
            self._owned.callback(self._capture.close)
            self._line.send(Capturing())
        elif isinstance(order, EndCapture):
            for word in () if self._capture is None else self._capture.stop():
                self._line.send(word)
        elif isinstance(order, host_prober.Order):
            if self._prober is None:
                self._prober = HostProber(self._plan, self._network, self._host, clock.dilation())
                self._owned.callback(self._prober.close)
                self._selector.register(self._prober, selectors.EVENT_READ, self._prober)
            self._prober.tell(order)

    def down(self) -> Facts:
        """Take the links down; how they ended, and cores that worked in the mean since they began,
        for whatever program."""
        took_s = time.monotonic() - self._since_s
        busy_cores = (self._busy_s + meter.busy_cores_s()) / took_s if took_s > 0 else 0.0
        return {**self._network.down(), "busy_cores": round(busy_cores, 2)}

    def _change_links(self) -> None:
        if self._dynamics is not None:
            for name, event in self._dynamics.apply(self._slower):
                (node,) = (node for node in self._nodes.values() if node.name == name)
                assert isinstance(event, Shaped)
                self._line.send(Said(node.index, event))

    def _check(self) -> None:
        """Raise where this part cannot go on; tell of hosts that it has lost."""
        if reason := self._network.failure():
            raise LinkError(reason)
        for host, reason in self._network.hosts_gone().items():
            if host not in self._severed:
                self._severed.add(host)
                self._line.send(Severed(host, reason))
