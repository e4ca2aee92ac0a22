"""A host's part of a run of programs, as its agent carries it out: nodes, links and output."""

import contextlib
import selectors
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from testbed import clock
from testbed.exec.hosts.messages import CheckPrograms, Left, Tell, Told
from testbed.exec.hosts.streams import Streams
from testbed.exec.isolation import View
from testbed.exec.jobs import Job
from testbed.exec.lines import Over
from testbed.exec.nodes import surroundings
from testbed.exec.spawner import Reaped, Spawner
from testbed.links.interface import LinkError
from testbed.links.tunnel.meeting import listen
from testbed.links.userspace import backend as userspace
from testbed.network.topology import Plan
from testbed.processes.channel import Channel, ChannelClosed
from testbed.processes.worker import Refusal
from testbed.run.hosts import links_part
from testbed.run.hosts.line import Line, LineClosed
from testbed.run.hosts.links_part import LinksPart, Source
from testbed.run.hosts.messages import Begin, Checked, Closing, Spawn
from testbed.run.hosts.part import PATIENCE_S


class Prepared(NamedTuple):
    """A run of programs as its configuration makes it on this host."""

    plan: Plan
    jobs: list[Job]
    """Of all nodes; those that are placed here are begun."""
    digests: dict[str, str | None]
    """Of what must be the same on all hosts."""
    open_files: int
    """Most that a program may open."""


Prepare = Callable[[CheckPrograms], Prepared]
"""Raises ConfigError where this host cannot have its part."""


def carry_out(line: Line, token: bytes, asked: CheckPrograms, prepare: Prepare) -> None:
    """Do what the driver says, from its question to the run's end; it may ask about others first.

    Raises:
        ConfigError: this host cannot have its part.
        LinkError: its links or its nodes have failed.
    """
    begin: msgspec.Struct = asked
    with contextlib.ExitStack() as owned:
        listener = owned.enter_context(listen(line.address))
        while not isinstance(begin, Begin):
            if not isinstance(begin, CheckPrograms):
                raise LineClosed(f"it said {type(begin).__name__} before it began")
            asked, prepared = begin, prepare(begin)
            line.send(Checked(prepared.digests, listener.getsockname()[1]))
            begin = line.receive(msgspec.Struct, PATIENCE_S)
        plan = links_part.placed(prepared.plan, begin.addresses, begin.place)
        owned.enter_context(clock.ahead(begin.ahead_s))
        seen = _views(plan, prepared.jobs)
        spawner = Spawner(prepared.jobs, seen, prepared.open_files)
        owned.callback(spawner.down)
        secure = asked.links.secure is not False
        network = links_part.up(line, token, begin, plan, listener, secure=secure)
        owned.callback(network.down)
        part = _Part(line, plan, begin.host, spawner, network)
        part.serve()
        # Programs end before their links do.
        spawner.down()
        facts = part.down()
    line.send(Closing(facts))


def _views(plan: Plan, jobs: Sequence[Job]) -> list[View]:
    """Nodes' own views, of which nothing is in a file of this host's."""
    seen = tuple((text, f"/etc/{name}") for name, text in surroundings(plan).items())
    return [View(job.node.name, (), job.kept_paths(), seen) for job in jobs]


class _Node(NamedTuple):
    channel: Channel
    streams: Streams


class _Output(NamedTuple):
    """One of a node's streams, to be read."""

    node: int
    stream: int


class _Part(LinksPart):
    """The part while it goes on: its nodes' inits are forked from a spawner."""

    def __init__(
        self,
        line: Line,
        plan: Plan,
        host: str,
        spawner: Spawner,
        network: userspace.UserspaceNetwork,
    ) -> None:
        super().__init__(line, plan, host, network)
        self._spawner = spawner
        self._begun: dict[int, _Node] = {}

    def _sources(self) -> list[Source]:
        return [self._spawner.channel]

    def _hear(self, ready: Sequence[selectors.SelectorKey]) -> None:
        for key in ready:
            if isinstance(key.data, _Output):
                for written in self._begun[key.data.node].streams.take(key.data.stream):
                    self._line.send(written)
            elif isinstance(key.data, int):
                self._relay(key.data)
        for said in self._spawner.channel.drain():
            if isinstance(said, Refusal):
                raise LinkError(said.reason)
            if isinstance(said, Reaped):
                self._relay(said.node)

    def _obey(self, order: msgspec.Struct) -> None:
        if isinstance(order, Spawn):
            self._spawn(order.node)
        elif isinstance(order, Tell):
            with contextlib.suppress(ChannelClosed):
                self._begun[order.node].channel.send(order.line)
        else:
            super()._obey(order)

    def _spawn(self, index: int) -> None:
        node = self._nodes[index]
        streams = Streams(index)
        self._owned.callback(streams.close)
        place = self._network.endpoint(node).namespaces
        channel = self._spawner.spawn(node, place, streams.into)
        self._owned.callback(channel.close)
        streams.release()
        self._begun[index] = _Node(channel, streams)
        self._selector.register(channel, selectors.EVENT_READ, index)
        for stream, descriptor in enumerate(streams.descriptors):
            self._selector.register(descriptor, selectors.EVENT_READ, _Output(index, stream))

    def _relay(self, index: int) -> None:
        """Pass on what an init has said, after all that its program had written before."""
        channel, streams = self._begun[index]
        if channel.closed:
            return
        for line in channel.drain():
            if isinstance(line, Over):
                self._send_rest(streams)
            self._line.send(Told(index, line))
        if channel.closed:
            self._send_rest(streams)
            for source in (channel, *streams.descriptors):
                self._selector.unregister(source)
            self._line.send(Left(index))

    def _send_rest(self, streams: Streams) -> None:
        for written in streams.rest():
            self._line.send(written)

    def _check(self) -> None:
        super()._check()
        if reason := self._spawner.failure():
            raise LinkError(reason)
