"""Hosts of a run on this machine: nodes of a network of ours, each in a network namespace and,
where asked, with a clock of its own, whose link processes speak over that network."""

import ctypes
import select
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stations import LIMIT_S, READY, Station

from testbed.links.interface import LinkCounters, Network
from testbed.links.tunnel.meeting import Meeting, listen
from testbed.links.userspace import backend as userspace
from testbed.links.userspace.backend import UserspaceNetwork
from testbed.network.direction import Direction
from testbed.network.hosts import Host, of_host, placed
from testbed.network.profiles import LinkProfile
from testbed.network.topology import Plan, plan
from testbed.processes.channel import Channel
from testbed.processes.worker import Go, Ready, Result, Stop

TUNNEL_PORT, MIDDLE_PORT = 4000, 4001
SETTLED_S = 0.5
_CLONE_NEWTIME = 0x80
_libc = ctypes.CDLL(None, use_errno=True)

Body = Callable[[Channel], Any]
Names = str
"""Hosts by their letters: "abc"."""


def underlay(delay_ms: float, jitter_ms: float = 0.0) -> LinkProfile:
    """The way to and from a host, half of what lies between two of them."""
    way = Direction(delay_ms=delay_ms / 2, jitter_ms=jitter_ms / 2) if delay_ms else Direction()
    return LinkProfile(name="underlay", up=way, down=way)


def layout(names: Names, links: list[LinkProfile], place: str) -> Plan:
    return placed(plan(links), [Host(name, 1, 0) for name in names], place=place)


def may_set_clocks() -> bool:
    """Whether processes can be given a clock of their own."""
    return Path("/proc/self/timens_offsets").exists()


def set_clock(ahead_s: int) -> None:
    """Have what this process forks be that far ahead."""
    if _libc.unshare(_CLONE_NEWTIME):
        raise OSError(ctypes.get_errno(), "unshare a time namespace")
    Path("/proc/self/timens_offsets").write_text(f"monotonic {ahead_s} 0\n")


def host(
    name: str,
    addresses: Mapping[str, tuple[str, int]],
    token: bytes,
    layout: Plan,
    serving: Mapping[str, Body],
    asking: Mapping[str, Body],
    ahead_s: int = 0,
    watch: Callable[[UserspaceNetwork], Any] | None = None,
) -> Body:
    """A host's own process: its nodes' stations, by their names, on its part of the network.

    READY once its nodes serve; at Go those that ask do, and then READY again. Until Stop those that
    serve go on. Returns {"results", "counters", "facts", "closing", "watched"}.
    """

    def body(channel: Channel) -> Any:
        if ahead_s:
            set_clock(ahead_s)
        with listen(*addresses[name]) as listener:
            network = userspace.up(layout, Meeting(name, addresses, listener, token))
        stations: dict[str, Station] = {}
        try:
            mine = {node.name: node for node in of_host(layout, name)}
            for node in mine.keys() & serving.keys():
                stations[node] = Station(network, mine[node], serving[node]).ready()
            channel.send(READY)
            assert isinstance(channel.receive(LIMIT_S), Go)
            asked = {
                node: Station(network, mine[node], asking[node])
                for node in mine.keys() & asking.keys()
            }
            stations |= {f"{node} asks": station for node, station in asked.items()}
            results = {node: station.result() for node, station in asked.items()}
            watched = watch(network) if watch else None
            channel.send(READY)
            assert isinstance(channel.receive(LIMIT_S), Stop)
            for node in mine.keys() & serving.keys():
                stations[node].stop()
                results[node] = stations[node].result()
            counters, facts = _settled(network), network.facts
        finally:
            for station in stations.values():
                station.close()
            closing = network.down()
        return {
            "results": results,
            "counters": counters,
            "facts": facts,
            "closing": closing,
            "watched": watched,
        }

    return body


def middle(address: str) -> Body:
    """A process between a host at that address and whoever calls MIDDLE_PORT there.

    It passes all on, but from Go on changes a bit of what the caller says at a time.
    """

    def body(channel: Channel) -> Any:
        with socket.create_server((address, MIDDLE_PORT)) as listener:
            channel.send(READY)
            listener.settimeout(LIMIT_S)
            caller, _ = listener.accept()
        changes = 0
        with caller, socket.create_connection((address, TUNNEL_PORT), LIMIT_S) as called:
            ends = {caller: called, called: caller}
            while ends:
                ready, _, _ = select.select([*ends, channel], [], [], LIMIT_S)
                if channel in ready:
                    assert isinstance(channel.receive(LIMIT_S), Go)
                    changes = 1
                    channel.send(READY)
                for end in [each for each in ready if each is not channel]:
                    data = bytearray(end.recv(1 << 16))
                    if not data:
                        ends.clear()
                        break
                    data[-1] ^= changes if end is caller else 0
                    ends[end].sendall(data)
        channel.receive(LIMIT_S)

    return body


def _settled(network: Network) -> list[LinkCounters]:
    """Its counters once nothing has moved for longer than a packet is under way."""
    before = None
    while (counters := network.counters()) != before:
        before = counters
        time.sleep(SETTLED_S)
    return counters


class Hosts:
    """The hosts' processes, and what all of them came to."""

    def __init__(self, outer: Network, outer_plan: Plan, names: Names) -> None:
        self._outer = outer
        self._nodes = dict(zip(names, outer_plan.clients, strict=True))
        self.addresses = {name: (node.address, TUNNEL_PORT) for name, node in self._nodes.items()}
        self.processes: dict[str, Station] = {}

    def start(self, name: str, body: Body, where: str = "") -> None:
        """``where``: the host where it is, if it is none itself."""
        self.processes[name] = Station(self._outer, self._nodes[where or name], body)

    def all_ready(self) -> None:
        for process in self.processes.values():
            process.worker.receive(Ready, LIMIT_S)

    def go(self) -> None:
        for process in self.processes.values():
            process.worker.tell(Go())

    def results(self) -> dict[str, Any]:
        for process in self.processes.values():
            process.stop()
        return {
            name: process.worker.receive(Result, LIMIT_S).value
            for name, process in self.processes.items()
        }

    def close(self) -> None:
        for process in self.processes.values():
            process.close()
