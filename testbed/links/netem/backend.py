"""The kernel's own sch_netem between network namespaces, one a node.

Needs Linux with sch_netem, and root or a kernel that lets users make user namespaces. The link
process builds the network, takes new shapes and steps traces; packets never come near it.
"""

import math
import os
import platform
import select
import socket
import struct
import sys

import msgspec

from testbed.links.interface import Endpoint, LinkCounters, LinkError
from testbed.links.linux import descriptors, namespaces, netlink
from testbed.links.netem import counters as tally
from testbed.links.netem import qdisc
from testbed.links.netem.devices import Wiring
from testbed.links.process import (
    DOWN,
    UP,
    CounterTable,
    Facts,
    LinkProcess,
    Shape,
    objection,
    say_up,
)
from testbed.links.userspace import forwarder
from testbed.network.direction import WAYS, Direction, GilbertElliott
from testbed.network.schedule import State
from testbed.network.topology import Node, Plan, plan
from testbed.processes.channel import Channel
from testbed.processes.confinement import NET_ADMIN
from testbed.processes.worker import Stop

name = "netem"

NO_NETEM = (
    "this kernel has no sch_netem (modprobe sch_netem; Ubuntu: apt install "
    "linux-modules-extra-$(uname -r); WSL2: a newer kernel)"
)
PROBE_LIMIT_S = 20.0
_EVERYTHING = Direction(
    rate_kbit=1000,
    delay_ms=10,
    jitter_ms=1,
    gilbert_elliott=GilbertElliott(good_to_bad_percent=1, bad_to_good_percent=50),
    duplicate_percent=1,
    reorder_percent=1,
    corrupt_percent=1,
)
_RTM_NEWQDISC, _CREATE = 36, 0x400
_LOOPBACK_INDEX, _ROOT_HANDLE, _AT_ROOT = 1, 0x10000, 0xFFFFFFFF


def probe() -> str | None:
    """Build a link with everything that is relied on, in a child process."""
    if sys.platform != "linux":
        return "netem needs Linux"
    return objection("try a netem link", _attempt, PROBE_LIMIT_S)


def _attempt() -> None:
    namespaces.enter_user_namespace_if_needed()
    _check_netem()
    layout, table = plan([]), CounterTable(1)
    wiring = Wiring(table)
    wiring.connect(layout.server)
    for way in (UP, DOWN):
        wiring.shape(layout.server, way, _EVERYTHING)
    tally.read(wiring.reader, table)


def _check_netem() -> None:
    """Probe by one message: mostly this is missing, and pyroute2 takes 0.2 s to import."""
    namespaces.enter_new_network_namespace()
    asked = struct.pack("=BxxxiIII", 0, _LOOPBACK_INDEX, _ROOT_HANDLE, _AT_ROOT, 0)
    kind = netlink.attribute(1, b"netem\0")
    options = netlink.attribute(2, struct.pack("=IIIIII", 0, 1000, 0, 0, 0, 0))
    with netlink.open_route() as route:
        try:
            netlink.change(route, _RTM_NEWQDISC, _CREATE, asked + kind + options)
        except FileNotFoundError:
            raise LinkError(NO_NETEM) from None
        except OSError as error:
            raise LinkError(f"attach a netem qdisc: {error.strerror}") from error


def unsupported(plan: Plan) -> str | None:
    """The property of the plan that this machine or netem cannot hold, or None."""
    if reason := namespaces.too_few(plan):
        return reason
    for node in plan.nodes:
        if node.profile is None:
            continue
        beginning = State(0.0, node.profile.up, node.profile.down)
        try:
            for state in (beginning, *node.profile.schedule):
                for direction in (state.up, state.down):
                    qdisc.netem(direction)
                    if direction.chances is not None:
                        qdisc.check_trace(direction.chances)
        except LinkError as error:
            return f"profile {node.profile.name!r}: {error}"
    return None


def up(plan: Plan) -> "NetemNetwork":
    """Build the namespaces and links.

    Raises:
        LinkError: naming the step that failed.
    """
    return NetemNetwork(plan)


class NetemNetwork:
    """Owns the link process, a socket in its namespace and one namespace descriptor a node."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        count = len(plan.nodes)
        self._process = LinkProcess(count, lambda c, table: _run(plan, c, table), 30 + 0.1 * count)
        reader, self._link, *handed = self._process.descriptors
        self._reader: socket.socket | None = netlink.adopt(reader)
        self._namespaces = descriptors.paths(handed, count)
        qdiscs = self._process.facts.pop("qdiscs")
        self.facts: dict[str, object] = {"backend": name, **self._process.facts}
        self.record: dict[str, object] = {
            "qdiscs": qdiscs,
            "namespaces": descriptors.way_in(self._namespaces, self._link),
        }

    def endpoint(self, node: Node) -> Endpoint:
        return Endpoint(self._namespaces[node.index], self._plan.server.address, self._plan.port)

    def shape(self, node: Node, up: Direction, down: Direction) -> None:
        self._process.shape(node.index, up, down)

    def counters(self) -> list[LinkCounters]:
        assert self._reader is not None, "the network is down"
        return tally.read(self._reader, self._process.counters)

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
        if self._reader is not None:
            os.close(self._link)
            self._reader.close()
            self._reader = None
        return self._process.down()


def _run(plan: Plan, channel: Channel, counters: CounterTable) -> Facts:
    """The link process."""
    user = namespaces.enter_user_namespace_if_needed()
    wiring = Wiring(counters)
    networks = [wiring.connect(node, plan.congestion) for node in plan.nodes]
    for node in plan.nodes:
        for way, key in enumerate(WAYS):
            wiring.shape(node, way, getattr(node.profile, key, None))
    facts = {
        "rootless": user is not None,
        **namespaces.tcp_facts(),
        "realtime": forwarder.prefer_this_process(),
        "kernel": platform.release(),
        "offloads": "off on every device",
        "queue_drops": "as mirred's overlimits; losses are netem's drops less these",
    }
    qdiscs = [msgspec.to_builtins(wiring.installed(node)) for node in plan.nodes]
    handles = [wiring.reader.detach(), wiring.network, *([] if user is None else [user]), *networks]
    # What changes a link asks for it anew each time.
    say_up(channel, {**facts, "qdiscs": qdiscs}, handles, keep=(NET_ADMIN,))
    _handle(plan, wiring, channel)
    return {
        "trace_steps": wiring.pacer.steps,
        "late_trace_steps": wiring.pacer.late_steps,
        "lateness_max_ms": 1000 * wiring.pacer.late_max_s,
    }


def _handle(plan: Plan, wiring: Wiring, channel: Channel) -> None:
    """Take orders and step traces until told to stop or left alone."""
    pacer, waiter = wiring.pacer, select.poll()
    waiter.register(channel, select.POLLIN)
    while True:
        wait_s = pacer.wait_s()
        waiter.poll(None if wait_s is None else math.ceil(1000 * wait_s))
        stop = False
        for order in channel.drain():
            if isinstance(order, Shape):
                for way, direction in ((UP, order.up), (DOWN, order.down)):
                    wiring.shape(plan.nodes[order.node], way, direction)
            stop = stop or isinstance(order, Stop)
        if stop or channel.closed:
            return
        try:
            pacer.step()
        except OSError as error:
            raise LinkError(f"step a trace: {error.strerror}") from error
