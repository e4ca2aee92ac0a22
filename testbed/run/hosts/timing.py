"""Changes of a run on several hosts at their times: each host makes those of its own nodes' links.

By the run's clock, which all of them know, once they are told when training began. Only what is due
at that moment waits for the way that the word has to go.
"""

from collections.abc import Sequence

import msgspec

from testbed import clock
from testbed.links import dilation
from testbed.links.userspace.backend import UserspaceNetwork
from testbed.network.direction import Direction
from testbed.network.topology import Node, Plan
from testbed.run.dynamics import Dynamics
from testbed.run.hosts.driver import Hosts
from testbed.run.hosts.messages import Trained, Trains


class HostsDynamics(Dynamics):
    """The driver's: who is away, its own nodes' links, and its word to the others for theirs."""

    def __init__(self, all_hosts: Hosts, plan: Plan, trained_s: float = 0.0) -> None:
        super().__init__(plan, trained_s=trained_s, shapes=lambda node: all_hosts.of(node) is None)
        self._hosts = all_hosts

    def begin(self, at_s: float | None = None) -> None:
        before = self.began_s
        super().begin(at_s)
        if before is None and self.began_s is not None:
            for far in self._hosts.others:
                self._hosts.say(far, Trains(self.began_s, self._trained_s))

    def end(self) -> None:
        super().end()
        for far in self._hosts.others:
            self._hosts.say(far, Trained())


class Slower:
    """Links of a host as the run's clock has them, to be changed."""

    def __init__(self, network: UserspaceNetwork) -> None:
        self._network = network

    def shape(self, node: Node, up: Direction, down: Direction) -> None:
        slower = (dilation.direction(line, clock.dilation()) for line in (up, down))
        self._network.shape(node, *slower)


def of_part(nodes: Sequence[Node], trains: Trains) -> Dynamics:
    """An agent's: its nodes' links alone, from when training began."""
    here = tuple(msgspec.structs.replace(node, away=()) for node in nodes)
    dynamics = Dynamics(Plan(here), trained_s=trains.trained_s)
    dynamics.begin(trains.began_s)
    return dynamics
