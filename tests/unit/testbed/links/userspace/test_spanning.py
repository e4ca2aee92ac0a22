"""One plan's packets over one host and over two: the same are lost or delivered, to the same times,
as long as the way between the hosts is shorter than the lines' delays. By a clock of ours."""

import contextlib
import math
import select
import socket
import struct
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest

from testbed.links.process import CounterTable, HostGone
from testbed.links.queueing.lateness import Lateness
from testbed.links.tunnel import messages
from testbed.links.tunnel import tunnel as tunnels
from testbed.links.tunnel.clock_table import ClockTable
from testbed.links.tunnel.clocks import MOST_DRIFT, Offset
from testbed.links.tunnel.streams import Stream
from testbed.links.tunnel.tunnel import Tunnel
from testbed.links.userspace import spanning
from testbed.links.userspace.forwarder import Carrier
from testbed.links.userspace.spanning import SpanningCarrier
from testbed.network.direction import Direction
from testbed.network.hosts import Host, of_host, placed
from testbed.network.profiles import LinkProfile
from testbed.network.topology import Plan, plan

AHEAD_S = 1234.0
"""Host b's clock before host a's."""
BEGAN_S = 50.0
SEGMENT = 1448


class World:
    """Time, and all that happens at one."""

    def __init__(self) -> None:
        self.now = BEGAN_S
        self.carriers: list[Carrier] = []
        self.wires: list[Wire] = []
        self.ends: dict[int, socket.socket] = {}
        """A node's device as the node has it."""
        self.delivered: list[tuple[int, float, bytes]] = []
        self.owned = contextlib.ExitStack()

    def __enter__(self) -> "World":
        self.owned.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self.owned.__exit__(*raised)

    def devices(self, indices: list[int]) -> dict[int, int]:
        found = {}
        for index in indices:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            for each in (ours, theirs):
                each.setblocking(False)
                self.owned.enter_context(each)
            self.ends[index] = theirs
            found[index] = ours.fileno()
        return found

    def send(self, node: int, packet: bytes) -> None:
        self.ends[node].send(packet)
        self.settle()

    def settle(self) -> None:
        """Do all that is due by now, until nothing moves any more."""
        moved = True
        while moved:
            moved = any([wire.pump(self.now) for wire in self.wires])
            for carrier in self.carriers:
                moved = self._turn(carrier) or moved
            for node, end in self.ends.items():
                with contextlib.suppress(BlockingIOError):
                    while True:
                        self.delivered.append((node, self.now, end.recv(1 << 17)))

    def _turn(self, carrier: Carrier) -> bool:
        now = carrier._now()
        line_of = {line.device: line for line in carrier._up.values()}
        hosts = getattr(carrier, "_by_descriptor", {})
        ready = select.select([*line_of, *hosts], [], [], 0)[0]
        for descriptor in ready:
            if descriptor in line_of:
                carrier._read(line_of[descriptor], now)
            else:
                carrier._hear(descriptor, carrier._channel)
        carrier._release()
        return bool(ready)

    def until(self, when: float) -> None:
        """Let time go by, from one thing that is due to the next."""
        while True:
            self.settle()
            # A sum of seconds may be less than the float that is due.
            dues = [c._due[0][0] - c._now() for c in self.carriers if c._due]
            dues += [wire.due - self.now for wire in self.wires]
            step = min(dues, default=math.inf)
            if self.now + step > when:
                self.now = when
                self.settle()
                return
            self.now += max(step, 1e-9)


class Clock:
    """A host's clock."""

    def __init__(self, world: World, ahead_s: float = 0.0) -> None:
        self._world, self._ahead_s = world, ahead_s
        self.lateness = Lateness()

    def now(self) -> float:
        return self._world.now + self._ahead_s

    def facts(self) -> dict[str, Any]:
        return self.lateness.facts()

    def wait_s(self, due: float) -> float:
        raise AssertionError("nobody waits here")

    def look(self, in_flight: bool) -> None:
        raise AssertionError


class Wire:
    """The way between two hosts, each byte ``delay_s`` under way."""

    def __init__(self, one: socket.socket, other: socket.socket, delay_s: float) -> None:
        self._ends = [(one, other, deque()), (other, one, deque())]
        self._delay_s = delay_s

    @property
    def due(self) -> float:
        return min((held[0][0] for _, _, held in self._ends if held), default=math.inf)

    def pump(self, now: float) -> bool:
        moved = False
        for source, sink, held in self._ends:
            with contextlib.suppress(BlockingIOError):
                while data := source.recv(1 << 20):
                    held.append((now + self._delay_s, data))
            while held and held[0][0] <= now + 1e-12:
                sink.sendall(held.popleft()[1])
                moved = True
        return moved


class Told:
    """A channel that remembers."""

    def __init__(self) -> None:
        self.lines: list[Any] = []
        self.closed = False

    def send(self, line: Any) -> None:
        self.lines.append(line)


@pytest.fixture
def world() -> Iterator[World]:
    with World() as found:
        yield found


def one_host(world: World, layout: Plan) -> None:
    devices = world.devices([node.index for node in layout.nodes])
    world.carriers = [Carrier(layout, devices, CounterTable(len(layout.nodes)), Clock(world))]


def two_hosts(world: World, layout: Plan, delay_s: float) -> list[Tunnel]:
    made = []
    fars = []
    for name, other, ahead_s in (("a", "b", 0.0), ("b", "a", AHEAD_S)):
        near, far = (world.owned.enter_context(each) for each in socket.socketpair())
        far.setblocking(False)
        fars.append(far)
        clock, offset = Clock(world, ahead_s), Offset()
        theirs = clock.now() + (AHEAD_S if name == "a" else -AHEAD_S)
        offset.learn(clock.now(), theirs, theirs, clock.now())
        tunnel = Tunnel(other, Stream(near), offset, clock.now())
        devices = world.devices([node.index for node in of_host(layout, name)])
        table = CounterTable(len(layout.nodes))
        clocks = ClockTable([other])
        carrier = SpanningCarrier(layout, devices, table, clock, {other: tunnel}, clocks)
        carrier._channel = Told()
        world.carriers.append(carrier)
        made.append(tunnel)
    world.wires.append(Wire(*fars, delay_s))
    return made


def packet(layout: Plan, to: int, number: int, size: int = 200) -> bytes:
    header = bytearray(10 + 20)
    header[10] = 0x45
    header[26:30] = socket.inet_aton(layout.nodes[to].address)
    return bytes(header) + number.to_bytes(4, "big") + bytes(size)


def burst(layout: Plan, to: int, frames: int, last: int = SEGMENT) -> bytes:
    vnet = struct.pack("=BBHHHH", 1, 1, 40, SEGMENT, 20, 16)
    ip, tcp = bytearray(20), bytearray(20)
    ip[0], tcp[12] = 0x45, 0x50
    ip[16:20] = socket.inet_aton(layout.nodes[to].address)
    payload = b"".join(bytes([n]) * SEGMENT for n in range(frames - 1)) + bytes([99]) * last
    return vnet + bytes(ip + tcp) + payload


def by_segment(delivered: list[tuple[int, float, bytes]]) -> list[tuple[int, float, bytes]]:
    """Payload by the segment: how many come in one write is a matter of when one looks."""
    found = []
    for node, at, data in delivered:
        payload = data[50:] if data[10:].startswith(b"\x45") and data[42] == 0x50 else data[30:]
        size = SEGMENT if len(payload) >= SEGMENT else len(payload)
        found += [
            (node, round(at - BEGAN_S, 6), payload[i : i + size])
            for i in range(0, len(payload), size)
        ]
    return found


def layout_of(*links: LinkProfile, server: LinkProfile | None = None) -> Plan:
    machines = [Host("a", 1, 0), Host("b", 1, 0)]
    return placed(plan(list(links), server), machines, place="server=a,client-1=a,client-2=b")


SLOW = LinkProfile(
    name="slow",
    up=Direction(rate_kbit=1000, delay_ms=20),
    down=Direction(rate_kbit=2000, delay_ms=15),
)
LOSSY = LinkProfile(
    name="lossy",
    up=Direction(rate_kbit=5000, delay_ms=20, jitter_ms=8, loss_percent=20),
    down=Direction(
        rate_kbit=5000, delay_ms=15, duplicate_percent=20, reorder_percent=20, corrupt_percent=5
    ),
)
SHORT_QUEUE = LinkProfile(
    name="short", up=Direction(rate_kbit=1000, delay_ms=20, max_packets=9), down=SLOW.down
)


NEAR = LinkProfile(name="near", up=Direction(delay_ms=5), down=Direction(delay_ms=5))
WITH_SERVER = ((0, 2), (2, 0), (0, 1), (1, 0))
AMONG_ALL = (*WITH_SERVER, (1, 2), (2, 1))
Pairs = tuple[tuple[int, int], ...]


def converse(
    world: World, layout: Plan, pairs: Pairs = WITH_SERVER
) -> list[tuple[int, float, bytes]]:
    """Packets each way of ``pairs``, and bursts."""
    number = 0
    for _ in range(20):
        for sender, receiver in pairs:
            number += 1
            world.send(sender, packet(layout, receiver, number))
        world.until(world.now + 0.0031)
    world.send(2, burst(layout, 0, 7, last=500))
    world.send(0, burst(layout, 2, 9))
    if (1, 2) in pairs:
        world.send(1, burst(layout, 2, 5))
    world.until(world.now + 1.0)
    return sorted(by_segment(world.delivered))


@pytest.mark.parametrize(
    ("link", "server", "pairs"),
    [
        (SLOW, None, WITH_SERVER),
        (SHORT_QUEUE, None, WITH_SERVER),
        (SLOW, NEAR, AMONG_ALL),
        (SHORT_QUEUE, NEAR, AMONG_ALL),
        (LOSSY, NEAR, AMONG_ALL),
    ],
)
def test_two_hosts_deliver_what_one_does_and_when(
    link: LinkProfile, server: LinkProfile | None, pairs: Pairs
):
    """A server without a line of its own has its frames come late, for which downlinks make up;
    but a client's may come before them then, and reordered ones skip the delay that does."""
    layout = layout_of(link, link, server=server)
    with World() as alone, World() as apart:
        one_host(alone, layout)
        two_hosts(apart, layout, delay_s=0.004)
        first, second = converse(alone, layout, pairs), converse(apart, layout, pairs)
    assert len(first) > 60
    assert [each[::2] for each in first] == [each[::2] for each in second]
    assert [at for _, at, _ in second] == pytest.approx([at for _, at, _ in first], abs=5e-6)


def test_each_host_counts_its_own_nodes_and_together_what_one_does(world: World):
    layout = layout_of(SLOW, SLOW)
    with World() as alone:
        one_host(alone, layout)
        converse(alone, layout)
        whole = alone.carriers[0]._words.tolist()
    two_hosts(world, layout, delay_s=0.004)
    converse(world, layout)
    parts = [carrier._words.tolist() for carrier in world.carriers]
    assert [sum(pair) for pair in zip(*parts, strict=True)] == whole
    per_node = 8
    assert not any(parts[0][2 * per_node :]) and not any(parts[1][: 2 * per_node])


def test_no_frame_is_late_while_the_way_is_shorter_than_the_uplinks_delay(world: World):
    layout = layout_of(SLOW, SLOW)
    a, b = two_hosts(world, layout, delay_s=0.019)
    world.send(2, packet(layout, 0, 1))
    world.until(world.now + 1)
    # The server has no line of its own: what it sends is late by all of the way.
    world.send(0, packet(layout, 2, 2))
    world.until(world.now + 1)
    assert a.facts(0)["late_frames"] == 0 and a.facts(0)["frames_received"] == 1
    assert b.facts(0)["late_frames"] == 1
    assert b.facts(0)["late_max_ms"] == pytest.approx(19, abs=0.01)
    # It is delivered late by what the downlink's delay, of 15 ms and what it takes, lacks.
    lateness = [carrier._time.facts()["lateness_max_ms"] for carrier in world.carriers]
    assert lateness[0] == pytest.approx(0, abs=0.01)
    assert 2.5 < lateness[1] < 4.01


def test_frames_for_another_host_take_turns_as_those_that_are_delivered_do(world: World):
    """Else a host that only sends would wake for each of a fast line's releases."""
    layout = layout_of(SLOW, SLOW)
    two_hosts(world, layout, delay_s=0.0)
    world.send(2, burst(layout, 0, 7))
    world.until(world.now + 1)
    assert [carrier._batching.frames for carrier in world.carriers] == [7, 7]


def test_the_owner_reads_the_other_hosts_clock_and_how_wrong_it_may_be(world: World):
    two_hosts(world, layout_of(SLOW, SLOW), delay_s=0.004)
    for _ in range(3):
        world.until(world.now + 1.0)
    for carrier, other, ahead_s in zip(world.carriers, "ba", (AHEAD_S, -AHEAD_S), strict=True):
        now = carrier._now()
        read = carrier._clocks.read(now)[other]
        assert abs(read.offset_s - ahead_s) <= read.error_s <= 0.004 + 3 * MOST_DRIFT
        later = carrier._clocks.read(now + 10)[other]
        assert later.error_s - read.error_s == pytest.approx(10 * MOST_DRIFT)


def test_a_host_that_is_gone_is_told_and_the_others_go_on(world: World):
    layout = layout_of(SLOW, SLOW)
    two_hosts(world, layout, delay_s=0.0)
    a, b = world.carriers
    world.carriers.remove(b)
    b._hosts["a"].tunnel.close()
    world.wires[0]._ends[0][0].close()
    world.wires.clear()
    world.settle()
    world.send(1, packet(layout, 2, 1))
    world.send(1, packet(layout, 0, 2))
    world.until(world.now + 1)
    assert [node for node, _, _ in world.delivered] == [0]
    assert a._channel.lines == [HostGone("b", "it closed the connection")]
    facts = a._closing_facts()
    assert facts["tunnels"]["b"]["gone"] == "it closed the connection"
    assert facts["frames_to_hosts_gone"] == 1


@pytest.mark.parametrize("owner_is_gone", [False, True])
def test_a_host_that_leaves_as_it_should_is_not_told_as_gone(world: World, owner_is_gone: bool):
    two_hosts(world, layout_of(SLOW, SLOW), delay_s=0.0)
    a, b = world.carriers
    b._channel.closed = owner_is_gone
    b._closing_facts()
    world.settle()
    b._hosts["a"].tunnel.close()
    world.wires[0]._ends[0][0].close()
    world.wires.clear()
    world.carriers.remove(b)
    world.until(world.now + 5)
    told = a._closing_facts()["tunnels"]["b"]["gone"]
    assert a._channel.lines == ([HostGone("b", told)] if owner_is_gone else [])
    assert (told is not None) == owner_is_gone


def test_a_silent_host_is_gone_after_three_seconds(world: World):
    layout = layout_of(SLOW, SLOW)
    two_hosts(world, layout, delay_s=0.0)
    for _ in range(10):
        world.until(world.now + 0.5)
    a, b = world.carriers
    assert not a._channel.lines and not b._channel.lines
    assert a._closing_facts()["tunnels"]["b"]["clock_exchanges"] >= 5
    world.carriers.remove(b)
    for _ in range(10):
        world.until(world.now + 0.5)
    (line,) = a._channel.lines
    assert line == HostGone("b", f"no word from it for {tunnels.SILENT_S:g} s")


def test_frames_for_nobody_here_and_more_than_is_held_are_counted(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    layout = layout_of(SLOW, SLOW)
    two_hosts(world, layout, delay_s=0.0)
    monkeypatch.setattr(spanning, "MOST_HELD_BYTES", 0)
    a = world.carriers[0]
    host = a._hosts["b"]
    elsewhere, short_burst = packet(layout, 2, 1), bytearray(packet(layout, 0, 1, size=0)[:30])
    short_burst[1] = 1
    for data in (elsewhere, bytes(short_burst), packet(layout, 0, 1), packet(layout, 0, 2)):
        a._take(host, messages.Frame(world.now + 1, 0.0, data))
    facts = a._closing_facts()
    assert facts["frames_for_no_node_here"] == 2
    assert facts["frames_beyond_what_is_held"] == 1
