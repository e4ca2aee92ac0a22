"""Impairments of real packets: twice, corrupt, ahead of others, lost in bursts, held by a trace."""

import hashlib
import itertools
import random
import select
import socket
import time

import pytest
from stations import (
    PORT,
    READY,
    blast,
    collect,
    echo,
    ping,
    protocol_counters,
    send_stream,
    take_stream,
)

from testbed.network.direction import Direction, GilbertElliott
from testbed.network.profiles import LinkProfile

SETTLE_S = 20.0
ETH_P_IP = 0x0800
SHARE = 0.95
"""Of corrupt packets that reach a device at least: one whose IP version is corrupt does not."""


def profile(up: Direction, down: Direction | None = None) -> LinkProfile:
    return LinkProfile(name="test", up=up, down=down or Direction())


@pytest.fixture
def arrived(stand, until):
    """``arrived(network, sender, receiver, count, size, gap_s, frames)``: [number, delay in ms] of
    each datagram that arrived, once ``frames`` of them have been delivered or dropped."""

    def deliver(network, sender, receiver, count, size, gap_s=0.0, frames=None):
        there = stand(network, receiver, collect(receiver.address)).ready()
        stand(network, sender, blast(receiver.address, count, size, gap_s)).result()

        def settled():
            up, down = network.counters()[sender.index].up, network.counters()[receiver.index].down
            drops = sum(way.queue_drops + way.losses for way in (up, down))
            return up.frames == count and down.frames + drops == (frames or count)

        until(settled, "every packet is delivered or dropped", SETTLE_S)
        there.stop()
        return there.result()

    return deliver


def test_duplicates_arrive_twice(build, arrived):
    layout, network = build(profile(Direction(delay_ms=2, duplicate_percent=100)))
    server, client = layout.nodes
    found = arrived(network, client, server, 100, 200, frames=200)
    assert [number for number, _ in found] == [number for number in range(100) for _ in range(2)]
    up, down = network.counters()[client.index].up, network.counters()[server.index].down
    assert (up.frames, down.frames, up.bytes, down.bytes) == (100, 200, 21_400, 42_800)


def test_reordered_packets_skip_the_delay_and_arrive_first(build, arrived):
    layout, network = build(profile(Direction(delay_ms=200, reorder_percent=30)))
    server, client = layout.nodes
    found = arrived(network, client, server, 200, 200)
    assert sorted(number for number, _ in found) == list(range(200))
    ahead = [number for number, delay in found if delay < 200]
    # 30 % of 200 with a standard deviation of 6.5.
    assert 35 < len(ahead) < 85
    assert [number for number, _ in found[: len(ahead)]] == ahead == sorted(ahead)
    behind = [number for number, _ in found[len(ahead) :]]
    assert behind == sorted(behind)


def test_losses_of_a_gilbert_elliott_line_come_in_bursts(build, arrived):
    chain = GilbertElliott(good_to_bad_percent=2, bad_to_good_percent=20)
    layout, network = build(profile(Direction(gilbert_elliott=chain)))
    server, client = layout.nodes
    count = 4000
    found = {number for number, _ in arrived(network, client, server, count, 100)}
    lost = [number not in found for number in range(count)]
    assert network.counters()[client.index].up.losses == sum(lost)
    # 9.1 %, with a standard deviation of 1.4 %; bursts of 5, with one of 0.55.
    assert 0.04 < sum(lost) / count < 0.14
    bursts = [len(list(run)) for was_lost, run in itertools.groupby(lost) if was_lost]
    assert 3 < sum(bursts) / len(bursts) < 7


def taken_raw(channel):
    """Every IPv4 packet as wire0 gets it, as hex, until told to stop."""
    found = []
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IP)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, 33, 1 << 23)  # SO_RCVBUFFORCE
        channel.send(READY)
        while channel not in select.select([channel, sock], [], [])[0]:
            found.append(sock.recv(2048).hex())
        sock.setblocking(False)
        while True:
            try:
                found.append(sock.recv(2048).hex())
            except BlockingIOError:
                return found


def test_a_corrupt_packet_differs_in_one_bit_and_the_kernel_drops_it(build, stand, until):
    count, size = 300, 400
    layout, network = build(profile(Direction(), Direction(corrupt_percent=100)))
    server, client = layout.nodes
    raw = stand(network, client, taken_raw).ready()
    there = stand(network, client, collect(client.address)).ready()
    stand(network, server, blast(client.address, count, size)).result()
    until(
        lambda: network.counters()[client.index].down.frames >= SHARE * count,
        "nearly all are delivered",
        SETTLE_S,
    )
    counted = stand(network, client, protocol_counters("Udp")).result()
    there.stop()
    raw.stop()
    assert there.result() == []
    packets = [bytes.fromhex(packet) for packet in raw.result()]
    assert len(packets) >= SHARE * count
    # The filling is zeros, and the first 40 bytes are headers and the stamp.
    set_bits = [int.from_bytes(packet[40:], "big").bit_count() for packet in packets]
    assert set(set_bits) == {0, 1}
    assert sum(set_bits) > 0.8 * len(packets)
    assert counted["InCsumErrors"] > 0.8 * count
    assert counted["InDatagrams"] == 0


def test_a_stream_survives_corruption(build, stand):
    corrupt = Direction(rate_kbit=20_000, delay_ms=2, corrupt_percent=5)
    layout, network = build(profile(corrupt, corrupt))
    server, client = layout.nodes
    data = random.Random(1).randbytes(500_000)
    digest = hashlib.sha256(data).hexdigest()
    taking = stand(network, server, take_stream(server.address, data)).ready()
    sending = stand(network, client, send_stream(server.address, data))
    assert taking.result()["sha256"] == sending.result()["sha256"] == digest
    # Of 345 segments each way 17 are corrupt, with a standard deviation of 4; what is corrupt in
    # its IP header is no segment.
    for node in layout.nodes:
        counted = stand(network, node, protocol_counters("Tcp")).result()
        assert counted["InCsumErrors"] > 0
        assert counted["RetransSegs"] > 0


def arrival_times(address, count):
    """Arrivals of ``count`` datagrams, in ms since the first."""

    def body(channel):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((address, PORT))
            sock.settimeout(SETTLE_S)
            channel.send(READY)
            found = []
            for _ in range(count):
                sock.recv(2048)
                found.append(time.monotonic())
        return [1000 * (at - found[0]) for at in found]

    return body


def test_a_trace_holds_packets_for_its_opportunities(build, stand, tmp_path):
    path = tmp_path / "trace"
    # Five at once every 50 ms: 1.2 Mbit/s, where the packets themselves come at once.
    path.write_text("50\n" * 5)
    layout, network = build(profile(Direction(trace=str(path), delay_ms=1, queue_ms=5000)))
    server, client = layout.nodes
    count, periods = 100, 19
    there = stand(network, server, arrival_times(server.address, count)).ready()
    stand(network, client, blast(server.address, count, 1500)).result()
    found = there.result()
    # Only the lateness of the first can make the time from it shorter.
    assert found[-1] > 50 * periods - 200
    assert found[-1] < 50 * periods + 1000
    pauses = sum(after - before > 20 for before, after in itertools.pairwise(found))
    assert periods / 2 < pauses <= periods + 3


def test_an_outage_loses_all_until_it_ends(build, stand, until):
    layout, network = build(profile(Direction(delay_ms=1)))
    server, client = layout.nodes
    stand(network, server, echo(server.address)).ready()
    stand(network, client, ping(server.address, 1)).result()
    network.shape(client, Direction(outage=True), Direction())

    def lost():
        stand(network, client, blast(server.address, 5, 100)).result()
        return network.counters()[client.index].up.losses

    until(lost, "packets are lost", SETTLE_S)
    before = network.counters()
    stand(network, client, blast(server.address, 50, 100)).result()
    until(
        lambda: network.counters()[client.index].up.losses - before[client.index].up.losses == 50,
        "all are lost and counted",
        SETTLE_S,
    )
    assert network.counters()[server.index].down.frames == before[server.index].down.frames
    asking = stand(network, client, ask_until_answered(server.address))
    network.shape(client, Direction(delay_ms=1), Direction())
    assert asking.result() == ""


def ask_until_answered(address):
    def body(channel):
        deadline = time.monotonic() + SETTLE_S
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(0.05)
            while time.monotonic() < deadline:
                sock.sendto(b"", (address, PORT))
                try:
                    return sock.recv(100).decode()
                except TimeoutError:
                    continue
        raise AssertionError("no answer")

    return body
