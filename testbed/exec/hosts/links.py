"""Links on several hosts as programs need them: any node may speak to any other."""

import functools
from collections.abc import Callable

from testbed.fidelity.checks import Certificate
from testbed.links.interface import Network
from testbed.network import underlay
from testbed.network.topology import Plan
from testbed.run.hosts.driver import Hosts
from testbed.run.hosts.probing import certificate


def refusal(all_hosts: Hosts, plan: Plan) -> str | None:
    """Why the hosts' network does not carry the plan's links, with the arithmetic; or None."""
    return underlay.refusal(plan, all_hosts.paths, among_clients=True)


def prober(
    all_hosts: Hosts | None, network: Network, plan: Plan
) -> Callable[[], Certificate] | None:
    """The prober of links of several hosts, where they are."""
    if all_hosts is None:
        return None
    # Programs go by the hosts' own clocks, which nothing makes slower.
    return functools.partial(certificate, all_hosts, network, plan, 1.0, among_clients=True)
