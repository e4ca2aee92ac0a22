"""Checks of the network between hosts: whether it carries a plan's links, and does not show. Pure.

Each holds a figure that may be no more than another: 0 is expected, and the other is the tolerance.
"""

from collections.abc import Iterable

from testbed.fidelity.checks import Check
from testbed.network import underlay
from testbed.network.topology import Plan
from testbed.network.underlay import Path

HOSTS_NETWORK = "hosts' network"
"""How names of these checks begin."""


def checks(plan: Plan, paths: Iterable[Path], among_clients: bool = False) -> list[Check]:
    """Two of each way between hosts that have nodes which send to each other.

    How much of its rate lines may ask for at once, where all have one, and how long it takes
    against what the lines' own delay hides.
    """
    found = []
    for path in paths:
        link, way = f"{path.sender} to {path.receiver}", "both"
        asked_kbit = underlay.needed_kbit(plan, path, among_clients)
        if asked_kbit is not None:
            share = round(100 * asked_kbit / path.rate_kbit, 3) if path.rate_kbit else None
            fits = share is not None and share <= 100
            found.append(Check(f"{HOSTS_NETWORK}, asked", link, way, 0.0, share, "%", 100.0, fits))
        hidden = underlay.hidden(plan, path, among_clients)
        if hidden is not None:
            way_ms, most_ms = round(path.rtt_max_ms / 2, 6), round(hidden.ms, 6)
            fits = way_ms <= most_ms
            name = f"{HOSTS_NETWORK}, hidden"
            found.append(Check(name, link, way, 0.0, way_ms, "ms", most_ms, fits))
    return found
