"""Settling of a network that was probed: what is still on its way would count as a run's bytes.

A link that is slower than was asked, or that this machine holds up, has not let all of a probe
through when the probe gives up.
"""

import math
import time

from testbed import clock
from testbed.fidelity import paths as probe_paths
from testbed.links.interface import Network
from testbed.network.topology import Plan

LIMIT_S = 10.0
STILL_S = 0.1
"""Beyond a round trip, in which nothing is counted of what waits for its delay."""
_POLL_S = 0.01


def still_s(plan: Plan, streams: bool, dilation: float) -> float:
    """How long nothing is counted where nothing is on its way over a client's link any more."""
    paths = probe_paths.client_paths(plan, streams, dilation)
    return max(probe_paths.round_trip_s(path) for path in paths) + STILL_S


def await_stillness(network: Network, still_s: float) -> bool:
    """Wait until no counter has changed for so long; False where some still do at the limit."""
    counters, since_s = network.counters(), clock.of_links()
    # By the machine's time: the links' own may be held.
    for _ in range(math.ceil((LIMIT_S + still_s) / _POLL_S)):
        if clock.of_links() - since_s >= still_s:
            return True
        time.sleep(_POLL_S)
        if (found := network.counters()) != counters:
            counters, since_s = found, clock.of_links()
    return False
