"""Kernel TCP over TUN devices, one network namespace a node, and one process between them.

Needs /dev/net/tun and root, or a kernel that lets users make user namespaces.
"""

import os
import sys
from collections.abc import Callable

from testbed import clock
from testbed.links import timekeeper
from testbed.links.interface import Endpoint, LinkCounters
from testbed.links.linux import descriptors, namespaces
from testbed.links.process import CounterTable, Facts, LinkProcess, objection, say_up
from testbed.links.userspace import forwarder, receive_steering
from testbed.links.userspace.batching import BATCH_S, MOST_FRAMES_PER_S
from testbed.network.direction import MTU_BYTES, Direction
from testbed.network.topology import SUBNET, Node, Plan
from testbed.processes.channel import Channel

name = "userspace"

PATIENCE = 15
"""As many times as long TCP waits before it takes something for lost, where the clock may stand
still for packets that are on their way and none is lost but by a full queue."""
PROBE_LIMIT_S = 10.0
SERVER_QUEUE_PACKETS, CLIENT_QUEUE_PACKETS = 10_000, 4000
"""Room in each TUN device, so that drops happen in the modelled queue and not before it. The kernel
takes 32 bytes of memory for each at once."""


def probe() -> str | None:
    """Try the risky steps in a child process: a user namespace if needed, a namespace, a device."""
    if sys.platform != "linux":
        return "network namespaces and TUN devices need Linux"
    return objection("try a network namespace", _attempt, PROBE_LIMIT_S)


def _attempt() -> None:
    namespaces.enter_user_namespace_if_needed()
    _make_namespace(str(SUBNET[1]), CLIENT_QUEUE_PACKETS, set())


def unsupported(plan: Plan) -> str | None:
    """The property of the plan that this machine cannot hold, or None."""
    return namespaces.too_few(plan)


def up(plan: Plan) -> "UserspaceNetwork":
    """Build the namespaces and start the link process.

    Raises:
        LinkError: naming the step that failed.
    """
    return UserspaceNetwork(plan)


class UserspaceNetwork:
    """Owns the link process and one namespace descriptor a node."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        count = len(plan.nodes)
        self._process = LinkProcess(count, lambda c, table: _run(plan, c, table), 30 + 0.05 * count)
        self._namespaces = descriptors.paths(self._process.descriptors, count)
        line = self._process.facts
        self.facts: dict[str, object] = {
            "backend": name,
            "rootless": line["rootless"],
            **line["tcp"],
            "realtime": line["realtime"],
            "privileges": line["privileges"],
            "receiving": line["receiving"],
            "offload": "TCP bursts cross the devices whole; in the lines each segment is a frame",
            "turns": f"of {1000 * BATCH_S:g} ms beyond {MOST_FRAMES_PER_S} frames a second",
        }
        self.record: dict[str, object] = {"namespaces": descriptors.way_in(self._namespaces)}

    def endpoint(self, node: Node) -> Endpoint:
        return Endpoint(self._namespaces[node.index], self._plan.server.address, self._plan.port)

    def shape(self, node: Node, up: Direction, down: Direction) -> None:
        self._process.shape(node.index, up, down)

    def counters(self) -> list[LinkCounters]:
        return self._process.counters.read()

    def fileno(self) -> int:
        return self._process.channel.fileno()

    def failure(self) -> str | None:
        return self._process.failure()

    def halted(self) -> str | None:
        return self._process.halted()

    def down(self) -> dict[str, object]:
        for descriptor in {fd for path in self._namespaces for fd in path}:
            os.close(descriptor)
        self._namespaces = []
        return self._process.down()


def _run(plan: Plan, channel: Channel, counters: CounterTable) -> Facts:
    """The link process: make the namespaces, hand them out, carry packets until told to stop."""
    # Before this process keeps to one core.
    time = timekeeper.of_run()
    user = namespaces.enter_user_namespace_if_needed()
    tune = _tuning(plan)
    cores = receive_steering.choose_cores(plan)
    others = cores[1] if cores else set()
    made = []
    for node in plan.nodes:
        queue_packets = CLIENT_QUEUE_PACKETS if node.index else SERVER_QUEUE_PACKETS
        made.append(_make_namespace(node.address, queue_packets, others))
        tune()
    spreads = all(spreads for _, _, spreads in made)
    if cores and spreads:
        os.sched_setaffinity(0, {cores[0]})
    realtime = forwarder.prefer_this_process()
    handles = [network for network, _, _ in made]
    if user is not None:
        handles.insert(0, user)
    facts = {
        "rootless": user is not None,
        "tcp": namespaces.tcp_facts(),
        "realtime": realtime,
        "receiving": f"on cores {sorted(others)}" if spreads else "in the link process",
    }
    say_up(channel, facts, handles)
    return forwarder.carry(plan, [device for _, device, _ in made], channel, counters, time)


def _tuning(plan: Plan) -> Callable[[], None]:
    """A setter of what suits the run's clock, and of its congestion control, for TCP of a namespace
    that has its device."""
    patience = clock.dilation()
    elastic = clock.virtual() is not None and not _loses_packets(plan)
    if elastic:
        patience = PATIENCE

    def tune() -> None:
        namespaces.tune_connections(SUBNET, patience=patience, congestion=plan.congestion)
        if elastic:
            namespaces.probe_no_tails()

    return tune


def _loses_packets(plan: Plan) -> bool:
    """Whether any line of the plan does, other than by a full queue."""
    links = [node.profile for node in plan.nodes if node.profile is not None]
    lines = [line for link in links for line in (link.up, link.down)]
    lines += [line for link in links for state in link.schedule for line in (state.up, state.down)]
    return any(line.mean_loss_percent or line.corrupt_percent for line in lines)


def _make_namespace(address: str, queue_packets: int, cores: set[int]) -> tuple[int, int, bool]:
    """A network namespace with one addressed device: descriptors of both.

    And whether the namespace's kernel receives on ``cores``, rather than in the link process.
    """
    network = namespaces.enter_new_node_namespace()
    spreads = bool(cores) and receive_steering.receive_on(cores)
    device = namespaces.open_tun(address, SUBNET.prefixlen, MTU_BYTES, queue_packets)
    return network, device, spreads
