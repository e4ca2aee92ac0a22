"""A host's part of a run of several, as its agent carries it out: nodes, links, and their words."""

import contextlib
import selectors
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from testbed import clock
from testbed.config_error import ConfigError, in_words
from testbed.links.interface import LinkError
from testbed.links.tunnel.meeting import listen
from testbed.links.userspace import backend as userspace
from testbed.network.topology import Plan
from testbed.processes.channel import Channel, ChannelClosed, Garbled
from testbed.processes.worker import Refusal
from testbed.record.events import Known, Stopped
from testbed.run.config import RunConfig, pace
from testbed.run.hosts import line as lines
from testbed.run.hosts import links_part
from testbed.run.hosts.line import Line, LineClosed, Refused
from testbed.run.hosts.links_part import LinksPart, Source
from testbed.run.hosts.log import NodesLog
from testbed.run.hosts.messages import (
    Ask,
    Begin,
    Check,
    Checked,
    Closing,
    Give,
    Load,
    Logged,
    Said,
    Say,
    Spawn,
    Tell,
    Trained,
    Trains,
)
from testbed.run.states import StatePiece
from testbed.run.stops import Stops
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
Others = Mapping[type[msgspec.Struct], Callable[[Line, bytes, Any], None]]
"""By the question with which another kind of run begins in place of Check, who carries out a part
of it from there; raises what ``carry_out`` makes a refusal of."""


def carry_out(line: Line, token: bytes, prepare: Prepare, load: Import, others: Others) -> None:
    """Do what the driver at the other end says, from its questions to the run's end."""
    with contextlib.suppress(LineClosed):
        try:
            _carry_out(line, token, prepare, load, others)
        except (ConfigError, LinkError, NodeFailed, Garbled, OSError) as error:
            line.send(Refused(in_words(error)))


def _carry_out(line: Line, token: bytes, prepare: Prepare, load: Import, others: Others) -> None:
    asked: tuple[RunConfig, Prepared, socket.socket] | None = None
    given: list[Give] = []
    while not isinstance(order := line.receive(msgspec.Struct, PATIENCE_S), Begin):
        if isinstance(order, Ask):
            heard = time.monotonic()
            line.send(Tell(order.asked, heard, time.monotonic()))
        elif isinstance(order, Load):
            load()
        elif isinstance(order, Check):
            prepared, listener = prepare(order.config), listen(line.address)
            asked = order.config, prepared, listener
            line.send(Checked(prepared.digests, listener.getsockname()[1]))
        elif isinstance(order, Give):
            given.append(order)
        elif (begins := others.get(type(order))) is not None:
            return begins(line, token, order)
    if asked is None:
        raise LineClosed("it began before it asked")
    config, prepared, listener = asked
    plan = links_part.placed(prepared.plan, order.addresses, order.place)
    if config.checkpoints and prepared.post is not None:
        prepared.post(order.run, _whole(given, plan))
    del given
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
        network = links_part.up(line, token, order, plan, listener, secure=secure)
        owned.callback(network.down)
        part = _Part(line, plan, order.host, zygote, network, log)
        part.serve()
        facts = part.down()
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


class _Part(LinksPart):
    """The part while it goes on: its nodes are forked from a zygote."""

    def __init__(
        self,
        line: Line,
        plan: Plan,
        host: str,
        zygote: Zygote,
        network: userspace.UserspaceNetwork,
        log: NodesLog,
    ) -> None:
        super().__init__(line, plan, host, network)
        self._zygote, self._log = zygote, log
        self._channels: dict[int, Channel] = {}
        self._stops = Stops(self._tell_stopped)

    def _sources(self) -> list[Source]:
        return [self._zygote.channel, self._log]

    def _hear(self, ready: Sequence[selectors.SelectorKey]) -> None:
        for key in ready:
            if isinstance(key.data, int):
                self._relay(key.data)
        self._hear_zygote()
        # By who has been forked, as is known by now.
        if any(key.fileobj is self._log for key in ready):
            _send_log(self._line, self._log.take())
            if self._log.ended:
                self._selector.unregister(self._log)

    def _obey(self, order: msgspec.Struct) -> None:
        if isinstance(order, Spawn):
            node = self._nodes[order.node]
            channel = self._zygote.spawn(node, self._network.endpoint(node))
            self._owned.callback(channel.close)
            self._channels[node.index] = channel
            self._selector.register(channel, selectors.EVENT_READ, node.index)
        elif isinstance(order, Say):
            with contextlib.suppress(ChannelClosed):
                self._channels[order.node].send(order.told)
        else:
            super()._obey(order)
            if isinstance(order, Trains):
                self._stops.begin()
            elif isinstance(order, Trained):
                self._stops.end()

    @property
    def _looks_s(self) -> float:
        return self._stops.wait_s

    def _tell_stopped(self, by: str, event: Stopped) -> None:
        """Have the node say it, and any that is there of all of them, which are the host."""
        there = [node for node, channel in self._channels.items() if not channel.closed]
        named = [node for node in there if self._nodes[node].name == event.peer]
        if event.peer == by:
            event = msgspec.structs.replace(event, peer=f"host {self._host}")
            named = there[:1]
        for node in named:
            self._line.send(Said(node, event))

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
                self._stops.watch(self._nodes[said.node].name, said.pid)
            if isinstance(said, Reaped):
                # Its last words came before its end.
                self._relay(said.node)
                self._stops.forget(self._nodes[said.node].name)
            self._line.send(said)

    def _check(self) -> None:
        super()._check()
        self._stops.look()
        if reason := self._zygote.failure():
            raise NodeFailed(reason)
