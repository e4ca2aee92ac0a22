"""Kernel TCP over TUN devices, one network namespace a node, and one process between them.

Needs /dev/net/tun and root, or a kernel that lets users make user namespaces.
"""

import os
import sys
from pathlib import Path

from testbed.channel import MAX_FDS_PER_LINE, Channel
from testbed.child import Child
from testbed.links import Endpoint, LinkCounters, LinkError, carrier, namespaces
from testbed.links.process import CounterTable, LinkProcess
from testbed.profiles import MTU_BYTES, Direction
from testbed.topology import SUBNET, Node, Plan

name = "userspace"

DEVICE_QUEUE_PACKETS = 10_000
"""Room in each TUN device, so that drops happen in the modelled queue and not before it."""


def probe() -> str | None:
    """Try the risky steps in a child process: a user namespace if needed, a namespace, a device."""
    if sys.platform != "linux":
        return "network namespaces and TUN devices need Linux"
    ours, theirs = Channel.pair()

    def attempt() -> None:
        try:
            _enter_user_namespace_if_needed()
            _make_namespace(str(SUBNET[1]))
        except LinkError as error:
            theirs.send({"reason": str(error)})
        else:
            theirs.send({"reason": None})

    child = Child("probe", attempt)
    theirs.close()
    try:
        reason = ours.receive(10)["reason"]
    except (ConnectionError, TimeoutError) as error:
        reason = f"try a network namespace: {error}"
    child.kill()
    ours.close()
    return str(reason) if reason is not None else None


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
        self._process = LinkProcess(len(plan.nodes), lambda c, table: _run(plan, c, table))
        try:
            line = self._process.wait_up(timeout_s=30 + 0.05 * len(plan.nodes))
            self._namespaces: list[tuple[int, ...]] = self._take_namespaces(line["rootless"])
        except BaseException:
            # A signal too: nobody else knows of the process yet.
            self._process.down()
            raise
        self.facts: dict[str, object] = {
            "backend": name,
            "rootless": line["rootless"],
            "congestion_default": line["congestion"],
            "realtime": line["realtime"],
        }

    def _take_namespaces(self, rootless: bool) -> list[tuple[int, ...]]:
        expected = len(self._plan.nodes) + rootless
        while len(self._process.channel.descriptors) < expected:
            try:
                self._process.channel.receive(10)
            except (ConnectionError, TimeoutError) as error:
                raise LinkError(f"receive the nodes' namespaces: {error}") from error
        received = [self._process.channel.descriptors.popleft() for _ in range(expected)]
        user = received[:1] if rootless else []
        return [(*user, network) for network in received[rootless:]]

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

    def down(self) -> dict[str, object]:
        for descriptor in {fd for path in self._namespaces for fd in path}:
            os.close(descriptor)
        self._namespaces = []
        return self._process.down()


def _run(plan: Plan, channel: Channel, counters: CounterTable) -> None:
    """The link process: make the namespaces, hand them out, carry packets until told to stop."""
    user = _enter_user_namespace_if_needed()
    made = [_make_namespace(node.address) for node in plan.nodes]
    congestion = namespaces.congestion_control()
    realtime = carrier.prefer_this_process()
    handles = [network for network, _ in made]
    if user is not None:
        handles.insert(0, user)
    channel.send({"rootless": user is not None, "congestion": congestion, "realtime": realtime})
    for start in range(0, len(handles), MAX_FDS_PER_LINE):
        channel.send({}, tuple(handles[start : start + MAX_FDS_PER_LINE]))
    for descriptor in handles:
        os.close(descriptor)
    carrier.carry(plan, [device for _, device in made], channel, counters)


def _enter_user_namespace_if_needed() -> int | None:
    if namespaces.is_privileged():
        return None
    namespaces.enter_new_user_namespace()
    return os.open("/proc/self/ns/user", os.O_RDONLY | os.O_CLOEXEC)


def _make_namespace(address: str) -> tuple[int, int]:
    """A network namespace with one addressed device; descriptors of both."""
    network = namespaces.enter_new_network_namespace()
    if Path("/proc/sys/net/ipv6").exists():
        # Else the kernel sends router solicitations over every link, and they would be counted.
        namespaces.set_sysctl("net/ipv6/conf/all/disable_ipv6", "1")
        namespaces.set_sysctl("net/ipv6/conf/default/disable_ipv6", "1")
    # Else a second run of TCP starts from what the first one learned.
    namespaces.set_sysctl("net/ipv4/tcp_no_metrics_save", "1")
    device = namespaces.open_tun(address, SUBNET.prefixlen, MTU_BYTES, DEVICE_QUEUE_PACKETS)
    return network, device
