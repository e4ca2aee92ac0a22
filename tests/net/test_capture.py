"""Captures on real links: every packet with its bytes, as an independent reader counts them."""

import hashlib
import os
import random
import signal
import socket
import time
from itertools import accumulate
from types import SimpleNamespace

import captured
import pytest
from stations import LIMIT_S, PORT, READY, blast, collect, send_stream, take_stream

from testbed.links.interface import Endpoint, LinkError
from testbed.links.linux import namespaces
from testbed.metering import capture, pcap, retransmissions
from testbed.metering.capture import Capture, in_folder, unused
from testbed.network.direction import Direction
from testbed.network.profiles import LinkProfile
from testbed.network.topology import SUBNET, plan
from testbed.processes.channel import Channel, ChannelClosed
from testbed.processes.child import Child
from testbed.processes.worker import Stop

CLEAR = LinkProfile(name="clear")
LOSSY = LinkProfile(
    name="lossy",
    up=Direction(rate_kbit=50_000, delay_ms=2, loss_percent=1),
    down=Direction(rate_kbit=50_000, delay_ms=2, loss_percent=1),
)
STAMPS_NS = 100_000
"""What cores may be out of step by, and be held up between a packet's stamp and its place."""
QUIET_S = 0.3
"""Longer than TCP waits before it sends something again."""
SENT, ANSWER = (random.Random(seed).randbytes(1_500_001) for seed in (1, 2))


@pytest.fixture
def capturing(tmp_path):
    """``capturing(plan, network)``: a capture that has started, which ends with the test."""
    owned = []

    def make(layout, network):
        owned.append(Capture(layout.clients, network, in_folder(unused(tmp_path))))
        owned[-1].start()
        return owned[-1]

    yield make
    for one in owned:
        one.close()


def _read(connection, size):
    connection.settimeout(LIMIT_S)
    found = b""
    while len(found) < size:
        data = connection.recv(1 << 16)
        assert data, "the other end has closed"
        found += data
    return hashlib.sha256(found).hexdigest()


def answering(address):
    """Take SENT and return ANSWER on each of two connections; what was sent again, by peer."""

    def body(channel):
        with socket.create_server((address, PORT)) as listener:
            listener.settimeout(LIMIT_S)
            channel.send(READY)
            connections = [listener.accept()[0] for _ in range(2)]
            for connection in connections:
                _read(connection, len(SENT))
                connection.sendall(ANSWER)
            channel.receive(LIMIT_S)
            found = retransmissions.by_peer()
            for connection in connections:
                connection.close()
        return found

    return body


def asking(address):
    """Send SENT, take ANSWER; what was sent again, by peer."""

    def body(channel):
        with socket.create_connection((address, PORT), LIMIT_S) as connection:
            connection.sendall(SENT)
            digest = _read(connection, len(ANSWER))
            time.sleep(QUIET_S)
            return {"digest": digest, "resent": retransmissions.by_peer()}

    return body


@pytest.fixture
def exchanged(build, stand, capturing, until, tmp_path):
    """Two clients' exchanges with the server over lossy links, captured."""
    layout, network = build(LOSSY, LOSSY)
    one = capturing(layout, network)
    server = stand(network, layout.server, answering(layout.server.address)).ready()
    asked = [stand(network, node, asking(layout.server.address)) for node in layout.clients]
    results = [station.result() for station in asked]
    server.stop()
    resent = server.result()
    seen, since_s = None, time.monotonic()

    def quiet():
        nonlocal seen, since_s
        if network.counters() != seen:
            seen, since_s = network.counters(), time.monotonic()
        return time.monotonic() - since_s > QUIET_S

    until(quiet, "nothing more is sent", LIMIT_S)
    ended = one.stop()
    files = [captured.read(tmp_path / "captures" / f"{n.name}.pcap") for n in layout.clients]
    return layout, network, ended, files, results, resent


def test_a_capture_has_all_that_crossed_each_interface(exchanged):
    layout, network, ended, files, results, resent = exchanged
    assert ended.failure is None and ended.dropped == [0, 0]
    assert ended.packets == [len(packets) for packets in files]
    for node, packets, result in zip(layout.clients, files, results, strict=True):
        # 1. Frames and bytes are those of the links' own counters, by client and direction.
        counted = network.counters()[node.index]
        found = captured.wire(packets, node.address)
        assert found["up"] == (counted.up.frames, counted.up.bytes)
        assert found["down"] == (counted.down.frames, counted.down.bytes)
        # 2. They are packets of a wire, and what TCP carried is in them.
        assert max(len(packet.data) for packet in packets) <= 1500
        assert all(captured.checksums_hold(packet) for packet in packets)
        assert captured.stream(packets, node.address) == SENT
        assert captured.stream(packets, layout.server.address) == ANSWER
        assert result["digest"] == hashlib.sha256(ANSWER).hexdigest()
        times = [packet.time_ns for packet in packets]
        # Cores that stamp at the same time are not in step to the last nanosecond.
        latest = accumulate(times, max)
        assert all(most - STAMPS_NS <= own for own, most in zip(times, latest, strict=True))
        assert 0 <= time.time_ns() - times[-1] < 60e9
        # 3. What the kernel says it has sent again is there once more.
        again = captured.sent_again(packets, node.address)
        assert list(result["resent"]) == [layout.server.address]
        segments, payload_bytes = result["resent"][layout.server.address]
        assert payload_bytes == again[1] > 0
        # Of a segment that is sent again in two pieces the kernel counts one.
        assert 0.8 * again[0] <= segments <= again[0]
    # 4. The server tells its clients apart; not all that it sent again came to be captured.
    assert resent.keys() == {node.address for node in layout.clients}
    for node in layout.clients:
        lost = 1500 * (network.counters()[node.index].down.losses)
        assert 0 < resent[node.address][1] <= lost + 100_000


@pytest.fixture
def veth(root):
    """A plan, and a network of its two nodes joined by a veth pair with its offloads on."""
    layout = plan([CLEAR])
    ours, theirs = Channel.pair()

    def make():
        from pyroute2 import IPRoute

        made = [namespaces.enter_new_node_namespace() for _ in layout.nodes]
        ends = {"ifname": namespaces.INTERFACE, "address": "02:00:00:00:00:01"}
        with IPRoute() as route:
            route.link("add", kind="veth", peer={**ends, "net_ns_fd": made[0]}, **ends)
        for node, one in zip(layout.nodes, made, strict=True):
            namespaces.enter((one,))
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
                flags = namespaces.IFF_UP | namespaces.IFF_NOARP
                namespaces.set_flags(control, namespaces.INTERFACE, flags)
                namespaces.set_address(control, node.address, SUBNET.prefixlen)
        theirs.send({"made": True}, tuple(made))

    child = Child("veth", make)
    theirs.close()
    try:
        ours.receive(LIMIT_S)
    except ChannelClosed:
        pytest.skip("this kernel has no veth")
    finally:
        child.wait(LIMIT_S)
    made = [(ours.descriptors.popleft(),) for _ in layout.nodes]
    endpoints = [Endpoint(one, layout.server.address, PORT) for one in made]
    yield layout, SimpleNamespace(endpoint=lambda node: endpoints[node.index])
    for (descriptor,) in made:
        os.close(descriptor)
    ours.close()


def test_ethernet_headers_are_taken_off_and_bursts_cut_there_too(veth, stand, capturing, tmp_path):
    layout, network = veth
    server, client = layout.nodes
    one = capturing(layout, network)
    data = SENT[:200_001]
    taking = stand(network, server, take_stream(server.address)).ready()
    stand(network, client, send_stream(server.address, data)).result()
    assert taking.result()["bytes"] == len(data)
    assert one.stop().failure is None
    packets = captured.read(tmp_path / "captures/client-1.pcap")
    assert captured.stream(packets, client.address) == data
    assert max(len(packet.data) for packet in packets) == 1500
    assert all(captured.checksums_hold(packet) for packet in packets)


@pytest.mark.parametrize("fits", [True, False])
def test_what_was_seen_before_the_end_is_written_or_counted(
    build, stand, capturing, until, tmp_path, monkeypatch, fits
):
    if not fits:
        monkeypatch.setattr(capture, "BUFFER_BYTES", 1 << 14)
    layout, network = build(CLEAR)
    server, client = layout.nodes
    one = capturing(layout, network)
    there = stand(network, server, collect(server.address)).ready()
    os.kill(one._worker.child.pid, signal.SIGSTOP)
    stand(network, client, blast(server.address, 300, 1000)).result()
    until(lambda: network.counters()[1].up.frames == 300, "all are sent", LIMIT_S)
    one._worker.channel.send(Stop())
    os.kill(one._worker.child.pid, signal.SIGCONT)
    there.stop()
    ended = one.stop()
    assert (ended.packets[0] == 300) is fits
    assert ended.packets[0] > 0
    assert ended.packets[0] + ended.dropped[0] == 300
    assert len(captured.read(tmp_path / "captures/client-1.pcap")) == ended.packets[0]


def test_a_full_disk_ends_a_capture_and_not_the_run(build, capturing, stand, until, monkeypatch):
    def full(self, time_ns, packet):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pcap.Writer, "write", full)
    layout, network = build(CLEAR)
    one = capturing(layout, network)
    stand(network, layout.clients[0], blast(layout.server.address, 3, 100)).result()
    assert one.stop().failure == "write captures: No space left on device"


def test_a_capturing_process_that_dies_is_no_silent_loss(build, capturing):
    one = capturing(*build(CLEAR))
    os.kill(one._worker.child.pid, signal.SIGKILL)
    assert "did not end well" in one.stop().failure
    one.close()


def test_a_capturing_process_whose_run_is_gone_ends_without_complaint(build, capturing):
    one = capturing(*build(LOSSY))
    one._worker.channel.close()
    assert one._worker.child.wait(LIMIT_S)
    assert one._worker.child.exit_status == 0


def test_a_capture_that_cannot_begin_says_why(build, tmp_path):
    layout, network = build(CLEAR)
    one = Capture(layout.clients, network, in_folder(tmp_path / "nowhere" / "captures"))
    with pytest.raises(LinkError, match=r"capture packets: client-1: .*No such file"):
        one.start()
    one.close()


def test_outside_a_nodes_namespace_nobody_is_told_what_was_sent_again():
    assert retransmissions.by_peer() is None
