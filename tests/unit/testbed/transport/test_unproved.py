"""Connections that have proved nothing: so many at most, by source, and none that has is ended."""

import asyncio
import contextlib
import select
import socket

from talking import HOST, free_port

from testbed.record.events import Connection
from testbed.transport.keys import RunKeys
from testbed.transport.sockets import ClientTransport, ServerTransport
from testbed.transport.unproved import SPARE

NAMES = ["client-1", "client-2"]
FLOOD, LIMIT_S = 3 * SPARE, 30.0
OTHER_SOURCE = "127.0.0.2"


def closed(callers: list[socket.socket]) -> list[socket.socket]:
    """Those whose other end has gone: reading says so, after the greeting's begin."""
    return [each for each in callers if _is_closed(each)]


def _is_closed(each: socket.socket) -> bool:
    while select.select([each], [], [], 0)[0]:
        try:
            if not each.recv(1000):
                return True
        except OSError:
            return True
    return False


def test_who_floods_ends_its_own_and_nobody_elses() -> None:
    port, keys = free_port(), RunKeys(NAMES)

    told: list[object] = []

    async def run() -> None:
        server = ServerTransport(HOST, port, NAMES, told.append, keys=keys.of("server"))
        watching = asyncio.create_task(server.watch_connections())

        async def answered(client: ClientTransport, number: int) -> None:
            client.send("question", number, {}, {})
            found = await asyncio.wait_for(server.receive(), LIMIT_S)
            await server.send(found.sender, "answer", number, ([], []), {})
            assert (await asyncio.to_thread(client.receive, LIMIT_S)).round == number

        with contextlib.ExitStack() as owned:
            owned.callback(server.close)
            owned.callback(watching.cancel)

            def client(name: str) -> ClientTransport:
                made = ClientTransport(name, HOST, port, lambda event: None, keys=keys.of(name))
                owned.callback(made.close)
                return made

            first = client(NAMES[0])
            await answered(first, 1)
            few = [
                owned.enter_context(
                    socket.create_connection((HOST, port), LIMIT_S, (OTHER_SOURCE, 0))
                )
                for _ in range(3)
            ]
            flood = [
                owned.enter_context(socket.create_connection((HOST, port), LIMIT_S))
                for _ in range(FLOOD)
            ]
            most = len(NAMES) + SPARE
            async with asyncio.timeout(LIMIT_S):
                while len(flood) - len(closed(flood)) > most - len(few):
                    await asyncio.sleep(0.02)
            assert not closed(few)
            # Who has proved itself is where it was, among the oldest; and others still come in.
            await answered(first, 2)
            await answered(client(NAMES[1]), 3)
            assert not watching.done()
            # Who has been ended calls again.
            taken = sum(isinstance(event, Connection) for event in told)
            assert taken == len(NAMES) + len(few) + len(flood)

    asyncio.run(run())
