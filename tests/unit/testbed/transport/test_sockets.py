"""The sockets: what arrives is counted as it was sent, and nothing a stranger sends ends them."""

import asyncio
import contextlib
import random
import socket
import sys
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import zmq
from talking import HOST, LIMIT_S, Reports, free_port, soon

from testbed.transport.sockets import ClientTransport, ServerTransport, Timeout, Unreachable
from testbed.transport.wire import (
    Header,
    TensorHeader,
    WireError,
    encode_header,
    encode_tensors,
)

TENSORS = {
    "weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "bias": torch.tensor(0.5, dtype=torch.bfloat16),
    "none": torch.empty(0, 4),
}
PAYLOAD = 24 + 2

Frames = list[bytes | memoryview]


def valid(kind: str = "model") -> Frames:
    """The frames of a good message."""
    entries, buffers = encode_tensors(TENSORS)
    return [encode_header(Header(kind, 1, time.monotonic_ns(), {}, entries)), *buffers]


def truncated() -> Frames:
    first, weight, *rest = valid()
    return [first, weight[:-1], *rest]


GARBAGE: dict[str, tuple[Callable[[], Frames], str]] = {
    "nothing": (lambda: [b""], "header"),
    "random bytes": (lambda: [random.Random(1).randbytes(99) for _ in range(5)], "header: "),
    "another header": (lambda: [zlib.compress(b'{"kind": "model"}')], "header: "),
    "wrong type": (
        lambda: [zlib.compress(b"\x95\x01\x01\x00\x80\x90")],
        "Expected `str`, got `int`",
    ),
    "truncated tensor": (truncated, "takes 24 bytes, its frame has 23"),
    "frame missing": (lambda: valid()[:-1], "3 tensors announced, 2 frames sent"),
    "frame too many": (lambda: [*valid(), b"x"], "3 tensors announced, 4 frames sent"),
    "overflowing shape": (
        lambda: [
            encode_header(Header("m", 1, 0, {}, [TensorHeader("w", "f32", (0, *[2**32] * 3))])),
            b"",
        ],
        "is too large",
    ),
}
garbage = pytest.mark.parametrize("what", GARBAGE)


@contextlib.asynccontextmanager
async def serving(
    port: int, congestion: str | None = None
) -> AsyncIterator[tuple[ServerTransport, Reports]]:
    """A server that knows client-1 and client-2."""
    reports = Reports()
    server = ServerTransport(HOST, port, {"client-1", "client-2"}, reports, congestion)
    try:
        yield server, reports
    finally:
        server.close()


@contextlib.contextmanager
def calling(
    port: int, name: str = "client-1", congestion: str | None = None
) -> Iterator[tuple[ClientTransport, Reports]]:
    reports = Reports()
    client = ClientTransport(name, HOST, port, reports, congestion)
    try:
        yield client, reports
    finally:
        client.close()


@contextlib.contextmanager
def raw_socket(kind: int, name: bytes | None = None) -> Iterator[zmq.Socket[bytes]]:
    """A ZeroMQ socket that sends whatever it is told to."""
    with zmq.Context() as context, context.socket(kind) as plain:
        plain.setsockopt(zmq.LINGER, 1000 * LIMIT_S)
        plain.setsockopt(zmq.RCVTIMEO, 1000 * LIMIT_S)
        if name is not None:
            plain.setsockopt(zmq.IDENTITY, name)
        yield plain


@contextlib.contextmanager
def fake_server(port: int) -> Iterator[zmq.Socket[bytes]]:
    with raw_socket(zmq.ROUTER) as router:
        router.bind(f"tcp://{HOST}:{port}")
        yield router


@contextlib.contextmanager
def fake_client(port: int, name: bytes | None) -> Iterator[zmq.Socket[bytes]]:
    with raw_socket(zmq.DEALER, name) as dealer:
        dealer.connect(f"tcp://{HOST}:{port}")
        yield dealer


def check_report(event: dict[str, Any], peer: str, kind: str, header: Header) -> None:
    """A message's report gives exactly the bytes that were sent, and times in their order."""
    sizes = len(encode_header(header)) + PAYLOAD
    assert (event["payload_bytes"], event["message_bytes"]) == (PAYLOAD, sizes)
    assert (event["peer"], event["kind"], event["round"]) == (peer, kind, 4)
    assert event["sent_ns"] == header.sent_ns
    assert event["sent_ns"] <= event["received_ns"] <= time.monotonic_ns()


# Both ways


def test_a_clients_message_arrives_intact_and_counted() -> None:
    async def run() -> None:
        port = free_port()
        async with serving(port) as (server, reports):
            with calling(port) as (client, _):
                client.send("adapter", 4, TENSORS, {"samples": 7})
                got = await soon(server.receive())
        assert (got.sender, got.kind, got.round, got.details) == (
            *("client-1", "adapter", 4),
            {"samples": 7},
        )
        assert all(torch.equal(got.tensors[name], TENSORS[name]) for name in TENSORS)
        (event,) = reports.all("message")
        check_report(event, "client-1", "adapter", got.header)

    asyncio.run(run())


def test_the_servers_message_arrives_intact_and_counted() -> None:
    async def run() -> None:
        port = free_port()
        async with serving(port) as (server, _):
            with calling(port) as (client, reports):
                client.send("hello", 0, {}, {})
                await soon(server.receive())
                await server.send("client-1", "model", 4, encode_tensors(TENSORS), {"rate": 0.5})
                got = client.receive(LIMIT_S)
        assert (got.sender, got.kind, got.details) == ("server", "model", {"rate": 0.5})
        assert all(torch.equal(got.tensors[name], TENSORS[name]) for name in TENSORS)
        (event,) = reports.all("message")
        check_report(event, "server", "model", got.header)

    asyncio.run(run())


def test_clients_are_told_apart() -> None:
    async def run() -> None:
        port = free_port()
        async with serving(port) as (server, _):
            with calling(port, "client-1") as (one, _), calling(port, "client-2") as (two, _):
                for client in (one, two):
                    client.send("hello", 0, {}, {})
                senders = {(await soon(server.receive())).sender for _ in range(2)}
                assert senders == {"client-1", "client-2"}
                await server.send("client-2", "second", 1, ([], []), {})
                await server.send("client-1", "first", 1, ([], []), {})
                assert one.receive(LIMIT_S).kind == "first"
                assert two.receive(LIMIT_S).kind == "second"

    asyncio.run(run())


def test_messages_keep_their_order() -> None:
    async def run() -> None:
        port = free_port()
        async with serving(port) as (server, _):
            with calling(port) as (client, _):
                for number in range(50):
                    client.send("model", number, {}, {})
                rounds = [(await soon(server.receive())).round for _ in range(50)]
        assert rounds == list(range(50))

    asyncio.run(run())


def test_a_client_that_was_there_first_is_served() -> None:
    async def run() -> None:
        port = free_port()
        with calling(port) as (client, _):
            client.send("hello", 0, {}, {})
            async with serving(port) as (server, _):
                assert (await soon(server.receive())).kind == "hello"

    asyncio.run(run())


def test_a_client_that_comes_back_under_its_name_is_answered() -> None:
    async def run() -> None:
        port = free_port()
        async with serving(port) as (server, _):
            with calling(port) as (first, _):
                first.send("hello", 0, {}, {})
                await soon(server.receive())
                with calling(port) as (second, _):
                    second.send("hello", 0, {}, {})
                    await soon(server.receive())
                    await server.send("client-1", "welcome", 0, ([], []), {})
                    assert second.receive(LIMIT_S).kind == "welcome"

    asyncio.run(run())


# Garbage


@garbage
def test_the_server_drops_garbage_and_takes_the_next_message(what: str) -> None:
    make, reason = GARBAGE[what]

    async def run() -> None:
        port = free_port()
        async with serving(port) as (server, reports):
            with fake_client(port, b"client-1") as dealer:
                frames = make()
                dealer.send_multipart(frames)
                dealer.send_multipart(valid())
                got = await soon(server.receive())
        assert torch.equal(got.tensors["weight"], TENSORS["weight"])
        (dropped,) = reports.all("dropped")
        assert dropped["peer"] == "client-1" and reason in dropped["reason"]
        assert dropped["bytes"] == sum(len(frame) for frame in frames)
        assert len(reports.all("message")) == 1

    asyncio.run(run())


@garbage
def test_the_client_drops_garbage_and_takes_the_next_message(what: str) -> None:
    make, reason = GARBAGE[what]
    port = free_port()
    with fake_server(port) as router, calling(port) as (client, reports):
        client.send("hello", 0, {}, {})
        identity, _ = router.recv_multipart()
        frames = make()
        router.send_multipart([identity, *frames])
        router.send_multipart([identity, *valid()])
        got = client.receive(LIMIT_S)
    assert torch.equal(got.tensors["weight"], TENSORS["weight"])
    (dropped,) = reports.all("dropped")
    assert dropped["peer"] == "server" and reason in dropped["reason"]
    assert dropped["bytes"] == sum(len(frame) for frame in frames)


@pytest.mark.parametrize(
    ("name", "shown"),
    [(b"client-9", "client-9"), (b"\xff\xfe", "��"), (b"x" * 250, "x" * 100), (None, None)],
    ids=["unknown", "no text", "long", "unnamed"],
)
def test_a_strangers_message_is_dropped(name: bytes | None, shown: str | None) -> None:
    async def run() -> None:
        port = free_port()
        async with serving(port) as (server, reports):
            receiving = asyncio.create_task(server.receive())
            with fake_client(port, name) as stranger:
                frames = valid()
                stranger.send_multipart(frames)
                dropped = await reports.next("dropped")
            assert dropped["reason"] == "stranger"
            assert dropped["bytes"] == sum(len(frame) for frame in frames)
            assert shown is None or dropped["peer"] == shown
            with calling(port) as (client, _):
                client.send("hello", 0, {}, {})
                assert (await soon(receiving)).sender == "client-1"

    asyncio.run(run())


GREETING = b"\xff\0\0\0\0\0\0\0\1\x7f\3\0NULL"
"""How ZMTP 3.0 begins, RFC 23; padded to 64 bytes."""
JUNK = {
    "http": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "random": random.Random(2).randbytes(4096),
    "zeros": bytes(4096),
    "half a greeting": GREETING[:10],
    "a greeting and nonsense": GREETING + b"\xa5" * 200,
    "an endless frame": GREETING.ljust(64, b"\0") + b"\x02" + b"\xff" * 8,
}


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK)
def test_junk_on_a_plain_tcp_connection_does_no_harm(junk: bytes) -> None:
    async def run() -> None:
        port = free_port()
        async with serving(port) as (server, _):
            with socket.create_connection((HOST, port), LIMIT_S) as plain:
                plain.sendall(junk)
                with calling(port) as (client, _):
                    client.send("hello", 0, {}, {})
                    assert (await soon(server.receive())).sender == "client-1"

    asyncio.run(run())


# Limits of time


def test_a_frame_over_the_runs_limit_is_neither_sent_nor_taken() -> None:
    """By its announcement alone: the connection ends, and what comes after it is taken."""
    port, reports = free_port(), Reports()

    async def run() -> None:
        server = ServerTransport(HOST, port, ("a", "b"), reports, most_frame_bytes=100)
        watching = asyncio.create_task(server.watch_connections())
        receiving = asyncio.create_task(server.receive())
        honest = ClientTransport("a", HOST, port, Reports(), most_frame_bytes=100)
        large = ClientTransport("b", HOST, port, Reports())
        try:
            with pytest.raises(WireError, match="w: 101 bytes; at most 100 can be sent in a run"):
                honest.send("model", 1, {"w": torch.zeros(101, dtype=torch.uint8)}, {})
            large.send("model", 1, {"w": torch.zeros(101, dtype=torch.uint8)}, {})
            honest.send("model", 2, {"w": torch.zeros(100, dtype=torch.uint8)}, {})
            assert (await soon(receiving)).round == 2
            with pytest.raises(WireError, match="at most 100"):
                await server.send("a", "model", 1, encode_tensors({"w": torch.zeros(26)}), {})
        finally:
            watching.cancel()
            for transport in (server, honest, large):
                transport.close()

    asyncio.run(run())
    assert [each["round"] for each in reports.all("message")] == [2]


def test_a_wait_for_the_server_has_its_limit() -> None:
    with calling(free_port()) as (client, _):
        began_s = time.monotonic()
        with pytest.raises(Timeout, match=r"nothing within 0\.1 s"):
            client.receive(0.1)
        assert 0.09 <= time.monotonic() - began_s < LIMIT_S


def test_garbage_does_not_lengthen_a_wait() -> None:
    port = free_port()
    with fake_server(port) as router, calling(port) as (client, reports):
        client.send("hello", 0, {}, {})
        identity, _ = router.recv_multipart()
        router.send_multipart([identity, b"garbage"])
        began_s = time.monotonic()
        with pytest.raises(Timeout):
            client.receive(0.2)
        assert time.monotonic() - began_s < LIMIT_S
        assert len(reports.all("dropped")) == 1


def test_a_wait_of_no_time_takes_what_is_there() -> None:
    port = free_port()
    with fake_server(port) as router, calling(port) as (client, _):
        client.send("hello", 0, {}, {})
        identity, _ = router.recv_multipart()
        router.send_multipart([identity, *valid("first")])
        router.send_multipart([identity, *valid("second")])
        assert client.receive(LIMIT_S).kind == "first"
        # Both were sent together; only the loop of an I/O thread may lie between them.
        deadline_s = time.monotonic() + LIMIT_S
        while True:
            with contextlib.suppress(Timeout):
                assert client.receive(0).kind == "second"
                break
            assert time.monotonic() < deadline_s


def test_sending_to_a_client_that_is_not_there_is_refused() -> None:
    async def run() -> None:
        async with serving(free_port()) as (server, _):
            with pytest.raises(Unreachable, match=r"^client-2: "):
                await server.send("client-2", "model", 1, ([], []), {})

    asyncio.run(run())


# Connections and ends


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux names it")
@pytest.mark.parametrize("asked", [None, "reno"])
def test_both_ends_report_the_congestion_control_of_their_connection(asked: str | None) -> None:
    default = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    wanted = asked or default

    async def run() -> None:
        port = free_port()
        async with serving(port, asked) as (server, reports):
            watching = asyncio.create_task(server.watch_connections())
            with calling(port, congestion=asked) as (client, heard):
                client.send("hello", 0, {}, {})
                await soon(server.receive())
                accepted = await reports.next("connection")
                await server.send("client-1", "welcome", 0, ([], []), {})
                client.receive(LIMIT_S)
            watching.cancel()
            with pytest.raises(asyncio.CancelledError):
                await watching
        (connected,) = heard.all("connection")
        assert accepted["congestion"] == wanted == connected["congestion"]

    asyncio.run(run())


def test_what_was_sent_before_a_close_arrives() -> None:
    async def run() -> None:
        port = free_port()
        large = torch.arange(1_000_000)
        client = ClientTransport("client-1", HOST, port, Reports())
        client.send("model", 1, {"w": large}, {})
        # Nobody is there to take it yet, so that closing has something to wait for.
        closing = asyncio.create_task(asyncio.to_thread(client.close))
        await asyncio.sleep(0)
        async with serving(port) as (server, _):
            got = await soon(server.receive())
        await soon(closing)
        assert torch.equal(got.tensors["w"], large)

    asyncio.run(run())


def test_both_ends_close_at_once_when_nothing_is_left_to_send() -> None:
    async def run() -> None:
        port = free_port()
        async with serving(port) as (server, _):
            with calling(port) as (client, _):
                client.send("hello", 0, {}, {})
                await soon(server.receive())
                began_s = time.monotonic()
        assert time.monotonic() - began_s < 2

    asyncio.run(run())


def test_a_client_without_a_server_closes_at_once() -> None:
    with calling(free_port()):
        began_s = time.monotonic()
    assert time.monotonic() - began_s < 2


def test_an_address_in_use_is_refused_and_leaves_no_socket() -> None:
    async def run() -> None:
        with socket.create_server((HOST, 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(zmq.ZMQError, match="Address already in use"):
                ServerTransport(HOST, port, set(), Reports())

    # An unclosed socket or context would warn, and warnings are errors.
    asyncio.run(run())
