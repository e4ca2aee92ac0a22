"""Underlay: the network between the hosts of a run, and whether links can be carried over it. Pure.

A frame is sent when it enters the sender's line and needed when the receiver's line lets it go, so
that the underlay does not show while it is quicker than the delays of both. What it has to carry is
what lines may send at once.
"""

import math
from collections.abc import Iterable
from itertools import permutations
from typing import NamedTuple

import msgspec

from testbed.network.direction import Direction
from testbed.network.profiles import LinkProfile
from testbed.network.topology import Node, Plan

TUNNEL_SHARE = 0.05
"""Of what frames have, at most, that they have more in the tunnel: its head, TCP's and IP's."""


class Path(msgspec.Struct, frozen=True):
    """The way from one host to another, as measured before the run."""

    sender: str
    receiver: str
    rtt_min_ms: float
    rtt_median_ms: float
    rtt_max_ms: float
    rate_kbit: float
    """Of payload, over one TCP connection."""
    offset_ms: float
    """The receiver's monotonic clock less the sender's."""
    offset_error_ms: float
    """Bound of the error of that."""

    def words(self) -> str:
        """ "a to b: 0.12 ms there and back (0.1 to 0.3), 941 Mbit/s" """
        return (
            f"{self.sender} to {self.receiver}: {self.rtt_median_ms:.3g} ms there and back "
            f"({self.rtt_min_ms:.3g} to {self.rtt_max_ms:.3g}), {_mbit(self.rate_kbit)}"
        )


def refusal(plan: Plan, paths: Iterable[Path], among_clients: bool = False) -> str | None:
    """Why the plan's links are more than the underlay carries, with the arithmetic; or None.

    Links without a rate ask for none. ``among_clients``: clients send to clients too.
    """
    for path in paths:
        asked = _asked(plan, path, among_clients)
        needed = needed_kbit(plan, path, among_clients)
        if asked is not None and needed is not None and needed > path.rate_kbit:
            _, sums = asked
            return (
                f"the network from {path.sender} to {path.receiver} carries "
                f"{_mbit(path.rate_kbit)}, as measured, and {sums}, which is {_mbit(needed)} with "
                f"{100 * TUNNEL_SHARE:g} % for the tunnel. Place fewer clients there, or take "
                "slower links, or a --server-profile that bounds them"
            )
    return None


def shows(plan: Plan, paths: Iterable[Path], among_clients: bool = False) -> list[str]:
    """Paths whose delay is more than a pair of lines hides: for each the pair that hides least.

    Half of the greatest round trip is what the way of a frame is taken for.
    """
    found = []
    for path in paths:
        least = hidden(plan, path, among_clients)
        way_ms = path.rtt_max_ms / 2
        if least is not None and way_ms > least.ms:
            found.append(
                f"from {least.sender} ({path.sender}) to {least.receiver} ({path.receiver}) the "
                f"network of the hosts takes up to {way_ms:.3g} ms, the links' own delay is "
                f"{least.ms:.3g} ms"
            )
    return found


class Hidden(NamedTuple):
    """The pair of lines on a way that hides least of it."""

    ms: float
    """Their delays, less jitter."""
    sender: str
    receiver: str


def hidden(plan: Plan, path: Path, among_clients: bool = False) -> Hidden | None:
    """Least that lines hide of a way; None: nobody sends along it."""
    pairs = _pairs(plan, path, among_clients)
    return min(
        (Hidden(_least_ms(a, "up") + _least_ms(b, "down"), a.name, b.name) for a, b in pairs),
        key=lambda pair: pair.ms,
        default=None,
    )


def needed_kbit(plan: Plan, path: Path, among_clients: bool = False) -> float | None:
    """Rate at which lines may send at once along a way, with the tunnel's own; None: unbounded."""
    asked = _asked(plan, path, among_clients)
    return None if asked is None else asked[0] * (1 + TUNNEL_SHARE)


def _asked(plan: Plan, path: Path, among_clients: bool) -> tuple[float, str] | None:
    """Rate at which lines may send at once from one host to the other, kbit/s, and in words."""
    pairs = _pairs(plan, path, among_clients)
    if not pairs:
        return None
    senders = {pair[0].index: pair[0] for pair in pairs}.values()
    receivers = {pair[1].index: pair[1] for pair in pairs}.values()
    up, down = _sum(senders, "up"), _sum(receivers, "down")
    kbit, who, verb = min((up, senders, "send"), (down, receivers, "receive"), key=lambda x: x[0])
    if math.isinf(kbit):
        return None
    count = len(who)
    name = next(iter(who)).name if count == 1 else f"the {count} nodes"
    host = path.sender if verb == "send" else path.receiver
    return kbit, f"{name} on {host} may {verb} {_mbit(kbit)}"


def _pairs(plan: Plan, path: Path, among_clients: bool) -> list[tuple[Node, Node]]:
    senders = [node for node in plan.nodes if node.host == path.sender]
    receivers = [node for node in plan.nodes if node.host == path.receiver]
    if among_clients:
        return [(a, b) for a in senders for b in receivers]
    return [(a, b) for a in senders for b in receivers if not (a.index and b.index)]


def _sum(nodes: Iterable[Node], way: str) -> float:
    """kbit/s, infinity where one of them has no rate."""
    return sum(max((line.line_kbit or math.inf) for line in _lines(n, way)) for n in nodes)


def _least_ms(node: Node, way: str) -> float:
    return min(max(0.0, line.delay_ms - line.jitter_ms) for line in _lines(node, way))


def _lines(node: Node, way: str) -> list[Direction]:
    """One direction of a node's link, in every state that its schedule has."""
    link = node.profile or LinkProfile(name="unlimited")
    states = [getattr(state, way) for state in link.schedule]
    return [getattr(link, way), *(each for each in states if not each.outage)]


def missing(hosts: Iterable[str], paths: Iterable[Path]) -> list[tuple[str, str]]:
    """Pairs of hosts, in order, that no path is known of."""
    known = {(path.sender, path.receiver) for path in paths}
    return [pair for pair in permutations(hosts, 2) if pair not in known]


def _mbit(kbit: float) -> str:
    return f"{kbit / 1000:.4g} Mbit/s"
