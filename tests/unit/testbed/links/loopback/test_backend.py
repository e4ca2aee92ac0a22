"""The loopback relay: whole streams, each over its own link, and every way to end.

Times are held against bounds that no machine can beat (a line is never faster than its rate or
its delay); only generous limits stand against slowness.
"""

import asyncio
import contextlib
import errno
import os
import select
import socket
import time

import pytest
from relayed import (
    BLOCK,
    LIMIT_S,
    Bench,
    carry,
    echo_s,
    fill,
    line_s,
    link,
    noise,
    rate,
    read_all,
    reset,
)

from testbed.links.interface import LinkError
from testbed.links.loopback import backend as loopback
from testbed.links.loopback import listeners
from testbed.network.direction import Direction
from testbed.network.topology import Node, Plan
from testbed.transport.sockets import ClientTransport, ServerTransport


@pytest.fixture
def bench():
    with contextlib.ExitStack() as stack:
        yield lambda *clients, server=None: Bench(stack, clients, server)


# Streams


def test_streams_arrive_whole_both_ways_at_once(bench):
    b = bench(link(), link())
    (client, server), (other, other_server) = b.connect(1), b.connect(2)
    jobs = [(client, server), (server, client), (other, other_server), (other_server, other)]
    carry(*[(a, noise(3_000_000, seed), z) for seed, (a, z) in enumerate(jobs)])


def test_jitter_and_small_queues_neither_reorder_nor_lose(bench):
    up = rate(40, delay_ms=5, jitter_ms=5, queue_ms=0.1)
    b = bench(link(up, up), link(up, up), server=link(rate(50, queue_ms=0.1), rate(50)))
    (client, server), (other, other_server) = b.connect(1), b.connect(2)
    carry(
        (client, noise(200_000, 1), server),
        (other, noise(200_000, 2), other_server),
        (other_server, noise(200_000, 3), other),
    )


def test_each_client_and_direction_has_its_own_rate(bench):
    b = bench(link(rate(8), rate(4)), link(rate(2)))
    (client, server), (other, other_server) = b.connect(1), b.connect(2)
    payload = noise(100_000)
    times = carry(
        (client, payload, server), (server, payload, client), (other, payload, other_server)
    )
    for seconds, mbit in zip(times, (8, 4, 2), strict=True):
        assert line_s(100_000, mbit) <= seconds < line_s(100_000, mbit) + 5
    assert carry((other_server, noise(2_000_000), other))[0] < line_s(2_000_000, 2)


def test_clients_share_the_servers_link(bench):
    b = bench(link(), link(), server=link(up=rate(8), down=rate(4)))
    (client, server), (other, other_server) = b.connect(1), b.connect(2)
    payload = noise(60_000)
    assert max(carry((client, payload, server), (other, payload, other_server))) >= line_s(
        120_000, 4
    )
    seconds = max(carry((server, payload, client), (other_server, payload, other)))
    assert line_s(120_000, 8) <= seconds < line_s(120_000, 8) + 5


def test_nothing_is_faster_than_the_delay(bench):
    b = bench(
        link(Direction(delay_ms=20), Direction(delay_ms=40)),
        server=link(Direction(delay_ms=5), Direction(delay_ms=10)),
    )
    client, server = b.connect()
    for _ in range(3):
        assert 0.030 <= carry((client, b"x", server))[0] < 5
        assert 0.045 <= carry((server, b"x", client))[0] < 5


# Room


def test_a_receiver_that_does_not_read_holds_its_sender_back(bench):
    b = bench(link())
    client, server = b.connect()
    sent = fill(client)
    client.shutdown(socket.SHUT_WR)
    whole, rest = divmod(sent, len(BLOCK))
    assert read_all(server) == BLOCK * whole + BLOCK[:rest]


def test_a_full_queue_holds_its_sender_back(bench):
    shape = rate(1, delay_ms=100, queue_ms=100)
    b = bench(link(shape))
    client, server = b.connect()
    client.setblocking(False)
    client.send(noise(1 << 18))
    most = 0
    for _ in range(10):
        assert server.recv(1 << 16)
        nodes = b.network.counters()
        most = max(most, nodes[1].up.frames - nodes[0].down.frames)
    # A frame or two may arrive while the counters are read.
    assert shape.limit_packets - 3 <= most <= shape.limit_packets + 3


# Counters


def test_counters_add_up_to_what_was_sent(bench):
    b = bench(link(rate(20)), link())
    (client, server), (other, other_server) = b.connect(1), b.connect(2)
    carry((client, noise(100_000), server))
    up, down = b.counters(1)
    # 70 frames if each were full; what was read in pieces is more.
    assert 70 <= up.frames <= 90
    assert up.bytes == 100_000 + 66 * up.frames
    assert (down.frames, down.bytes) == (up.frames // 2, 66 * (up.frames // 2))
    assert b.counters(0) == (down, up), "the server alone has seen what its client did"
    assert b.counters(2).up.frames == 0
    carry((other_server, noise(50_000), other))
    up, down = b.counters(2)
    assert down.bytes == 50_000 + 66 * down.frames
    assert up.frames == down.frames // 2
    for way in ("up", "down"):
        across = "down" if way == "up" else "up"
        total = sum(getattr(b.counters(node), way).bytes for node in (1, 2))
        assert total == getattr(b.counters(0), across).bytes


# Ends


def test_a_half_close_leaves_the_other_half_open(bench):
    b = bench(link(Direction(delay_ms=5), Direction(delay_ms=5)))
    client, server = b.connect()
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    assert read_all(server) == b"question"
    server.sendall(b"answer")
    server.close()
    assert read_all(client) == b"answer"


def test_a_client_that_closes_is_seen_after_its_last_byte(bench):
    b = bench(link(rate(4, delay_ms=20)))
    client, server = b.connect()
    start = time.monotonic()
    client.sendall(noise(50_000))
    client.close()
    assert read_all(server) == noise(50_000)
    assert time.monotonic() - start >= line_s(50_000, 4) + 0.020


@pytest.mark.parametrize("who", [0, 1])
def test_a_reset_is_passed_on(bench, who):
    b = bench(link(Direction(delay_ms=5), Direction(delay_ms=5)))
    ends = b.connect()
    carry((ends[0], b"x", ends[1]), (ends[1], b"y", ends[0]))
    reset(ends[who])
    with pytest.raises(ConnectionResetError):
        ends[1 - who].recv(1)


def test_a_sender_learns_that_its_receiver_is_gone(bench):
    b = bench(link())
    client, server = b.connect()
    server.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""
    server.close()
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        while select.select([], [client], [], LIMIT_S)[1]:
            client.send(b"x")


def test_a_sender_that_is_held_back_learns_it_too(bench):
    b = bench(link())
    client, server = b.connect()
    fill(server)
    reset(client)
    server.settimeout(LIMIT_S)
    with pytest.raises(ConnectionResetError):
        server.recv(1)


def test_what_is_under_way_at_a_reset_reaches_nobody(bench, monkeypatch):
    monkeypatch.setattr(listeners, "MAX_CONNECTIONS", 1)
    b = bench(link(up=Direction(delay_ms=50)))
    client, server = b.connect()
    client.sendall(b"never read")
    reset(server)
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    again = b.connect()
    for _ in range(3):
        echo_s(*again)
    b.call()
    assert not select.select([b.server], [], [], 0.1)[0], "the first one was closed twice"


def test_who_calls_before_the_server_is_there_waits_for_it(bench):
    b = bench(link())
    b.server.close()
    client = b.call()
    client.sendall(b"early")
    # As the server takes the socket: what calls found nobody still stand there.
    server = socket.socket(fileno=os.dup(b.network.endpoint(b.plan.server).listener))
    with server:
        server.settimeout(LIMIT_S)
        taken, _ = server.accept()
        with taken:
            taken.settimeout(LIMIT_S)
            assert taken.recv(5) == b"early"


def test_a_probe_finds_no_calls_of_an_earlier_one(bench):
    b = bench(link())
    early = b.call()
    early.sendall(b"early")
    # Its call has come as far as the server's socket.
    assert select.select([b.server], [], [], LIMIT_S)[0]
    b.server.close()
    b.listen()
    echo_s(*b.connect())


def test_bad_peers_harm_nobody(bench, monkeypatch):
    monkeypatch.setattr(listeners, "MAX_CONNECTIONS", 3)
    b = bench(link(), link())
    good = b.connect(2)
    for _ in range(20):
        reset(b.call(1))
    idle = [b.call(1) for _ in range(5)]
    echo_s(*good)
    for sock in idle:
        sock.close()
    for client in (1, 2):
        caller = b.call(client)
        caller.sendall(b"me")
        while not b.accepted_says(b"me"):
            pass
    assert b.network.failure() is None


def test_a_client_has_so_many_connections_and_no_more(bench, monkeypatch):
    monkeypatch.setattr(listeners, "MAX_CONNECTIONS", 2)
    b = bench(link())
    first, _ = b.connect()
    b.connect()
    third = b.call()
    assert not select.select([b.server], [], [], 0.1)[0]
    reset(first)
    server, _ = b.server.accept()
    with server:
        echo_s(third, server)


def ended(*socks: socket.socket) -> None:
    for sock in socks:
        sock.settimeout(LIMIT_S)
        with contextlib.suppress(ConnectionResetError):
            while sock.recv(1 << 16):
                pass


def test_who_says_nothing_is_ended_and_counted_with_what_crossed_its_link(bench, monkeypatch):
    monkeypatch.setattr(listeners, "SILENT_S", 0.3)
    monkeypatch.setattr(listeners, "LOOK_S", 0.01)
    b = bench(link(), link())
    good = b.connect(2)
    echo_s(*good)
    silent, server = b.connect(1)
    server.sendall(b"a greeting")
    ended(silent, server)
    echo_s(*good)
    facts = b.network.down()
    assert (facts["connections"], facts["strangers"]) == (2, 1)
    assert facts["strangers_bytes"] == 10 + 66


def test_who_waits_for_a_place_gets_one_of_those_who_say_nothing(bench, monkeypatch):
    monkeypatch.setattr(listeners, "MAX_CONNECTIONS", 3)
    monkeypatch.setattr(listeners, "CROWDED_S", 0.1)
    monkeypatch.setattr(listeners, "LOOK_S", 0.01)
    b = bench(link())
    oldest = b.connect()
    for _ in range(2):
        b.connect()
    client = b.call()
    client.sendall(b"me")
    while not b.accepted_says(b"me"):
        pass
    ended(*oldest)
    assert 1 <= b.network.down()["strangers"] <= 3


def test_who_is_not_heard_in_an_outage_is_no_stranger(bench, monkeypatch):
    monkeypatch.setattr(listeners, "SILENT_S", 0.05)
    monkeypatch.setattr(listeners, "LOOK_S", 0.01)
    b = bench(link())
    # A connection and an order race: the call is taken before the outage.
    client, server = b.connect()
    node = b.plan.clients[0]
    out = Direction(outage=True)
    b.network.shape(node, out, out)
    client.sendall(b"said")
    assert not select.select([server], [], [], 0.3)[0]
    b.network.shape(node, Direction(), Direction())
    assert server.recv(4) == b"said"
    assert b.network.down()["strangers"] == 0


# The network


def test_facts_and_endpoints(bench):
    assert loopback.probe() is None
    b = bench(link(), link())
    endpoints = [b.network.endpoint(node) for node in b.plan.nodes]
    assert {(e.namespaces, e.host) for e in endpoints} == {((), "127.0.0.1")}
    assert len({e.port for e in endpoints}) == 3
    assert b.network.facts["backend"] == loopback.name == "loopback"
    assert b.network.facts["wire_bytes"] == "estimated from the relayed stream"
    assert "Mathis" in str(b.network.facts["loss"])


@pytest.mark.parametrize("host", ["127.0.0.1", ""])
@pytest.mark.parametrize("option", [None, socket.SO_REUSEADDR, socket.SO_REUSEPORT])
def test_nobody_gets_the_servers_port_before_the_server(bench, host, option):
    b = bench(link())
    b.server.close()
    port = b.network.endpoint(b.plan.server).port
    with socket.socket() as thief:
        if option is not None:
            thief.setsockopt(socket.SOL_SOCKET, option, 1)
        with pytest.raises(OSError) as refusal:
            thief.bind((host, port))
            thief.listen()
    assert refusal.value.errno == errno.EADDRINUSE


def test_the_server_takes_the_socket_that_listens_for_it(bench):
    b = bench(link())
    b.server.close()

    async def serve() -> str:
        here = b.network.endpoint(b.plan.server)
        listener = os.dup(here.listener)
        known, nobody = {"client-1"}, lambda event: None
        server = ServerTransport(here.host, here.port, known, nobody, listener=listener)
        called = b.network.endpoint(b.plan.nodes[1])
        client = ClientTransport("client-1", called.host, called.port, nobody)
        client.send("hello", 0, {}, {})
        heard = await asyncio.wait_for(server.receive(), LIMIT_S)
        await server.send("client-1", "welcome", 0, ([], []), {})
        assert (await asyncio.to_thread(client.receive, LIMIT_S)).kind == "welcome"
        client.close()
        server.close()
        return heard.kind

    assert asyncio.run(serve()) == "hello"


def test_two_networks_stand_beside_each_other(bench):
    one, two = bench(link()), bench(link())
    ends = one.connect(), two.connect()
    carry(*[(client, noise(50_000, seed), server) for seed, (client, server) in enumerate(ends)])


def test_down_twice(bench):
    b = bench(link(Direction(delay_ms=1)))
    client, server = b.connect()
    echo_s(client, server)
    closing = b.network.down()
    assert closing["connections"] == 1
    assert closing["releases"] == 2
    assert 0 <= closing["lateness_mean_ms"] <= closing["lateness_max_ms"] < 1000 * LIMIT_S
    assert b.network.down() == closing
    with pytest.raises(ConnectionRefusedError):
        b.call()


def test_a_killed_relay_is_a_failure(bench):
    b = bench(link())
    client, _ = b.connect()
    assert b.network.failure() is None
    assert not select.select([b.network], [], [], 0)[0]
    b.network._process._worker.child.kill()
    assert select.select([b.network], [], [], LIMIT_S)[0]
    assert b.network.failure() == "the link process killed by SIGKILL"
    with contextlib.suppress(ConnectionResetError):
        assert client.recv(1) == b""
    assert b.network.down() == {}


def test_the_relay_ends_when_its_supervisor_is_gone(bench):
    b = bench(link())
    b.network._process.channel.close()
    assert b.network._process._worker.child.wait(LIMIT_S)
    assert b.network._process._worker.child.exit_status == 0


def test_a_relay_that_cannot_open_its_ports_says_so(monkeypatch):
    def refuse(*_) -> None:
        raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")

    monkeypatch.setattr(loopback.socket, "create_server", refuse)
    assert "Cannot assign requested address" in str(loopback.probe())
    node = Node(0, "server", "127.0.0.1", None)
    with pytest.raises(LinkError, match=r"open 2 ports on .*: Cannot assign"):
        loopback.up(Plan((node, node)))


def test_too_few_open_files_are_refused_with_the_number_needed(monkeypatch):
    monkeypatch.setattr(listeners.resource, "getrlimit", lambda _: (1024, 1024))
    monkeypatch.setattr(listeners.resource, "setrlimit", lambda *_: None)
    assert listeners.allowed_connections(1) == listeners.MAX_CONNECTIONS
    assert listeners.allowed_connections(100) == 3
    with pytest.raises(LinkError, match="relay 1000 clients: 3256 open files needed, 1024 allowed"):
        listeners.allowed_connections(1000)
