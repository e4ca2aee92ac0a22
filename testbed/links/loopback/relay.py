"""The loopback backend's process: passes each connection's stream on, shaped chunk by chunk."""

import gc
import math
import select
import selectors
import sys
from collections.abc import Sequence
from selectors import EVENT_READ

from testbed.links import timekeeper
from testbed.links.interface import LinkError
from testbed.links.loopback.connection import End, Flow
from testbed.links.loopback.hop import Lines
from testbed.links.loopback.listeners import HOST, Listeners
from testbed.links.loopback.stream import Streams
from testbed.links.process import CounterTable, Facts, Shape, say_up
from testbed.network.profiles import LinkProfile
from testbed.network.tcp_cap import caps_kbit
from testbed.network.topology import Plan
from testbed.processes.channel import Channel
from testbed.processes.worker import Stop

SELECT_LIMIT = 1024
"""Select takes descriptors below this (FD_SETSIZE)."""


def relay(plan: Plan, channel: Channel, counters: CounterTable, server: tuple[str, int]) -> Facts:
    """Carry the plan's streams to where the server listens until ``channel`` says stop or closes.

    Raises:
        LinkError: naming the step that failed.
    """
    try:
        relay = _Relay(plan, counters, server)
    except OSError as error:
        raise LinkError(f"open {len(plan.nodes)} ports on {HOST}: {error.strerror}") from error
    gc.freeze()
    return relay.run(channel)


class _Relay:
    """One loop over the sockets and the lines' next releases."""

    def __init__(self, plan: Plan, counters: CounterTable, server: tuple[str, int]) -> None:
        self._profiles = [node.profile or LinkProfile(name="") for node in plan.nodes]
        self._time = timekeeper.of_run()
        self._lines: Lines[Flow] = Lines(len(plan.nodes), counters)
        for node in range(len(plan.nodes)):
            self._shape(node)
        self._selector = selectors.DefaultSelector()
        self._streams = Streams(self._selector, self._lines, self._time.now)
        self._listeners = Listeners(self._selector, self._streams, self._lines.hops, server)
        self._precise: list[int] = []
        # epoll counts in milliseconds; select on its descriptor, where it can, in microseconds.
        if sys.platform == "linux" and self._selector.fileno() < SELECT_LIMIT:
            self._precise.append(self._selector.fileno())

    def run(self, channel: Channel) -> Facts:
        self._selector.register(channel, EVENT_READ, channel)
        say_up(channel, {"ports": self._listeners.ports})
        while True:
            for key, mask in self._ready():
                if isinstance(key.data, End):
                    self._streams.serve(key.data, mask)
                elif isinstance(key.data, int):
                    self._listeners.accept(key.data)
                elif self._handle(channel):
                    return {**self._listeners.facts(), **self._time.facts()}
            now = self._time.now()
            for release, chunk in self._lines.release(now):
                self._time.lateness.add(now - release)
                self._streams.deliver(chunk)
            self._streams.flush()
            self._listeners.look()
            self._time.look(self._lines.due < math.inf)

    def _ready(self) -> list[tuple[selectors.SelectorKey, int]]:
        left_s = min(self._time.wait_s(self._lines.due), self._listeners.wait_s())
        wait_s = None if left_s == math.inf else max(0.0, left_s)
        if self._precise and wait_s:
            select.select(self._precise, [], [], wait_s)
            wait_s = 0
        return self._selector.select(wait_s)

    def _handle(self, channel: Channel) -> bool:
        """Do what the supervisor says; True where it says stop or is gone."""
        for order in channel.drain():
            if isinstance(order, Stop):
                return True
            if isinstance(order, Shape):
                self._profiles[order.node] = LinkProfile(name="", up=order.up, down=order.down)
                self._shape(order.node)
                for client in self._clients_behind(order.node):
                    self._listeners.listen(client)
        return channel.closed

    def _shape(self, node: int) -> None:
        """Give a node's hops their parameters, and whoever's connections cross them their caps."""
        now = self._time.now()
        for client in self._clients_behind(node):
            caps = caps_kbit(self._profiles[0], self._profiles[client])
            for hop, cap_kbit in zip(self._lines.hops[client], caps, strict=True):
                self._lines.cap(hop, cap_kbit)
        profile = self._profiles[node]
        for hop, asked in zip(self._lines.hops[node], (profile.up, profile.down), strict=True):
            self._lines.shape(now, hop, asked)

    def _clients_behind(self, node: int) -> Sequence[int]:
        """Clients whose connections cross a node's link; all cross the server's."""
        return [node] if node else range(1, len(self._profiles))
