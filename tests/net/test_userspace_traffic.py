"""What crosses userspace links: intact, no faster than asked, late enough, and counted exactly."""

import hashlib
import random

import pytest
from stations import (
    ask,
    blast,
    collect,
    echo,
    ping,
    send_stream,
    take_stream,
)

from testbed.network.direction import FRAME_BYTES, Direction
from testbed.network.profiles import LinkProfile

UNLIMITED = LinkProfile(name="unlimited")
SETTLE_S = 20.0
MOST_PAYLOAD_BYTES = 1460
"""Of one frame: no TCP connection packs more."""


def profile(up: Direction, down: Direction | None = None) -> LinkProfile:
    return LinkProfile(name="test", up=up, down=down or Direction())


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def least_seconds(payload_bytes: int, rate_kbit: float) -> float:
    """What a line of that rate needs for the payload with its headers."""
    return payload_bytes * FRAME_BYTES / MOST_PAYLOAD_BYTES * 8 / (1000 * rate_kbit)


@pytest.fixture
def delivered(stand, until):
    """``delivered(network, plan, sender, receiver, blast)``: what arrived of a burst of UDP."""

    def deliver(network, sender, receiver, count, size, gap_s=0.0):
        there = stand(network, receiver, collect(receiver.address)).ready()
        stand(network, sender, blast(receiver.address, count, size, gap_s)).result()

        def settled():
            counted = network.counters()
            up, down = counted[sender.index].up, counted[receiver.index].down
            drops = sum(c.queue_drops + c.losses for c in (up, down))
            return up.frames == count and down.frames + drops == count

        until(settled, "every packet is delivered or dropped", SETTLE_S)
        there.stop()
        return there.result()

    return deliver


def test_tcp_arrives_intact_both_ways(build, stand):
    layout, network = build(profile(Direction(rate_kbit=50_000, delay_ms=2)))
    server, client = layout.nodes
    sent, answer = (random.Random(seed).randbytes(1_000_001) for seed in (1, 2))
    taking = stand(network, server, take_stream(server.address, answer)).ready()
    sending = stand(network, client, send_stream(server.address, sent))
    assert taking.result()["sha256"] == digest(sent)
    assert sending.result()["sha256"] == digest(answer)


def test_the_congestion_control_in_use_is_the_one_that_is_named(build, stand):
    layout, network = build(UNLIMITED)
    server, client = layout.nodes
    stand(network, server, take_stream(server.address)).ready()
    used = stand(network, client, send_stream(server.address, b"x")).result()["congestion"]
    assert used == network.facts["congestion_default"]


@pytest.mark.parametrize("way", ["up", "down"])
def test_no_direction_is_faster_than_its_rate(build, stand, way):
    size, rate_kbit, delay_ms = 300_000, 4000, 10
    limited = Direction(rate_kbit=rate_kbit, delay_ms=delay_ms)
    layout, network = build(LinkProfile(name="test", **{way: limited}))
    server, client = layout.nodes
    sender, receiver = (client, server) if way == "up" else (server, client)
    taking = stand(network, receiver, take_stream(receiver.address)).ready()
    sending = stand(network, sender, send_stream(receiver.address, bytes(size)))
    took, gave = taking.result(), sending.result()
    assert took["bytes"] == size
    seconds = took["ended_s"] - gave["began_s"]
    assert seconds >= least_seconds(size, rate_kbit) + delay_ms / 1000
    assert seconds < 30
    up, down = network.counters()[client.index]
    assert min(up.frames, down.frames) > 0
    assert (up if way == "up" else down).bytes > size * FRAME_BYTES / MOST_PAYLOAD_BYTES


def test_an_idle_round_trip_takes_the_delays_of_both_directions(build, stand):
    layout, network = build(profile(Direction(delay_ms=17), Direction(delay_ms=25)))
    server, client = layout.nodes
    stand(network, server, echo(server.address)).ready()
    trips = stand(network, client, ping(server.address, 15)).result()
    assert min(trips) >= 42
    assert min(trips) < 42 + 8


def test_the_servers_own_link_is_shared_and_adds_its_delays(build, stand):
    size, rate_kbit = 150_000, 4000
    narrow = profile(Direction(delay_ms=3), Direction(rate_kbit=rate_kbit, delay_ms=4))
    layout, network = build(
        profile(Direction(delay_ms=5), Direction(delay_ms=6)), UNLIMITED, server=narrow
    )
    server, near, far = (layout.server, layout.clients[1], layout.clients[0])
    stand(network, server, echo(server.address)).ready()
    assert min(stand(network, far, ping(server.address, 10)).result()) >= 3 + 4 + 5 + 6
    taking = [stand(network, server, take_stream(server.address, port=p)).ready() for p in (1, 2)]
    sending = [
        stand(network, client, send_stream(server.address, bytes(size), port=p))
        for client, p in ((near, 1), (far, 2))
    ]
    began = min(station.result()["began_s"] for station in sending)
    ended = max(station.result()["ended_s"] for station in taking)
    assert ended - began >= least_seconds(2 * size, rate_kbit)


def test_between_clients_both_access_links_count(build, stand):
    size = 200_000
    first = profile(Direction(rate_kbit=8000, delay_ms=3), Direction(delay_ms=4))
    second = profile(Direction(delay_ms=5), Direction(rate_kbit=3000, delay_ms=6))
    layout, network = build(first, second)
    server, one, other = layout.nodes
    stand(network, other, echo(other.address)).ready()
    assert min(stand(network, one, ping(other.address, 10)).result()) >= 3 + 4 + 5 + 6
    for sender, receiver, rate_kbit in ((one, other, 3000), (other, one, None)):
        before = network.counters()
        taking = stand(network, receiver, take_stream(receiver.address)).ready()
        sending = stand(network, sender, send_stream(receiver.address, bytes(size)))
        seconds = taking.result()["ended_s"] - sending.result()["began_s"]
        assert seconds >= (least_seconds(size, rate_kbit) if rate_kbit else 0)
        after = network.counters()
        assert after[sender.index].up.bytes - before[sender.index].up.bytes > size
        assert after[receiver.index].down.bytes - before[receiver.index].down.bytes > size
    assert all(sum(counters) == 0 for counters in network.counters()[server.index])


def test_loss_has_its_share_and_the_same_packets_each_time(build, delivered):
    # The queue has room for all, and the rate leaves the receiver time to read.
    lossy = profile(Direction(rate_kbit=20_000, loss_percent=10, queue_ms=5000))
    count, runs = 2000, []
    for _ in range(2):
        layout, network = build(lossy)
        server, client = layout.nodes
        runs.append([number for number, _ in delivered(network, client, server, count, 200)])
        up = network.counters()[client.index].up
        assert (up.losses, up.queue_drops) == (count - len(runs[-1]), 0)
        # 10 % of 2000 with a standard deviation of 13.4.
        assert 140 < up.losses < 260
    assert runs[0] == runs[1]
    assert runs[0] == sorted(runs[0])


def test_a_full_queue_drops_what_is_beyond_its_limit(build, delivered):
    narrow = Direction(rate_kbit=1000, queue_ms=200)
    limit, count = narrow.limit_packets, 300
    layout, network = build(profile(narrow))
    server, client = layout.nodes
    arrived = delivered(network, client, server, count, 1500)
    up = network.counters()[client.index].up
    assert up.queue_drops == count - len(arrived) > 0
    assert [number for number, _ in arrived[:limit]] == list(range(limit))
    # The last that was let in waited for those before it.
    frame_ms = 8 * FRAME_BYTES / 1000
    assert arrived[limit - 1][1] >= limit * frame_ms - 1000


def test_jitter_spreads_delays_and_never_reorders(build, delivered):
    layout, network = build(profile(Direction(delay_ms=20, jitter_ms=15)))
    server, client = layout.nodes
    arrived = delivered(network, client, server, 300, 200, gap_s=0.003)
    assert [number for number, _ in arrived] == list(range(300))
    delays = [delay for _, delay in arrived]
    assert min(delays) >= 20 - 15
    assert max(delays) - min(delays) > 15


def test_a_link_takes_a_new_shape_while_it_carries(build, stand, until):
    layout, network = build(profile(Direction(delay_ms=5)))
    server, client = layout.nodes
    stand(network, server, echo(server.address)).ready()

    def quickest():
        return min(stand(network, client, ping(server.address, 5)).result())

    assert 5 <= quickest() < 60
    network.shape(client, Direction(delay_ms=60), Direction(delay_ms=40))
    until(lambda: quickest() >= 100, "round trips of 100 ms", SETTLE_S)
    network.shape(client, Direction(delay_ms=5), Direction())
    until(lambda: quickest() < 60, "round trips of 5 ms again", SETTLE_S)


def test_networks_beside_each_other_do_not_meet(build, stand):
    networks = [build(UNLIMITED) for _ in range(2)]
    for name, (layout, network) in zip((b"one", b"two"), networks, strict=True):
        stand(network, layout.server, echo(layout.server.address, name)).ready()
    for name, (layout, network) in zip(("one", "two"), networks, strict=True):
        client = layout.clients[0]
        assert stand(network, client, ask(layout.server.address)).result() == name
