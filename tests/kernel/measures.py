"""What is measured of a backend's links: one function a gate, each giving plain numbers.

Every link is shaped by the measure that uses it, on one network of a server and two clients. The
gates themselves are in the tests, which run outside of this kernel.
"""

import itertools
import math
import statistics
import time
from pathlib import Path
from typing import Any

from stations import Station, device_counters, send_stream, take_stream
from traffic import UDP_PORT, Arrival, Flow, burst, echo_ms, rate_kbit, streams

from testbed.links.interface import Backend, Counters
from testbed.network.direction import Direction, GilbertElliott
from testbed.network.profiles import LinkProfile
from testbed.network.topology import Node, plan

SETTLE_S = 0.1
"""A shape is an order to another process; nothing says when it is done."""
SMALL_BYTES = 100
NORMAL_99 = 2.576
Way = tuple[Direction, Direction]
FREE: Way = (Direction(), Direction())


class Bench:
    """A network of a backend: a server and two clients."""

    def __init__(self, backend: Backend, folder: Path) -> None:
        self.folder = folder
        self.name = backend.name
        self.plan = plan([LinkProfile(name="free")] * 2)
        self.network = backend.up(self.plan)
        self.server, self.one, self.other = self.plan.nodes

    def shape(self, one: Way = FREE, other: Way = FREE, server: Way = FREE) -> None:
        """Give all three links new parameters."""
        for node, (up, down) in zip(self.plan.nodes, (server, one, other), strict=True):
            self.network.shape(node, up, down)
        time.sleep(SETTLE_S)

    def counters(self, node: Node) -> tuple[Counters, Counters]:
        return self.network.counters()[node.index]

    def burst(
        self, sender: Node, receiver: Node, count: int, size: int = 1500, gap_s: float = 0.0
    ) -> list[Arrival]:
        return burst(self.network, sender, receiver, count, size, gap_s)

    def round_trips(self, client: Node, server: Node, times: int = 15) -> list[float]:
        return echo_ms(self.network, client, server, times, 0.01)

    def bare(self) -> Any:
        """What the network does without any shape: the most that a shaped link can be held to."""
        self.shape()
        arrivals = self.burst(self.one, self.server, 300)
        return {
            "round_trip_ms": statistics.median(self.round_trips(self.one, self.server)),
            "kbit": rate_kbit(arrivals) if len(arrivals) > 1 else 0.0,
        }


def less(after: Counters, before: Counters) -> dict[str, int]:
    return Counters(*(a - b for a, b in zip(after, before, strict=True)))._asdict()


def rates(bench: Bench) -> Any:
    """Both directions of a link by bursts that the queue holds, with the gaps between packets."""
    up = Direction(rate_kbit=6000, delay_ms=5, queue_ms=400)
    down = Direction(rate_kbit=2000, delay_ms=10, queue_ms=400)
    bench.shape((up, down))
    found: dict[str, Any] = {}
    for way, direction, sender, receiver in (
        ("up", up, bench.one, bench.server),
        ("down", down, bench.server, bench.one),
    ):
        arrivals = [bench.burst(sender, receiver, 60) for _ in range(3)]
        rate = direction.rate_kbit
        assert rate is not None
        off = [_gap_deviation(seen, 8 * 1514 / rate) for seen in arrivals]
        found[way] = {
            "asked_kbit": rate,
            "kbit": statistics.median(rate_kbit(seen) for seen in arrivals),
            "gap_deviation_p95": statistics.median(off),
        }
    return found


def _gap_deviation(arrivals: list[Arrival], gap_ms: float) -> float:
    """95th percentile of how far a gap between packets is from the one that the rate gives."""
    gaps = [b.at_ms - a.at_ms for a, b in itertools.pairwise(arrivals)]
    return sorted(abs(gap - gap_ms) / gap_ms for gap in gaps)[int(0.95 * len(gaps))]


def small_frames(bench: Bench) -> Any:
    """The rate of frames of 100 bytes of IP packet, which counts 14 bytes more of each."""
    bench.shape((Direction(rate_kbit=500, queue_ms=500), Direction(rate_kbit=500, queue_ms=500)))
    return {
        "asked_kbit": 500,
        "up": rate_kbit(bench.burst(bench.one, bench.server, 150, 100), 114),
        "down": rate_kbit(bench.burst(bench.server, bench.one, 150, 100), 114),
    }


def goodput(bench: Bench) -> Any:
    """TCP in each direction, both clients at once and each at its own rate."""
    fast = Direction(rate_kbit=6000, delay_ms=10)
    slow = Direction(rate_kbit=3000, delay_ms=10)
    bench.shape((fast, slow), (slow, fast))
    clients = {"one": bench.one, "other": bench.other}
    up = streams(bench.network, [(client, bench.server) for client in clients.values()])
    down = streams(bench.network, [(bench.server, client) for client in clients.values()])
    asked = {"one up": fast, "other up": slow, "one down": slow, "other down": fast}
    return {
        name: {"ideal_kbit": link.ideal_goodput_kbit, "kbit": kbit}
        for (name, link), kbit in zip(asked.items(), (*up, *down), strict=True)
    }


def round_trip(bench: Bench) -> Any:
    up, down = Direction(rate_kbit=8000, delay_ms=90), Direction(rate_kbit=4000, delay_ms=60)
    bench.shape((up, down))
    return {"asked_ms": 150, "ms": statistics.median(bench.round_trips(bench.one, bench.server))}


def loss(bench: Bench) -> Any:
    """Independent loss, in the direction that the counters call up and the other."""
    count, percent = 10_000, 3.0
    lossy = Direction(loss_percent=percent)
    bench.shape((lossy, FREE[1]))
    before = bench.counters(bench.one)[0]
    expected = count * percent / 100
    allowed = NORMAL_99 * math.sqrt(expected * (1 - percent / 100))
    samples = []
    # One sample in a hundred is outside; two of two are one in ten thousand.
    while len(samples) < 2 and not any(abs(lost - expected) <= allowed for lost in samples):
        samples.append(count - len(bench.burst(bench.one, bench.server, count, SMALL_BYTES)))
    counted = less(bench.counters(bench.one)[0], before)
    return {"samples": samples, "expected": expected, "allowed": allowed, "counted": counted}


def gilbert_elliott(bench: Bench) -> Any:
    count = 6_000
    chain = GilbertElliott(good_to_bad_percent=1, bad_to_good_percent=25, bad_loss_percent=100)
    bench.shape((FREE[0], Direction(gilbert_elliott=chain)))
    arrivals = bench.burst(bench.server, bench.one, count, SMALL_BYTES)
    came = {arrival.number for arrival in arrivals}
    runs, length = [], 0
    for number in range(count + 1):
        if number in came or number == count:
            if length:
                runs.append(length)
            length = 0
        else:
            length += 1
    return {
        "count": count,
        "lost": count - len(came),
        "asked_percent": chain.mean_loss_percent,
        "runs": len(runs),
        "mean_run": statistics.mean(runs),
    }


def jitter(bench: Bench) -> Any:
    """Packets too far apart to push each other, in four lines at once."""
    delay_ms, jitter_ms = 30, 20
    line = Direction(delay_ms=delay_ms, jitter_ms=jitter_ms)
    bench.shape((line, line), (line, line))
    clients = (bench.one, bench.other)
    pairs = [(client, bench.server) for client in clients]
    pairs += [(bench.server, client) for client in clients]
    flows = [
        Flow(bench.network, sender, receiver, UDP_PORT + number)
        for number, (sender, receiver) in enumerate(pairs)
    ]
    for _ in range(90):
        for flow in flows:
            flow.send(1, SMALL_BYTES)
        time.sleep(2.05 * jitter_ms / 1000)
    delays = [arrival.delay_ms for flow in flows for arrival in flow.settle()]
    return {
        "asked_mean_ms": delay_ms,
        "asked_deviation_ms": jitter_ms / math.sqrt(3),
        "mean_ms": statistics.mean(delays),
        "deviation_ms": statistics.stdev(delays),
    }


def order(bench: Bench) -> Any:
    """Packets close together under jitter: on a line with a rate, on one without, and TCP."""
    shaken = {"delay_ms": 15, "jitter_ms": 10}
    bench.shape(
        (Direction(**shaken), Direction(rate_kbit=6000, **shaken)),
        (Direction(rate_kbit=6000, **shaken), FREE[1]),
    )
    bursts = {
        "free": bench.burst(bench.one, bench.server, 300, SMALL_BYTES, 0.001),
        "rated": bench.burst(bench.server, bench.one, 90),
    }
    before = Station(bench.network, bench.other, _sack_reorders).result()
    streams(bench.network, [(bench.other, bench.server)])
    after = Station(bench.network, bench.other, _sack_reorders).result()
    found: dict[str, Any] = {"sack_reorders": after - before}
    for name, arrivals in bursts.items():
        numbers = [arrival.number for arrival in arrivals]
        found[name] = {"came": len(numbers), "in_order": numbers == sorted(numbers)}
    return found


def _sack_reorders(channel: Any) -> int:
    lines = Path("/proc/net/netstat").read_text().splitlines()
    names, values = lines[0].split(), lines[1].split()
    return int(values[names.index("TCPSACKReorder")])


def damage(bench: Bench) -> Any:
    """Reordering, duplicates and corruption, each by itself."""
    count = 1000
    asked = {"reorder_percent": 8.0, "duplicate_percent": 6.0, "corrupt_percent": 5.0}
    found: dict[str, Any] = {"count": count, **asked}
    for field, percent in asked.items():
        bench.shape((Direction(delay_ms=20, **{field: percent}), FREE[1]))
        flow = Flow(bench.network, bench.one, bench.server)
        flow.send(count, 1000, 0.001)
        arrivals = flow.settle()
        intact = [arrival for arrival in arrivals if arrival.intact]
        numbers = [arrival.number for arrival in intact]
        found[field.partition("_")[0]] = {
            "came": len(arrivals),
            "damaged": count - len(set(numbers)),
            "doubled": len(numbers) - len(set(numbers)),
            "early": sum(arrival.delay_ms < 10 for arrival in intact),
            "in_order": numbers == sorted(numbers),
        }
    return found


def queue(bench: Bench) -> Any:
    """The greatest time in a queue that is offered twice what the line carries."""
    link = Direction(rate_kbit=4000, delay_ms=10, queue_ms=200)
    bench.shape((link, FREE[1]))
    before = bench.counters(bench.one)[0]
    count, frame_ms = 350, 8 * 1514 / 4000
    arrivals = bench.burst(bench.one, bench.server, count, 1500, frame_ms / 2000)
    counted = less(bench.counters(bench.one)[0], before)
    waits = [arrival.delay_ms - link.delay_ms - frame_ms for arrival in arrivals]
    dropped = count - len(arrivals)
    return {"asked_ms": 200, "ms": max(waits), "dropped": dropped, "counted": counted}


def drops_apart(bench: Bench) -> Any:
    """A line that loses on purpose and whose queue is full: which is which."""
    count, percent = 1500, 5.0
    bench.shape((FREE[0], Direction(rate_kbit=4000, delay_ms=5, queue_ms=50, loss_percent=percent)))
    before = bench.counters(bench.one)[1]
    arrivals = bench.burst(bench.server, bench.one, count, 1500, 0.0015)
    counted = less(bench.counters(bench.one)[1], before)
    return {"count": count, "percent": percent, "came": len(arrivals), "counted": counted}


def between_clients(bench: Bench) -> Any:
    """The sender's uplink and the receiver's downlink, and nothing of the server's."""
    forbidding = Direction(rate_kbit=100, delay_ms=500)
    bench.shape(
        (Direction(rate_kbit=6000, delay_ms=25, queue_ms=400), Direction(delay_ms=30)),
        (Direction(delay_ms=45), Direction(rate_kbit=3000, delay_ms=50, queue_ms=400)),
        (forbidding, forbidding),
    )
    trips = bench.round_trips(bench.one, bench.other)
    before = bench.counters(bench.server)
    forth = bench.burst(bench.one, bench.other, 80)
    after = bench.counters(bench.server)
    bench.shape(
        (Direction(rate_kbit=3000, delay_ms=3, queue_ms=400), FREE[1]),
        (FREE[0], Direction(rate_kbit=6000, delay_ms=6, queue_ms=400)),
        (forbidding, forbidding),
    )
    return {
        "asked_ms": 25 + 50 + 45 + 30,
        "ms": statistics.median(trips),
        "asked_kbit": 3000,
        "by_downlink_kbit": rate_kbit(forth),
        "by_uplink_kbit": rate_kbit(bench.burst(bench.one, bench.other, 80)),
        "server_untouched": before == after,
    }


def server_link(bench: Bench) -> Any:
    """A server's own profile: its delays add, and both clients share what it receives."""
    far = (Direction(delay_ms=25), Direction(delay_ms=30))
    bench.shape(far, far, (Direction(delay_ms=45), Direction(rate_kbit=4000, delay_ms=50)))
    trips = bench.round_trips(bench.one, bench.server)
    near = (Direction(delay_ms=5), Direction(delay_ms=5))
    bench.shape(near, near, (FREE[0], Direction(rate_kbit=4000, queue_ms=600)))
    pairs = [(bench.one, bench.server), (bench.other, bench.server)]
    return {
        "asked_ms": 25 + 50 + 45 + 30,
        "ms": statistics.median(trips),
        "ideal_kbit": 4000 * 1448 / 1514,
        "kbit": sum(streams(bench.network, pairs)),
    }


def shape_in_flight(bench: Bench) -> Any:
    """What is in the line keeps its times, what comes after has the new ones."""
    slow = Direction(rate_kbit=2000, delay_ms=150, queue_ms=1000)
    fast = Direction(rate_kbit=6000, delay_ms=100, queue_ms=1000)
    bench.shape((slow, FREE[1]))
    flow = Flow(bench.network, bench.one, bench.server)
    flow.send(60)
    bench.network.shape(bench.one, fast, FREE[1])
    time.sleep(SETTLE_S)
    flow.send(60)
    arrivals = flow.settle()
    numbers = [arrival.number for arrival in arrivals]
    delays = [a.delay_ms for a in bench.burst(bench.one, bench.server, 9, SMALL_BYTES, 0.03)]
    return {
        "came": len(arrivals),
        "in_order": numbers == sorted(numbers),
        "before": {"asked_kbit": 2000, "kbit": rate_kbit(arrivals[:60])},
        "after": {"asked_kbit": 6000, "kbit": rate_kbit(arrivals[60:])},
        "asked_ms": 100 + 8 * (SMALL_BYTES + 14) / 6000,
        "ms": statistics.median(delays),
    }


def outage(bench: Bench) -> Any:
    count = 200
    bench.shape((Direction(delay_ms=5, outage=True), FREE[1]))
    before = bench.counters(bench.one)[0]
    during = bench.burst(bench.one, bench.server, count, SMALL_BYTES)
    counted = less(bench.counters(bench.one)[0], before)
    bench.shape((Direction(delay_ms=5), FREE[1]))
    after = bench.burst(bench.one, bench.server, count, SMALL_BYTES)
    return {"count": count, "during": len(during), "after": len(after), "counted": counted}


def trace(bench: Bench) -> Any:
    """A second of 2 Mbit/s and one of 6, over and over, under a full queue."""
    slow, fast, path = 2000, 6000, bench.folder / "steps.trace"
    chances, owed = [], 0.0
    for ms in range(1, 2001):
        owed += (slow if ms <= 1000 else fast) / (8 * 1500)
        chances += [str(ms)] * int(owed)
        owed -= int(owed)
    path.write_text("\n".join(chances) + "\n")
    link = Direction(trace=str(path), delay_ms=10, queue_ms=200)
    count = 4300
    bench.shape()
    before = bench.counters(bench.one)[0]
    flow = Flow(bench.network, bench.one, bench.server)
    bench.network.shape(bench.one, link, FREE[1])
    began_ms = time.time_ns() / 1e6
    flow.send(count, 1500, 0.0012)
    flow.settle()
    arrivals = [arrival.at_ms - began_ms for arrival in flow.arrivals]

    def kbit(from_ms: float, to_ms: float) -> float:
        return 8 * 1500 * sum(from_ms <= at < to_ms for at in arrivals) / (to_ms - from_ms)

    return {
        "mean": {"asked_kbit": (slow + fast) / 2, "kbit": kbit(1000, 5000)},
        "slow": {"asked_kbit": slow, "kbit": kbit(2200, 2900)},
        "fast": {"asked_kbit": fast, "kbit": kbit(3200, 3900)},
        "dropped": count - len(arrivals),
        "counted": less(bench.counters(bench.one)[0], before),
        "failure": bench.network.failure(),
    }


def counters(bench: Bench) -> Any:
    """Against what was sent, and against what the node's own device says."""
    bench.shape((Direction(rate_kbit=8000, delay_ms=2), Direction(rate_kbit=8000, delay_ms=2)))
    before = bench.counters(bench.one)
    sent = {"up": (300, 700), "down": (200, 400)}
    bench.burst(bench.one, bench.server, *sent["up"], 0.001)
    bench.burst(bench.server, bench.one, *sent["down"], 0.001)
    datagrams = [less(a, b) for a, b in zip(bench.counters(bench.one), before, strict=True)]
    before = bench.counters(bench.one)
    size = 400_000
    taking = Station(bench.network, bench.server, take_stream(bench.server.address)).ready()
    sending = Station(bench.network, bench.one, send_stream(bench.server.address, bytes(size)))
    taking.result(), sending.result()
    time.sleep(SETTLE_S)
    stream = less(bench.counters(bench.one)[0], before[0])
    device = Station(bench.network, bench.one, device_counters).result()
    return {
        "sent": sent,
        "up": datagrams[0],
        "down": datagrams[1],
        "stream": {"payload": size, **stream},
        "counted": [list(way[:2]) for way in bench.counters(bench.one)],
        "device": device,
    }
