"""The process that probes every link of a network before training, and its owner.

Each access link is probed by itself: the clients' at once with the server's own limits lifted,
then the server's behind the first client, whose limits are lifted for that.
"""

import contextlib

import msgspec

from testbed import fidelity, fill_probe
from testbed.channel import Channel, ChannelClosed
from testbed.child import Child
from testbed.direction import Direction
from testbed.fidelity import Arrivals, Certificate, Path
from testbed.links import Network
from testbed.topology import Node, Plan

PATIENCE_S = 10.0
"""How long the prober is waited for beyond what the profiles say it should take."""
TRIES = 3
"""A busy host may hold up what is sent: a link is probed again where that says it is not as asked,
and counts as it was at the try that found the least to object. A wrong link is wrong each time."""
_UNLIMITED = Direction()


class Prober:
    """Owns the process. What it lifts is put back before ``certificate`` returns."""

    def __init__(self, plan: Plan, network: Network, dilation: float = 1.0) -> None:
        """Start probing the clients' links, which are ``dilation`` times slower than asked for."""
        self._plan = plan
        self._network = network
        streams = not network.endpoint(plan.server).namespaces
        self._clients = fidelity.client_paths(plan, streams, dilation)
        self._server = fidelity.server_path(plan, streams, dilation)
        self._channel, theirs = Channel.pair()
        if self._server is not None:
            network.shape(plan.server, _UNLIMITED, _UNLIMITED)

        def run() -> None:
            self._channel.close()
            # A killed run has nobody left to tell.
            with contextlib.suppress(ChannelClosed):
                _probe(plan, network, streams, self._clients, theirs)
                if self._server is not None:
                    theirs.receive()
                    _probe(plan, network, streams, [self._server], theirs)

        self._child = Child("prober", run)
        theirs.close()

    def certificate(self) -> Certificate:
        """Wait for the prober to finish and judge what it saw; bounded."""
        checks = self._judge(self._clients)
        left_out = fidelity.unprobed(self._clients)
        if self._server is not None:
            server, first = self._plan.server, self._plan.clients[0]
            self._restore(server)
            self._network.shape(first, _UNLIMITED, _UNLIMITED)
            with contextlib.suppress(ChannelClosed):
                self._channel.send({"go": True})
            checks += self._judge([self._server])
            left_out += fidelity.unprobed([self._server])
            self._restore(first)
        return fidelity.certify(checks, left_out)

    def _judge(self, paths: list[Path]) -> list[fidelity.Check]:
        limit_s = probe_s(paths) + PATIENCE_S
        try:
            line = self._channel.receive(limit_s)
            seen = msgspec.convert(line["seen"], list[Arrivals])
        except (ChannelClosed, TimeoutError):
            seen = [Arrivals([], {})] * len(paths)
        return [
            check
            for path, arrivals in zip(paths, seen, strict=True)
            for check in fidelity.judge(path, arrivals)
        ]

    def _restore(self, node: Node) -> None:
        assert node.profile is not None
        self._network.shape(node, node.profile.up, node.profile.down)

    def close(self) -> None:
        self._child.kill()
        self._channel.close()


def probe_s(paths: list[Path]) -> float:
    """How long probing takes if every link is what was asked, and each needs all its tries."""
    trips_s = max(fidelity.round_trip_s(path) for path in paths)
    gaps_s = max(fidelity.ping_gap_s(path) for path in paths)
    bursts_s = sum(
        max(fidelity.burst_s(paths[place]) for place in group) for group in fidelity.groups(paths)
    )
    fills_s = fill_probe.longest_s(paths)
    return TRIES * (fidelity.PINGS_S + gaps_s + trips_s + bursts_s + fills_s)


def _probe(
    plan: Plan, network: Network, streams: bool, paths: list[Path], channel: Channel
) -> None:
    if streams:
        from testbed.stream_probe import probe
    else:
        from testbed.datagram_probe import probe
    best = [Arrivals([], {})] * len(paths)
    places = list(range(len(paths)))
    for _ in range(TRIES):
        some = [paths[place] for place in places]
        seen = probe(plan, network, some)
        fills = fill_probe.probe(plan, network, some)
        for place, one, notes in zip(places, seen, fills, strict=True):
            found = one._replace(fills=notes)
            if found.came and (
                not best[place].came
                or _objections(paths[place], found) < _objections(paths[place], best[place])
            ):
                best[place] = found
        places = [p for p in places if best[p].came and _objections(paths[p], best[p])]
        if not places:
            break
    channel.send({"seen": best})


def _objections(path: Path, seen: Arrivals) -> int:
    return sum(not check.ok for check in fidelity.judge(path, seen))
