"""Probing of links on several hosts by the run's driver: its own prober, and one by each agent."""

import contextlib
import time

from testbed.fidelity import host_prober, underlay_checks
from testbed.fidelity.checks import Certificate
from testbed.fidelity.host_prober import Answer, HostProber, Order
from testbed.links import dilation
from testbed.links.interface import Network
from testbed.network.topology import Plan
from testbed.processes.worker import NoAnswer
from testbed.run.hosts import waits
from testbed.run.hosts.driver import Hosts


def certificate(
    all_hosts: Hosts, network: Network, plan: Plan, pace: float, *, among_clients: bool
) -> Certificate:
    """Judge every link, and the hosts' own network, before training.

    ``pace``: by how much ``network`` makes the links of ``plan`` slower; ``among_clients``: these
    send to one another too.

    Raises:
        LinkError: a prober or its host is gone.
    """
    own = HostProber(plan, network, all_hosts.own.name, pace)
    with contextlib.closing(own):

        def ask(order: Order, limit_s: float) -> list[Answer]:
            until = time.monotonic() + limit_s
            for far in all_hosts.others:
                far.probed = None
                all_hosts.say(far, order)
            own.tell(order)
            if not waits.for_own(all_hosts, own, limit_s):
                raise NoAnswer(f"the driver's own prober: no answer within {limit_s:g} s")
            answers = [own.answer(order, limit_s)]
            left_s = max(1.0, until - time.monotonic())
            told = left_s, "links not probed"
            waits.for_all(all_hosts, lambda far: far.probed is not None, *told, without=False)
            return answers + [far.probed for far in all_hosts.others if far.probed is not None]

        slower = dilation.plan(plan, pace)
        found = underlay_checks.checks(slower, all_hosts.paths, among_clients)
        return host_prober.certificate(plan, network.shape, ask, found, pace)
