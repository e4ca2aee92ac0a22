"""The link namespace: every node's access link, from devices to qdiscs, built by pyroute2.

Each node's namespace is joined to the link namespace by a veth pair, and the link namespace routes
between them. Both directions are shaped there, in the middle, where TCP's own pushback does not
reach: what a node sends is redirected to the device ``upN`` and what is sent to it to ``downN``
(ifb devices), each with one netem qdisc. So whatever goes from one node to another crosses the
sender's uplink and the receiver's downlink, each once. mirred, which redirects, counts what a full
queue refuses apart from what netem loses on purpose.

Both ends of a pair have one hardware address and ask for none: no ARP crosses a link.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any

from testbed import clock
from testbed.links.interface import LinkError
from testbed.links.linux import namespaces, netlink, offload
from testbed.links.netem import qdisc, trace_pacer
from testbed.links.process import DOWN, LOSSES, UP, CounterTable
from testbed.network.direction import MTU_BYTES, WAYS, Direction
from testbed.network.topology import SUBNET, Node

FIRST_INDEX = 1000
"""Above the devices that some kernels put into every namespace."""
DEVICES_PER_NODE = 3
_ETH_P_ALL = 3
_CLSACT_PARENTS = {UP: "ffff:fff2", DOWN: "ffff:fff3"}
_AT_ROOT = 0xFFFFFFFF
_FLAGS = namespaces.IFF_UP | namespaces.IFF_NOARP


def link_index(node: int) -> int:
    """Interface index of the link namespace's end of a node's veth pair."""
    return FIRST_INDEX + DEVICES_PER_NODE * node


def shaper_index(node: int, way: int) -> int:
    """Interface index of the device on which one direction is shaped."""
    return link_index(node) + 1 + way


class Wiring:
    """Owns the link namespace, where this process stands while it makes nodes' namespaces."""

    def __init__(self, counters: CounterTable) -> None:
        """Enter a new link namespace.

        Raises:
            LinkError: naming the step that the kernel refused; so does every method.
        """
        self.network = namespaces.enter_new_node_namespace()
        """Descriptor of the link namespace."""
        from pyroute2 import IPRoute

        qdisc.teach()
        self._route = IPRoute()
        # Without echo the kernel tells of a qdisc to everybody but the one who asks.
        self._qdiscs = IPRoute(nlm_echo=True)
        self._control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.fast_route = netlink.open_route()
        self.pacer = trace_pacer.Pacer(self.fast_route)
        self.reader = netlink.open_route()
        """For ``tally``, and for whoever it is handed to."""
        self._features: list[str] = []
        self._traced: dict[int, bool] = {}
        self._installed: dict[int, qdisc.Installed] = {}
        self._counters = counters

    def connect(self, node: Node, congestion: str | None = None) -> int:
        """A new namespace for ``node`` behind a link without limits; its descriptor.

        ``congestion``: congestion control of its TCP connections; None: the host's default.
        """
        network = namespaces.enter_new_node_namespace()
        index, name = link_index(node.index), f"link{node.index}"
        ends = {
            "mtu": MTU_BYTES,
            "address": _hardware_address(node.address),
            "num_tx_queues": 1,
            "num_rx_queues": 1,
        }
        with _step(f"make the veth pair of {node.name}", "modprobe veth"):
            self._link(
                index=index,
                ifname=name,
                kind="veth",
                peer={"ifname": namespaces.INTERFACE, "net_ns_fd": network, **ends},
                **ends,
            )
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            with _step(f"give {node.name} the address {node.address}"):
                with netlink.open_route() as route:
                    namespaces.quieten(route, socket.if_nametoindex(namespaces.INTERFACE))
                namespaces.set_flags(control, namespaces.INTERFACE, _FLAGS)
                namespaces.set_flags(control, "lo", namespaces.IFF_UP)
                namespaces.set_address(control, node.address, SUBNET.prefixlen)
            namespaces.tune_connections(SUBNET, patience=clock.dilation(), congestion=congestion)
            if not self._features:
                self._features = offload.feature_names(control, namespaces.INTERFACE)
            offload.switch_off(control, namespaces.INTERFACE, self._features)
        offload.switch_off(self._control, name, self._features)
        with _step(f"route to {node.name}"):
            self._route.route("add", dst=f"{node.address}/32", oif=index, scope="link")
        with _step(f"attach clsact to the link of {node.name}", "modprobe sch_ingress"):
            self._route.tc("add", "clsact", index)
        for way, parent in _CLSACT_PARENTS.items():
            self._redirect(node, way, parent)
        return network

    def _redirect(self, node: Node, way: int, parent: str) -> None:
        """Have one direction pass a device of its own."""
        what, device = f"{node.name} {WAYS[way]}link", shaper_index(node.index, way)
        with _step(f"make the ifb device of {what}", "modprobe ifb"):
            self._link(index=device, ifname=f"{WAYS[way]}{node.index}", kind="ifb", mtu=MTU_BYTES)
        offload.switch_off(self._control, f"{WAYS[way]}{node.index}", self._features)
        with _step(f"redirect {what} to its ifb device", "modprobe cls_u32 act_mirred"):
            self._route.tc(
                "add-filter",
                "u32",
                link_index(node.index),
                parent=parent,
                protocol=_ETH_P_ALL,
                prio=1,
                target=0x10001,
                keys=["0x0/0x0+0"],
                action={
                    "kind": "mirred",
                    "direction": "egress",
                    "action": "redirect",
                    "ifindex": device,
                },
            )

    def shape(self, node: Node, way: int, direction: Direction | None) -> None:
        """Give one direction of a node's link new parameters, and look whether it has them.

        What is in the line keeps its times, unless a trace takes the place of a rate or the other
        way round: another qdisc then stands there, and what was in the line counts as lost.
        """
        what, device = f"{node.name} {WAYS[way]}link", shaper_index(node.index, way)
        try:
            asked = qdisc.netem(direction)
        except LinkError as error:
            raise LinkError(f"{what}: {error}") from None
        traced = direction is not None and direction.trace is not None
        if self._traced.get(device) not in (traced, None):
            self._remove(node, way)
        first = self._traced.get(device) != traced
        if first and traced:
            self._make_class(what, device)
        handle, parent = _place(traced)
        with _step(f"attach netem to {what}", "modprobe sch_netem"):
            self._qdiscs.tc(
                "add" if first else "change",
                "netem",
                device,
                handle,
                parent=parent,
                options=qdisc.options(asked),
            )
        self._traced[device] = traced
        trace = direction.trace if direction is not None else None
        self._installed[device] = qdisc.Installed(self._check(what, device, asked), trace)
        self.pacer.stop(device)
        if direction is not None and direction.chances is not None:
            self.pacer.start(device, direction.chances)
            self.pacer.step()

    def _make_class(self, what: str, device: int) -> None:
        with _step(f"attach htb to {what}", "modprobe sch_htb"):
            self._route.tc("add", "htb", device, trace_pacer.ROOT_HANDLE, default=1)
            trace_pacer.make_class(self.fast_route, device)

    def _remove(self, node: Node, way: int) -> None:
        """Take the qdiscs away; what they lost and hold goes to the counters' base."""
        device = shaper_index(node.index, way)
        with _step(f"detach the qdiscs of {node.name} {WAYS[way]}link"):
            statistics = self._netem(device).get_attr("TCA_STATS2").get_attr("TCA_STATS_QUEUE")
            self._qdiscs.tc("del", index=device, handle=trace_pacer.ROOT_HANDLE, parent=_AT_ROOT)
        words, at = self._counters.words, self._counters.offset(node.index, way)
        words[at + LOSSES] += statistics["drops"] + statistics["qlen"]

    def installed(self, node: Node) -> tuple[qdisc.Installed, qdisc.Installed]:
        """Up and down, as last read back from the kernel."""
        up, down = (self._installed[shaper_index(node.index, way)] for way in (UP, DOWN))
        return up, down

    def _check(self, what: str, device: int, asked: qdisc.Netem) -> qdisc.Netem:
        with _step(f"read back netem of {what}"):
            had = qdisc.found(self._netem(device).get_attr("TCA_OPTIONS"))
        differing = qdisc.difference(asked, had)
        if differing:
            raise LinkError(f"{what}: the kernel's netem is not what was asked: {differing}")
        return had

    def _netem(self, device: int) -> Any:
        """The kernel's answer about a device's netem qdisc."""
        handle, parent = _place(self._traced[device])
        answers = self._qdiscs.tc("get", None, device, handle, parent=parent)
        return next(answer for answer in answers if answer["event"] == "RTM_NEWQDISC")

    def _link(self, index: int, ifname: str, **attributes: Any) -> None:
        off = namespaces.IFF_NOARP
        self._route.link("add", index=index, ifname=ifname, flags=off, change=off, **attributes)
        namespaces.quieten(self.fast_route, index, forward=True)
        namespaces.set_flags(self._control, ifname, namespaces.IFF_UP)


def _place(traced: bool) -> tuple[int, int]:
    """Handle and parent of a device's netem qdisc."""
    if traced:
        return trace_pacer.LEAF_HANDLE, trace_pacer.CLASS_HANDLE
    return trace_pacer.ROOT_HANDLE, _AT_ROOT


def _hardware_address(address: str) -> str:
    return ":".join(f"{byte:02x}" for byte in b"\x02\x00" + socket.inet_aton(address))


@contextlib.contextmanager
def _step(what: str, cure: str = "") -> Iterator[None]:
    """Name the step in whatever the kernel says against it."""
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        yield
    except (NetlinkError, OSError) as error:
        number = getattr(error, "code", None) or getattr(error, "errno", None)
        reason = os.strerror(number) if number else str(error)
        raise LinkError(f"{what}: {reason}" + (f" ({cure})" if cure else "")) from error
