"""Connections that one end's kernel has given up while the other only listened."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from testbed.network.direction import Direction
from testbed.network.profiles import LinkProfile
from testbed.processes.channel import Channel
from testbed.processes.worker import Go, Ready, Refusal, Refused
from testbed.record.events import Connection
from testbed.transport import sockets
from testbed.transport.sockets import ClientTransport, ServerTransport, Timeout, Unreachable

CLEAR = LinkProfile(name="clear", up=Direction(delay_ms=5), down=Direction(delay_ms=5))
CUT = Direction(outage=True)
PORT = 7000
RETRIES = 3
"""Linux's tcp_retries2, 15 by default: connections are given up after some 3 s, not 15 minutes."""
CUT_S = 4.0
LIMIT_S = 40.0
POLL_S = 0.05
ACKNOWLEDGED_S = 0.5
"""Longer than an acknowledgement is held back."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Listeners that ask often."""
    monkeypatch.setattr(sockets, "ASK_AFTER_S", 1.0)
    monkeypatch.setattr(sockets, "ASK_EVERY_S", 1.0)


def serving(address: str):
    """Send to a client that has said hello until its connection is given up, then until it is back.

    Returns when it was given up."""

    def body(channel: Channel) -> Any:
        Path("/proc/sys/net/ipv4/tcp_retries2").write_text(str(RETRIES))

        async def serve() -> Any:
            server = ServerTransport(address, PORT, {"client-1"}, lambda event: None)
            await asyncio.wait_for(server.receive(), LIMIT_S)
            await server.send("client-1", "welcome", 0, ([], []), {})
            channel.receive(LIMIT_S)
            lost_s, until_s = None, time.monotonic() + LIMIT_S
            while time.monotonic() < until_s:
                try:
                    kind = "lost" if lost_s is None else "again"
                    await server.send("client-1", kind, 1, ([], []), {})
                    if kind == "again":
                        break
                except Unreachable as error:
                    if lost_s is None:
                        lost_s = time.monotonic()
                        channel.send(Refusal(str(error)))
                await asyncio.sleep(POLL_S)
            server.close()
            return lost_s

        return asyncio.run(serve())

    return body


def listening(address: str):
    """Say hello once and then only listen; the kind of the first message, and when it came."""

    def body(channel: Channel) -> Any:
        client = ClientTransport("client-1", address, PORT, lambda event: None)
        client.send("hello", 0, {}, {})
        assert client.receive(LIMIT_S).kind == "welcome"
        # Until both have acknowledged all that there was: neither has anything to send again.
        time.sleep(ACKNOWLEDGED_S)
        channel.send(Ready())
        try:
            kind = client.receive(LIMIT_S).kind
        except Timeout:
            kind = None
        client.close()
        return kind, time.monotonic()

    return body


def test_a_client_cut_off_for_longer_than_the_kernels_patience_is_heard_again(build, stand):
    layout, network = build(CLEAR)
    node = layout.clients[0]
    server = stand(network, layout.server, serving(layout.server.address))
    client = stand(network, node, listening(layout.server.address))
    client.ready()
    network.shape(node, CUT, CUT)
    server.worker.tell(Go())
    # The server's kernel has given the connection up; the client has had nothing to send.
    with pytest.raises(Refused, match=r"^client-1: no connection with it \(Host unreachable\)$"):
        server.worker.receive(Ready, LIMIT_S)
    ended_s = time.monotonic()
    network.shape(node, CLEAR.up, CLEAR.down)
    kind, heard_s = client.result()
    assert server.result() is not None
    # What was on its way is lost with the connection, and the next message comes soon.
    assert kind == "again"
    assert heard_s - ended_s < LIMIT_S / 2


def test_a_question_without_an_answer_ends_no_connection(build, stand):
    """Silence for longer than all questions would take, and then the same connection goes on."""
    layout, network = build(CLEAR)
    node = layout.clients[0]

    def serve(channel: Channel) -> Any:
        async def wait() -> None:
            server = ServerTransport(layout.server.address, PORT, {"client-1"}, events.append)
            watch = asyncio.create_task(server.watch_connections())
            await asyncio.wait_for(server.receive(), LIMIT_S)
            await server.send("client-1", "welcome", 0, ([], []), {})
            await asyncio.to_thread(channel.receive, LIMIT_S)
            await server.send("client-1", "late", 1, ([], []), {})
            await asyncio.sleep(0.5)
            watch.cancel()
            server.close()

        events: list[Any] = []
        asyncio.run(wait())
        return len([event for event in events if isinstance(event, Connection)])

    server = stand(network, layout.server, serve)
    client = stand(network, node, listening(layout.server.address))
    client.ready()
    network.shape(node, CUT, CUT)
    time.sleep(CUT_S)
    network.shape(node, CLEAR.up, CLEAR.down)
    server.worker.tell(Go())
    assert client.result()[0] == "late"
    assert server.result() == 1
