"""More connections to a server than it has descriptors for: it goes on, and ends the silent."""

import asyncio
import contextlib
import resource
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest
from talking import HOST, free_port

from testbed.processes.channel import Channel
from testbed.processes.child import Child
from testbed.transport import sockets
from testbed.transport.keys import RunKeys
from testbed.transport.sockets import ClientTransport, ServerTransport

LIMIT_S = 60.0
SPARE, CALLERS = 60, 100
"""Descriptors that a server has beside those of its begin, and who calls it and says nothing."""
NAMES = ["client-1", "client-2"]


class Listening(msgspec.Struct, tag=True):
    """A server's word that it does."""


def serve(port: int, keys: RunKeys, told: Channel) -> None:
    """Answer each message until ended."""

    async def run() -> None:
        server = ServerTransport(HOST, port, NAMES, lambda event: None, keys=keys.of("server"))
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        there = len(list(Path("/proc/self/fd").iterdir()))
        resource.setrlimit(resource.RLIMIT_NOFILE, (there + SPARE, hard))
        told.send(Listening())
        watching = asyncio.create_task(server.watch_connections())
        while not watching.done():
            message = await server.receive()
            await server.send(message.sender, "answer", message.round, ([], []), {})

    asyncio.run(run())


def asked(client: ClientTransport, number: int) -> None:
    client.send("question", number, {}, {})
    assert client.receive(LIMIT_S).round == number


@pytest.mark.thorough
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors by /proc")
def test_the_silent_end_no_server_and_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "HANDSHAKE_S", 2.0)
    port, keys = free_port(), RunKeys(NAMES)
    ours, theirs = Channel.pair(Listening)
    with contextlib.ExitStack() as owned:
        server = Child("server", lambda: serve(port, keys, theirs))
        owned.callback(server.kill)
        theirs.close()
        owned.callback(ours.close)
        ours.receive(LIMIT_S)

        def client(name: str) -> ClientTransport:
            made: Any = ClientTransport(name, HOST, port, lambda event: None, keys=keys.of(name))
            owned.callback(made.close)
            return made

        first = client("client-1")
        asked(first, 1)
        silent = [
            owned.enter_context(socket.create_connection((HOST, port))) for _ in range(CALLERS)
        ]
        asked(first, 2)
        # Each gets a place, as those before it are ended, and so do clients.
        second = client("client-2")
        asked(second, 3)
        asked(first, 4)
        for each in silent:
            each.settimeout(LIMIT_S)
            while each.recv(1000):
                pass
        assert server.ended() is None
