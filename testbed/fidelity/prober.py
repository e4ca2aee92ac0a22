"""The prober: a process that probes every link of a network before training, and its owner.

Each access link is probed by itself: the clients' at once with the server's own limits lifted,
then the server's behind the first client, whose limits are lifted for that.
"""

from collections.abc import Callable

import msgspec

from testbed.fidelity import checks as fidelity
from testbed.fidelity import paths as probe_paths
from testbed.fidelity import saturation_probe
from testbed.fidelity.checks import Certificate, Check, NotProbed
from testbed.fidelity.paths import Arrivals, Path
from testbed.links.interface import LinkError, Network
from testbed.network.direction import Direction
from testbed.network.topology import Node, Plan
from testbed.processes import confinement
from testbed.processes.channel import Channel
from testbed.processes.worker import Go, NoAnswer, Refusal, Result, Stop, Worker

PATIENCE_S = 10.0
"""How long the prober is waited for beyond what the profiles say it should take."""
TRIES = 3
"""A busy host may hold up what is sent: a link is probed again where that says it is not as asked,
and counts as it was at the try that found the least to object. A wrong link is wrong each time."""
_UNLIMITED = Direction()
FOR_NAMESPACES = (confinement.SYS_ADMIN, confinement.NET_BIND_SERVICE)
"""Capabilities to enter nodes' namespaces, and to take a low port in them."""


class Seen(msgspec.Struct, tag="seen"):
    """The prober's account of some paths, one after the other."""

    arrivals: list[Arrivals]


class Prober:
    """Owns the process. What it lifts is put back before ``certificate`` returns."""

    def __init__(self, plan: Plan, network: Network, dilation: float = 1.0) -> None:
        """Start probing the clients' links of ``plan``, which ``network`` makes ``dilation`` times
        slower."""
        self._plan = plan
        self._network = network
        self.streams = streams = not network.endpoint(plan.server).namespaces
        """Probed by TCP and the clock of links; else by packets and the kernel's own times."""
        self._clients = probe_paths.client_paths(plan, streams, dilation)
        self._server = probe_paths.server_path(plan, streams, dilation)
        self.broken: str | None = None
        """What became of the process, where it gave no answer."""
        if self._server is not None:
            network.shape(plan.server, _UNLIMITED, _UNLIMITED)

        def run(channel: Channel) -> None:
            # Of a namespace that this process enters it has those that its owner has.
            confinement.give_up_capabilities(() if streams else FOR_NAMESPACES)
            _probe(plan, network, streams, self._clients, channel)
            if self._server is not None:
                channel.receive()
                _probe(plan, network, streams, [self._server], channel)

        self._worker = Worker("prober", run, orders=Go | Stop, answers=Seen | Result | Refusal)

    def certificate(self) -> Certificate:
        """Wait for the prober to finish and judge what it saw; bounded.

        Raises:
            LinkError: the network has failed, or carries nothing at present.
        """
        checks, not_probed = self._judge(self._clients)
        if self._server is not None and self.broken is None:
            server, first = self._plan.server, self._plan.clients[0]
            self._restore(server)
            self._network.shape(first, _UNLIMITED, _UNLIMITED)
            self._worker.tell(Go())
            more = self._judge([self._server])
            self._restore(first)
            checks, not_probed = checks + more[0], not_probed + more[1]
        return fidelity.certify(checks, not_probed, self.broken)

    def _judge(self, paths: list[Path]) -> tuple[list[Check], list[NotProbed]]:
        limit_s = probe_s(paths) + PATIENCE_S
        try:
            seen = self._worker.receive(Seen, limit_s)
        except NoAnswer:
            self._refuse_broken_links()
            self.broken = f"not probed: the prober {self._worker.child.condition()}"
            return [], []
        checks, not_probed = judged(paths, seen.arrivals)
        if any(check.measured is None for check in checks):
            self._refuse_broken_links()
        return checks, not_probed

    def _refuse_broken_links(self) -> None:
        """Nothing can be said of links that nobody carries."""
        reason = self._network.failure() or self._network.halted()
        if reason is not None:
            raise LinkError(reason)

    def _restore(self, node: Node) -> None:
        assert node.profile is not None
        self._network.shape(node, node.profile.up, node.profile.down)

    def close(self) -> None:
        self._worker.close()


def probe_s(paths: list[Path]) -> float:
    """How long probing takes if every link is what was asked, and each needs all its tries."""
    trips_s = max(probe_paths.round_trip_s(path) for path in paths)
    gaps_s = max(probe_paths.ping_gap_s(path) for path in paths)
    bursts_s = sum(
        max(probe_paths.burst_s(paths[place]) for place in group)
        for group in probe_paths.groups(paths)
    )
    fills_s = saturation_probe.longest_s(paths)
    return TRIES * (probe_paths.PINGS_S + gaps_s + trips_s + bursts_s + fills_s)


def _probe(
    plan: Plan, network: Network, streams: bool, paths: list[Path], channel: Channel
) -> None:
    if streams:
        from testbed.fidelity.tcp_probe import probe
    else:
        from testbed.fidelity.udp_probe import probe

    def once(places: list[int]) -> list[Arrivals]:
        some = [paths[place] for place in places]
        seen = probe(plan, network, some)
        fills = saturation_probe.probe(plan, network, some)
        return [one._replace(fills=notes) for one, notes in zip(seen, fills, strict=True)]

    channel.send(Seen(best_of_tries(paths, once)))


def best_of_tries(paths: list[Path], once: Callable[[list[int]], list[Arrivals]]) -> list[Arrivals]:
    """Arrivals over each path at its best try; ``once`` probes those at some places."""
    best = [Arrivals([], {})] * len(paths)
    places = list(range(len(paths)))
    for _ in range(TRIES):
        for place, found in zip(places, once(places), strict=True):
            if found.came and (
                not best[place].came
                or _objections(paths[place], found) < _objections(paths[place], best[place])
            ):
                best[place] = found
        places = [p for p in places if best[p].came and _objections(paths[p], best[p])]
        if not places:
            break
    return best


def judged(paths: list[Path], seen: list[Arrivals]) -> tuple[list[Check], list[NotProbed]]:
    """Checks of what came over each path, and what could not be checked."""
    checks: list[Check] = []
    not_probed: list[NotProbed] = []
    for path, arrivals in zip(paths, seen, strict=True):
        checks += fidelity.judge(path, arrivals)
        not_probed += fidelity.unprobed(path, arrivals)
    return checks, not_probed


def _objections(path: Path, seen: Arrivals) -> int:
    return sum(not check.ok for check in fidelity.judge(path, seen))
