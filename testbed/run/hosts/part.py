"""A host's part of a run of several, as its agent carries it out: nodes, links, and their words."""

import contextlib
import math
import selectors
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from testbed import clock
from testbed.config_error import ConfigError
from testbed.fidelity import host_prober
from testbed.fidelity.host_prober import HostProber
from testbed.links import dilation
from testbed.links.interface import LinkError
from testbed.links.process import Shape
from testbed.links.tunnel.meeting import Meeting, listen
from testbed.links.userspace import backend as userspace
from testbed.metering import meter
from testbed.network import hosts
from testbed.network.topology import Plan
from testbed.processes.channel import Channel, ChannelClosed, Garbled
from testbed.processes.worker import Refusal, Stop
from testbed.record.events import Known, Shaped
from testbed.run.config import RunConfig, pace
from testbed.run.dynamics import Dynamics
from testbed.run.hosts import line as lines
from testbed.run.hosts import timing
from testbed.run.hosts.captures import PartCapture
from testbed.run.hosts.line import Line, LineClosed
from testbed.run.hosts.log import NodesLog
from testbed.run.hosts.messages import (
    Ask,
    Begin,
    Capturing,
    Check,
    Checked,
    Closing,
    Count,
    Counted,
    EndCapture,
    Give,
    Load,
    Logged,
    Refused,
    Said,
    Say,
    Severed,
    Spawn,
    StartCapture,
    Tell,
    Trained,
    Trains,
    Up,
)
from testbed.run.states import StatePiece
from testbed.run.zygote import Forked, NodeFailed, Program, Reaped, Zygote

PATIENCE_S = 1e6
"""A driver that is gone is noticed by the agent itself."""


class Prepared(NamedTuple):
    """A run as its configuration makes it on this host."""

    program: Program
    plan: Plan
    """Nobody is placed in it yet."""
    digests: dict[str, str | None]
    """Of what must be the same on all hosts."""
    post: Callable[[str | None, Mapping[str, bytes]], None] | None = None
    """Has its nodes send their states as those of the run of that identity, and go on from those
    that it is given, by node."""


Prepare = Callable[[RunConfig], Prepared]
"""Raises ConfigError where this host cannot have its part."""
Import = Callable[[], None]
"""Imports what Prepare takes, which is to be held by the process of a part alone."""


def carry_out(line: Line, token: bytes, prepare: Prepare, load: Import) -> None:
    """Do what the driver at the other end says, from its questions to the run's end."""
    with contextlib.suppress(LineClosed):
        try:
            _carry_out(line, token, prepare, load)
        except (ConfigError, LinkError, NodeFailed, Garbled, OSError) as error:
            line.send(Refused(str(error)))


def _carry_out(line: Line, token: bytes, prepare: Prepare, load: Import) -> None:
    prepared = listener = config = None
    given: list[Give] = []
    while not isinstance(order := line.receive(msgspec.Struct, PATIENCE_S), Begin):
        if isinstance(order, Ask):
            heard = time.monotonic()
            line.send(Tell(order.asked, heard, time.monotonic()))
        elif isinstance(order, Load):
            load()
        elif isinstance(order, Check):
            config = order.config
            prepared = prepare(config)
            listener = listen(line.address)
            line.send(Checked(prepared.digests, listener.getsockname()[1]))
        elif isinstance(order, Give):
            given.append(order)
    if prepared is None or listener is None or config is None:
        raise LineClosed("it began before it asked")
    machines = [hosts.Host(name, 1, 0) for name in order.addresses]
    plan = hosts.placed(prepared.plan, machines, place=order.place)
    if config.checkpoints and prepared.post is not None:
        prepared.post(order.run, _whole(given, plan))
    del given
    key = lines.secret(token, "tunnel", order.chance)
    with (
        clock.ahead(order.ahead_s),
        clock.dilated(pace(config)),
        contextlib.ExitStack() as owned,
    ):
        seed = lines.secret(token, "keys", order.chance)
        log = NodesLog()
        owned.callback(log.close)
        # Once the zygote is down, and with it who writes.
        owned.callback(lambda: _send_log(line, log.rest()))
        secure = config.secure is not False
        says = Known | StatePiece
        zygote = Zygote(plan, prepared.program, log.into, secure, seed, says)
        owned.callback(zygote.down)
        log.release()
        meeting = Meeting(order.host, order.addresses, listener, key, secure)
        network = userspace.up(dilation.plan(plan, clock.dilation()), meeting)
        owned.callback(network.down)
        listener.close()
        line.send(Up(network.facts))
        part = _Part(line, plan, order.host, zygote, network, log)
        part.serve()
        facts = {**network.down(), "busy_cores": part.busy_cores()}
    line.send(Closing(facts))


def _whole(given: list[Give], plan: Plan) -> dict[str, bytes]:
    """States by their nodes' names, out of their pieces."""
    found: defaultdict[str, bytearray] = defaultdict(bytearray)
    for piece in given:
        found[plan.nodes[piece.node].name] += piece.data
    return {name: bytes(state) for name, state in found.items()}


def _send_log(line: Line, words: list[Logged]) -> None:
    for each in words:
        line.send(each)


class _Part:
    """The part while it goes on."""

    def __init__(
        self,
        line: Line,
        plan: Plan,
        host: str,
        zygote: Zygote,
        network: userspace.UserspaceNetwork,
        log: NodesLog,
    ) -> None:
        self._line, self._zygote, self._network, self._log = line, zygote, network, log
        self._capture: PartCapture | None = None
        self._plan, self._host = plan, host
        self._nodes = {node.index: node for node in hosts.of_host(plan, host)}
        self._channels: dict[int, Channel] = {}
        self._severed: set[str] = set()
        self._slower = timing.Slower(network)
        self._dynamics: Dynamics | None = None
        """While training goes on."""
        self._prober: HostProber | None = None
        """Once links are probed."""
        self._busy_s, self._since_s = -meter.busy_cores_s(), time.monotonic()

    def serve(self) -> None:
        """Relay between the driver and the nodes until it says stop."""
        with selectors.DefaultSelector() as self._selector, contextlib.ExitStack() as owned:
            for each in (self._line, self._zygote.channel, self._network, self._log):
                self._selector.register(each, selectors.EVENT_READ)
            while True:
                due_s = math.inf if self._dynamics is None else self._dynamics.wait_s
                ready = self._selector.select(clock.host_s(due_s))
                for key, _ in ready:
                    if isinstance(key.data, int):
                        self._relay(key.data)
                    elif isinstance(key.data, HostProber):
                        for answer in key.data.drain():
                            self._line.send(answer)
                self._hear_zygote()
                # By who has been forked, as is known by now.
                if any(key.fileobj is self._log for key, _ in ready):
                    _send_log(self._line, self._log.take())
                    if self._log.ended:
                        self._selector.unregister(self._log)
                self._check()
                if any(key.fileobj is self._line for key, _ in ready):
                    for order in self._line.read():
                        if isinstance(order, Stop):
                            return
                        self._obey(order, owned)
                self._change_links()

    def _obey(self, order: msgspec.Struct, owned: contextlib.ExitStack) -> None:
        if isinstance(order, Spawn):
            node = self._nodes[order.node]
            channel = self._zygote.spawn(node, self._network.endpoint(node))
            owned.callback(channel.close)
            self._channels[node.index] = channel
            self._selector.register(channel, selectors.EVENT_READ, node.index)
        elif isinstance(order, Say):
            with contextlib.suppress(ChannelClosed):
                self._channels[order.node].send(order.told)
        elif isinstance(order, Shape):
            self._network.shape(self._nodes[order.node], order.up, order.down)
        elif isinstance(order, Trains):
            self._dynamics = timing.of_part(list(self._nodes.values()), order)
        elif isinstance(order, Trained):
            self._dynamics = None
        elif isinstance(order, Count):
            self._line.send(Counted(self._network.counters()))
        elif isinstance(order, StartCapture):
            self._capture = PartCapture(self._plan, self._host, self._network, order.wall_s)
            owned.callback(self._capture.close)
            self._line.send(Capturing())
        elif isinstance(order, EndCapture):
            for word in () if self._capture is None else self._capture.stop():
                self._line.send(word)
        elif isinstance(order, host_prober.Order):
            if self._prober is None:
                self._prober = HostProber(self._plan, self._network, self._host, clock.dilation())
                owned.callback(self._prober.close)
                self._selector.register(self._prober, selectors.EVENT_READ, self._prober)
            self._prober.tell(order)

    def busy_cores(self) -> float:
        """Cores that worked in the mean since it began, for whatever program."""
        took_s = time.monotonic() - self._since_s
        return round((self._busy_s + meter.busy_cores_s()) / took_s, 2) if took_s > 0 else 0.0

    def _change_links(self) -> None:
        if self._dynamics is not None:
            for name, event in self._dynamics.apply(self._slower):
                (node,) = (node for node in self._nodes.values() if node.name == name)
                assert isinstance(event, Shaped)
                self._line.send(Said(node.index, event))

    def _relay(self, node: int) -> None:
        channel = self._channels[node]
        if channel.closed:
            return
        for event in channel.drain():
            self._line.send(Said(node, event))
        if channel.closed:
            self._selector.unregister(channel)

    def _hear_zygote(self) -> None:
        for said in self._zygote.channel.drain():
            if isinstance(said, Refusal):
                raise NodeFailed(said.reason)
            if isinstance(said, Forked):
                self._log.nodes[said.pid] = said.node
            if isinstance(said, Reaped):
                # Its last words came before its end.
                self._relay(said.node)
            self._line.send(said)

    def _check(self) -> None:
        """Raise where this part cannot go on; tell of hosts that it has lost."""
        if reason := self._network.failure():
            raise LinkError(reason)
        if reason := self._zygote.failure():
            raise NodeFailed(reason)
        for host, reason in self._network.hosts_gone().items():
            if host not in self._severed:
                self._severed.add(host)
                self._line.send(Severed(host, reason))
