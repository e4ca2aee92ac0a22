"""The end of a server that still has something to send: who is there gets it, nobody else is
waited for."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import torch
import zmq
from talking import HOST, LIMIT_S, Reports, free_port, soon

from testbed.transport import sockets
from testbed.transport.sockets import ClientTransport, ServerTransport, Unreachable
from testbed.transport.wire import encode_tensors

LARGE = {"w": torch.zeros(2_000_000)}
MESSAGES = 8
"""More of them than a caller who does not read takes, and its kernel."""


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "LINGER_MS", 2000 * LIMIT_S)


@contextlib.contextmanager
def silent(port: int) -> Iterator[zmq.Socket[Any]]:
    """client-1, which reads nothing, as one that is cut off."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as caller:
        caller.setsockopt(zmq.IDENTITY, b"client-1")
        caller.setsockopt(zmq.RCVHWM, 1)
        caller.setsockopt(zmq.LINGER, 0)
        caller.connect(f"tcp://{HOST}:{port}")
        caller.send_multipart(sockets._frames("hello", 0, ([], []), {}))
        yield caller


async def send(server: ServerTransport, client: str) -> None:
    for number in range(MESSAGES):
        await server.send(client, "model", number, encode_tensors(LARGE), {})


def closing(server: ServerTransport) -> threading.Thread:
    thread = threading.Thread(target=server.close, daemon=True)
    thread.start()
    return thread


async def hung_up(server: ServerTransport, caller: zmq.Socket[Any]) -> None:
    await soon(server.hang_up(["client-1"]))


async def ended(server: ServerTransport, caller: zmq.Socket[Any]) -> None:
    caller.close()
    with contextlib.suppress(Unreachable):
        while True:
            await server.send("client-1", "model", MESSAGES, ([], []), {})
            await soon(asyncio.sleep(0.01))


@pytest.mark.parametrize("lost", [hung_up, ended])
def test_nobody_waits_for_a_client_that_is_gone(
    lost: Callable[[ServerTransport, zmq.Socket[Any]], Awaitable[None]],
) -> None:
    async def run() -> None:
        port = free_port()
        server = ServerTransport(HOST, port, {"client-1"}, Reports())
        with silent(port) as caller:
            await soon(server.receive())
            await send(server, "client-1")
            await lost(server, caller)
            end = closing(server)
            end.join(LIMIT_S)
            assert not end.is_alive()

    asyncio.run(run())


def test_who_is_there_gets_all_that_was_sent_and_nobody_else_ends_it() -> None:
    async def run() -> None:
        port = free_port()
        server = ServerTransport(HOST, port, {"client-1", "client-2"}, Reports())
        client = ClientTransport("client-2", HOST, port, Reports())
        with silent(port):
            client.send("hello", 0, {}, {})
            for _ in range(2):
                await soon(server.receive())
            for name in ("client-1", "client-2"):
                await send(server, name)
            await soon(server.hang_up(["client-1"]))
            end = closing(server)
            found = [client.receive(LIMIT_S).round for _ in range(MESSAGES)]
            end.join(LIMIT_S)
            assert not end.is_alive()
        client.close()
        assert found == list(range(MESSAGES))

    asyncio.run(run())


def test_a_connection_made_again_is_another() -> None:
    """What a client said over one that is over ends none that has come in its place."""

    async def run() -> None:
        port = free_port()
        server = ServerTransport(HOST, port, {"client-1", "client-2"}, Reports())
        watching = asyncio.create_task(server.watch_connections())
        with silent(port):
            await soon(server.receive())
        client = ClientTransport("client-2", HOST, port, Reports())
        while server._door._speakers:
            await soon(asyncio.sleep(0.01))
        client.send("hello", 0, {}, {})
        await soon(server.receive())
        await soon(server.hang_up(["client-1"]))
        await server.send("client-2", "model", 0, encode_tensors(LARGE), {})
        assert client.receive(LIMIT_S).kind == "model"
        watching.cancel()
        client.close()
        server.close()

    asyncio.run(run())
