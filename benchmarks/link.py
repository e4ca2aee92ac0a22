"""One client behind one link: idle round trip, goodput both ways, bytes on the wire.

    python benchmarks/link.py [--profile=4g] [--links=userspace] [--megabytes=20]

The transfer goes through the transport that runs use (ZeroMQ on kernel TCP) in messages of 1 MB.
Goodput is payload over the time from the first message's arrival to the last's, so that TCP's
start does not count; the whole transfer's, start included, stands beside it. Each goodput row
ends with its ratio to the most that TCP can carry on the line, rate * 1448 / 1514.
"""

import asyncio
import os
import socket
import statistics
import time
from collections.abc import Callable
from typing import Any

import click
import table
import torch

from testbed.links import choice
from testbed.links.interface import Endpoint, Network
from testbed.network.profiles import load
from testbed.network.topology import Node, Plan, plan
from testbed.probing.timestamps import listen
from testbed.processes.channel import Channel
from testbed.processes.child import Child
from testbed.record.events import Connection, Event
from testbed.transport import congestion
from testbed.transport.sockets import ClientTransport, ServerTransport
from testbed.transport.wire import encode_tensors

MESSAGE_BYTES = 1_000_000
PINGS = 200
WAIT_S = 3600.0


def quiet(event: Event) -> None:
    """A report that nobody reads."""


def stand(network: Network, node: Node) -> Endpoint:
    """Enter the node's namespaces, if it has any."""
    endpoint = network.endpoint(node)
    if endpoint.namespaces:
        from testbed.links.linux.namespaces import enter

        enter(endpoint.namespaces)
    return endpoint


def control(endpoint: Endpoint) -> str | None:
    """The congestion control of runs, in whose place a relay stands over loopback links."""
    return congestion.default()[0] if endpoint.namespaces else None


def echo(endpoint: Endpoint) -> None:
    """Answer the pings of one connection."""
    with listen(endpoint) as listener:
        listener.settimeout(WAIT_S)
        connection, _ = listener.accept()
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := connection.recv(1):
                connection.sendall(data)


def ping(host: str, port: int) -> dict[str, float]:
    """Round trips of single bytes over TCP, in ms: the link's own, with no transport above it."""
    connection = connect(host, port)
    trips_ms = []
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(PINGS):
            began = time.monotonic()
            connection.sendall(b"x")
            if not connection.recv(1):
                raise ConnectionError("the echo ended")
            trips_ms.append(1000 * (time.monotonic() - began))
    # A lost ping takes TCP's retransmission timeout, so that the mean tells of the loss; the
    # median tells of the delay.
    return {
        "rtt_ms": statistics.median(trips_ms),
        "rtt_min_ms": min(trips_ms),
        "rtt_max_ms": max(trips_ms),
    }


def connect(host: str, port: int) -> socket.socket:
    """Connect, trying again while the server is not there yet."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return socket.create_connection((host, port), timeout=30)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


async def serve(endpoint: Endpoint, messages: int, results: Channel) -> None:
    echo(endpoint)
    connections: list[Event] = []
    listener = None if endpoint.listener is None else os.dup(endpoint.listener)
    transport = ServerTransport(
        endpoint.host,
        endpoint.port,
        {"client-1"},
        connections.append,
        control(endpoint),
        listener=listener,
    )
    watching = asyncio.create_task(transport.watch_connections())
    uplink = [await transport.receive() for _ in range(messages)]
    used = [each.congestion for each in connections if isinstance(each, Connection)]
    results.send({"direction": "up", "congestion": used, **timing(uplink)})
    block = encode_tensors({"block": torch.zeros(MESSAGE_BYTES, dtype=torch.uint8)})
    for _ in range(messages):
        await transport.send("client-1", "down", 0, block, {})
    await transport.receive()
    watching.cancel()
    transport.close()


def call(endpoint: Endpoint, messages: int, results: Channel) -> None:
    host, port = endpoint.host, endpoint.port
    results.send(ping(host, port))
    transport = ClientTransport("client-1", host, port, quiet, control(endpoint))
    block = {"block": torch.zeros(MESSAGE_BYTES, dtype=torch.uint8)}
    for _ in range(messages):
        transport.send("up", 0, block, {})
    downlink = [transport.receive(WAIT_S) for _ in range(messages)]
    results.send({"direction": "down", **timing(downlink)})
    transport.send("bye", 0, {}, {})
    transport.close()


def timing(arrived: list[Any]) -> dict[str, float]:
    """Goodput in kbit/s: between arrivals, and from the first sending."""
    steady_ns = arrived[-1].received_ns - arrived[0].received_ns
    whole_ns = arrived[-1].received_ns - arrived[0].header.sent_ns
    size = sum(message.payload_bytes for message in arrived)
    rest = size - arrived[0].payload_bytes
    return {"steady_kbit": rest * 8e6 / steady_ns, "whole_kbit": size * 8e6 / whole_ns}


def measure(layout: Plan, network: Network, messages: int) -> list[dict[str, Any]]:
    """Run both ends in processes of their own and collect what they found."""
    ours, theirs = Channel.pair()
    parts: list[tuple[Node, Callable[[Endpoint], None]]] = [
        (layout.server, lambda endpoint: asyncio.run(serve(endpoint, messages, theirs))),
        (layout.clients[0], lambda endpoint: call(endpoint, messages, theirs)),
    ]
    children = [
        Child(node.name, lambda node=node, part=part: part(stand(network, node)))  # type: ignore
        for node, part in parts
    ]
    theirs.close()
    found = []
    before = network.counters()[1]
    for _ in range(3):
        found.append(ours.receive(WAIT_S))
        now = network.counters()[1]
        for way in ("up", "down"):
            found[-1][f"wire_{way}"] = getattr(now, way).bytes - getattr(before, way).bytes
        before = now
    for child in children:
        if not child.wait(30):
            child.kill()
    ours.close()
    return found


@click.command()
@click.option("--profile", default="4g", show_default=True)
@click.option("--links", default="userspace", show_default=True)
@click.option("--megabytes", default=20, show_default=True, type=click.IntRange(2, 10_000))
def main(profile: str, links: str, megabytes: int) -> None:
    link = load(profile)
    layout = plan([link])
    backend, _ = choice.choose(links)
    network = backend.up(layout)
    try:
        trip, *ways = measure(layout, network, megabytes)
        counted = network.counters()[1]
    finally:
        closing = network.down()
    click.echo(f"{profile} over {links}, {megabytes} MB each way")
    click.echo(
        f"idle RTT, ms      {trip['rtt_ms']:9.2f}  profile {link.rtt_ms:9.2f}  "
        f"difference {trip['rtt_ms'] - link.rtt_ms:+.2f}  "
        f"(median of {PINGS}, from {trip['rtt_min_ms']:.2f} to {trip['rtt_max_ms']:.2f})"
    )
    for way, direction in zip(ways, (link.up, link.down), strict=True):
        ideal = direction.ideal_goodput_kbit
        for name in ("steady", "whole"):
            measured = way[f"{name}_kbit"]
            against = f"ideal {ideal:9.0f}  ratio {measured / ideal:.4f}" if ideal else "no rate"
            click.echo(f"{way['direction']:4} {name:6}, kbit/s {measured:9.0f}  {against}")
            if ideal and name == "steady":
                what = f"{profile}, one client, {way['direction']}: goodput"
                table.add(what, "kbit/s", measured, "TCP at line rate", ideal, least=0.98)
    table.add(
        f"{profile}: idle round trip", "ms", trip["rtt_ms"], "profile", link.rtt_ms, most=1.02
    )
    payload = megabytes * MESSAGE_BYTES
    for way, back in zip(ways, ("down", "up"), strict=True):
        forth = way["direction"]
        data, answers = way[f"wire_{forth}"], way[f"wire_{back}"]
        click.echo(
            f"{forth:4} wire over payload {100 * (data / payload - 1):+.2f} %, "
            f"acknowledgements on the way back {100 * answers / payload:.2f} %"
        )
    for name, counters in (("up", counted.up), ("down", counted.down)):
        click.echo(f"{name:4} queue drops {counters.queue_drops}, losses {counters.losses}")
    click.echo(f"congestion control {ways[0]['congestion']}; link process {closing}")


if __name__ == "__main__":
    main()
