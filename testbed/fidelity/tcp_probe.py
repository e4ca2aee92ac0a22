"""Probing with TCP, for links that carry only streams: each client's way through the relay."""

import contextlib
import selectors
import socket

from testbed import clock
from testbed.fidelity import paths as probe_paths
from testbed.fidelity.paths import PINGS, Arrivals, Path
from testbed.links.interface import Network
from testbed.network.direction import SEGMENT_BYTES
from testbed.network.topology import Plan
from testbed.probing.timestamps import listen

LAST_BYTE_S = 0.5
"""Allowed beyond what the profiles say."""
CONNECT_LIMIT_S = 5.0
_READ_BYTES = 1 << 18
_PING = b"."


class _Probe:
    """Both ends of one path's connection, and what has come through it."""

    def __init__(self, path: Path, near: socket.socket, far: socket.socket) -> None:
        self.ends = {"down": near, "up": far}
        """By the way whose bytes arrive there."""
        self.counts = path.bursts()
        self.unsent = {
            way: memoryview(bytes(count * SEGMENT_BYTES)) for way, count in self.counts.items()
        }
        self.arrived_bytes = {"up": 0, "down": 0}
        self.seen = Arrivals([], {"up": [], "down": []})
        self.pings = probe_paths.pings(probe_paths.round_trip_s(path))
        self.pinged_ns: int | None = None

    def ping(self) -> None:
        self.pinged_ns = clock.of_links_ns()
        self.ends["down"].send(_PING)

    def take_ping(self, way: str) -> None:
        if not self.ends[way].recv(_READ_BYTES):
            self.pinged_ns = None
        elif way == "up":
            self.ends["up"].send(_PING)
        elif self.pinged_ns is not None:
            trip_ms = (clock.of_links_ns() - self.pinged_ns) / 1e6
            self.seen.round_trips_ms.append(trip_ms)
            self.pinged_ns = None

    def send(self, arriving: str) -> bool:
        """Send more of the burst that arrives at that end; whether anything is left."""
        other = self.ends["up" if arriving == "down" else "down"]
        sent = other.send(self.unsent[arriving])
        self.unsent[arriving] = self.unsent[arriving][sent:]
        return bool(self.unsent[arriving])

    def take_burst(self, way: str) -> None:
        """Note each whole segment; of the first read the last alone, since nobody knows when the
        others came."""
        size = len(self.ends[way].recv(_READ_BYTES))
        if not size:
            raise ConnectionError("the stream ended")
        before = self.arrived_bytes[way] // SEGMENT_BYTES
        self.arrived_bytes[way] += size
        whole = self.arrived_bytes[way] // SEGMENT_BYTES - before
        times = self.seen.bursts_ns[way]
        times += [clock.of_links_ns()] * (whole if times else min(whole, 1))

    def complete(self) -> bool:
        return all(
            self.arrived_bytes[way] >= count * SEGMENT_BYTES for way, count in self.counts.items()
        )


def probe(plan: Plan, network: Network, paths: list[Path]) -> list[Arrivals]:
    """Ping over every path, then fill it both ways; what came through each, in their order.

    A burst's arrival times are those of its whole segments.
    """
    with contextlib.ExitStack() as owned:
        probes = _connect(plan, network, paths, owned)
        live = [probe for probe in probes if probe is not None]
        longest_s = max(probe_paths.round_trip_s(path) for path in paths)
        # 1. Pings, one at a time on each connection: a stream does not tell them apart.
        for number in range(PINGS):
            waiting = [one for one in live if one.pings > number and one.pinged_ns is None]
            for one in waiting:
                one.ping()
            _receive_pings(waiting, clock.of_links() + longest_s + LAST_BYTE_S)
        # 2. Bursts, of as many paths at once as the machine can carry.
        for group in probe_paths.groups(paths):
            longest_s = max(probe_paths.burst_s(paths[place]) for place in group)
            some = [one for one in (probes[place] for place in group) if one is not None]
            _exchange_bursts(some, clock.of_links() + longest_s + LAST_BYTE_S)
        return [Arrivals([], {}) if one is None else one.seen for one in probes]


def _connect(
    plan: Plan, network: Network, paths: list[Path], owned: contextlib.ExitStack
) -> list[_Probe | None]:
    listener = owned.enter_context(listen(network.endpoint(plan.server)))
    listener.settimeout(CONNECT_LIMIT_S)
    probes: list[_Probe | None] = []
    for path in paths:
        endpoint = network.endpoint(path.client)
        try:
            near = owned.enter_context(
                socket.create_connection((endpoint.host, endpoint.port), CONNECT_LIMIT_S)
            )
            far = owned.enter_context(listener.accept()[0])
        except OSError:
            probes.append(None)
            continue
        for end in (near, far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.setblocking(False)
        probes.append(_Probe(path, near, far))
    return probes


def _receive_pings(probes: list[_Probe], until_s: float) -> None:
    with selectors.DefaultSelector() as selector:
        for one in probes:
            for way, end in one.ends.items():
                selector.register(end, selectors.EVENT_READ, (one, way))
        while any(one.pinged_ns is not None for one in probes):
            left_s = until_s - clock.of_links()
            if left_s <= 0:
                return
            for key, _ in selector.select(left_s):
                one, way = key.data
                with contextlib.suppress(BlockingIOError):
                    one.take_ping(way)


def _exchange_bursts(probes: list[_Probe], until_s: float) -> None:
    both = selectors.EVENT_READ | selectors.EVENT_WRITE
    with selectors.DefaultSelector() as selector:
        for one in probes:
            for way, end in one.ends.items():
                selector.register(end, both, (one, way))
        while selector.get_map() and not all(one.complete() for one in probes):
            left_s = until_s - clock.of_links()
            if left_s <= 0:
                return
            for key, events in selector.select(left_s):
                try:
                    _serve(selector, key, events)
                except BlockingIOError:
                    pass
                except OSError:
                    selector.unregister(key.fileobj)


def _serve(selector: selectors.BaseSelector, key: selectors.SelectorKey, events: int) -> None:
    one, way = key.data
    if events & selectors.EVENT_READ:
        one.take_burst(way)
    # What this end sends arrives at the other.
    other = "up" if way == "down" else "down"
    if events & selectors.EVENT_WRITE and not one.send(other):
        selector.modify(key.fileobj, selectors.EVENT_READ, key.data)
