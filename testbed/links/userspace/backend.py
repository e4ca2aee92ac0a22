"""Kernel TCP over TUN devices, one network namespace a node, and one process between them.

Needs /dev/net/tun and root, or a kernel that lets users make user namespaces.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence

import msgspec

from testbed import clock
from testbed.links import timekeeper
from testbed.links.interface import Endpoint, LinkCounters, LinkError
from testbed.links.linux import descriptors, namespaces
from testbed.links.process import CounterTable, Facts, LinkProcess, Wait, objection, say_up
from testbed.links.tunnel.clock_table import ClockTable, Reading
from testbed.links.tunnel.clocks import Offset
from testbed.links.tunnel.measurement import MOST_S, measure, turns
from testbed.links.tunnel.meeting import LIMIT_S, Meeting, meet
from testbed.links.tunnel.streams import Stream
from testbed.links.tunnel.tunnel import Tunnel
from testbed.links.userspace import forwarder, receive_steering
from testbed.links.userspace.batching import BATCH_S, MOST_FRAMES_PER_S
from testbed.links.userspace.forwarder import Carrier
from testbed.links.userspace.spanning import SpanningCarrier
from testbed.network import hosts
from testbed.network.direction import MTU_BYTES, Direction
from testbed.network.topology import SUBNET, Node, Plan
from testbed.network.underlay import Path
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


def up(plan: Plan, meeting: Meeting | None = None, wait: Wait | None = None) -> "UserspaceNetwork":
    """Build the namespaces and start the link process.

    ``meeting``: the way to the other hosts of a run of several, whose nodes the plan places; then
    only this host's nodes are made here. ``wait``: how it is waited for that all have met.

    Raises:
        LinkError: naming the step that failed.
    """
    if meeting is not None and clock.virtual() is not None:
        raise LinkError("the clock of a run on several hosts cannot be elastic: set --dilation=1")
    return UserspaceNetwork(plan, meeting, wait)


class UserspaceNetwork:
    """Owns the link process and one namespace descriptor a node."""

    def __init__(
        self, plan: Plan, meeting: Meeting | None = None, wait: Wait | None = None
    ) -> None:
        self._plan = plan
        mine = plan.nodes if meeting is None else hosts.of_host(plan, meeting.host)
        count = len(mine)
        limit_s = 30 + 0.05 * count
        self._clocks = clocks = ClockTable(meeting.others if meeting else ())
        if meeting is not None:
            limit_s += LIMIT_S + MOST_S * len(meeting.addresses)
        self._process = LinkProcess(
            len(plan.nodes),
            lambda c, table: _run(plan, mine, meeting, c, table, clocks),
            limit_s,
            wait,
        )
        paths = descriptors.paths(self._process.descriptors, count) if count else []
        self._namespaces = dict(zip((node.index for node in mine), paths, strict=True))
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
        if meeting is not None:
            self.facts["host"] = meeting.host
            self.facts["underlay"] = line["underlay"]
            self.facts["between_hosts"] = "TLS 1.3" if meeting.secure else "in the clear"
        self.record: dict[str, object] = {"namespaces": descriptors.way_in(paths)} if paths else {}

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

    def hosts_gone(self) -> dict[str, str]:
        """Other hosts of the run that are gone, and how that is known; ``fileno`` tells too."""
        self._process.failure()
        return dict(self._process.hosts_gone)

    def clocks(self) -> dict[str, Reading]:
        """Other hosts' monotonic clocks, as they were when last asked, which is each second."""
        return self._clocks.read(time.monotonic())

    def down(self) -> dict[str, object]:
        for descriptor in {fd for path in self._namespaces.values() for fd in path}:
            os.close(descriptor)
        self._namespaces = {}
        return self._process.down()


def _run(
    plan: Plan,
    mine: Sequence[Node],
    meeting: Meeting | None,
    channel: Channel,
    counters: CounterTable,
    clocks: ClockTable,
) -> Facts:
    """The link process: make the namespaces, hand them out, carry packets until told to stop."""
    # Before this process keeps to one core.
    keeper = timekeeper.of_run()
    # From the host's own network, and before any node is.
    met = None if meeting is None else _meet(meeting)
    user = namespaces.enter_user_namespace_if_needed()
    tune = _tuning(plan)
    cores = receive_steering.choose_cores(plan)
    others = cores[1] if cores else set()
    made = []
    for node in mine:
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
    devices = {node.index: device for node, (_, device, _) in zip(mine, made, strict=True)}
    if met is None:
        say_up(channel, facts, handles)
        return Carrier(plan, devices, counters, keeper).run(channel)
    facts["underlay"] = [msgspec.to_builtins(path) for each in met.values() for path in each[1]]
    say_up(channel, facts, handles)
    tunnels = {
        name: Tunnel(name, stream, offset, keeper.now())
        for name, (stream, _, offset) in met.items()
    }
    return SpanningCarrier(plan, devices, counters, keeper, tunnels, clocks).run(channel)


def _meet(
    meeting: Meeting,
) -> dict[str, tuple[Stream, tuple[Path, Path], Offset]]:
    """A stream to each other host, and the network to it as measured there and back."""
    streams = meet(meeting)
    meeting.listener.close()
    names = list(meeting.addresses)
    here = names.index(meeting.host)
    found = {}
    for place in turns(here, len(names)):
        other = names[place]
        measured = measure(streams[other], meeting.host, other, first=here < place)
        found[other] = (streams[other], (measured.there, measured.back), measured.offset)
    return {other: found[other] for other in streams}


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
