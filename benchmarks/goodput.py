"""What the transport carries on every profile, each way, against the most that TCP can.

    python benchmarks/goodput.py [--profiles=all] [--congestion=host,cubic] [--seconds=30]

A client behind each profile sends --megabytes, or what its line carries in --seconds, to the server
through the transport that runs use (ZeroMQ on kernel TCP), and then gets as much. Slow lines are
measured at the same time, each client behind its own; fast ones one after the other.

Goodput is of the transport's messages, headers included, and stands against rate * 1448 / 1514.
Once TCP is going it is what came after the first quarter; the whole transfer, from the first
sending on, has TCP's start in it and the way of the first byte. What TCP gets of a line depends on
its congestion control: cubic slows down at each loss, and bbr, every ten seconds, to measure the
round trip. Each line is measured with both, and the better one counts for the table of all.
"""

import asyncio
import math
import time
from typing import Any, NamedTuple

import click
import table
import torch
from link import WAIT_S, quiet, stand

from testbed.links import choice
from testbed.links.linux import namespaces
from testbed.network import profiles
from testbed.network.direction import Direction
from testbed.network.profiles import LinkProfile
from testbed.network.topology import Node, plan
from testbed.processes.channel import Channel
from testbed.processes.child import Child
from testbed.transport import congestion
from testbed.transport.sockets import ClientTransport, ServerTransport
from testbed.transport.wire import Message, encode_tensors

MESSAGES = 20
AT_ONCE_KBIT = 60_000.0
"""What lines that are measured together carry, all of them, each way."""
LEAST_RATIO = 0.98


class Transfer(NamedTuple):
    """One way of one profile; kbit/s of the transport's messages."""

    steady_kbit: float
    whole_kbit: float


def message_bytes(direction: Direction, megabytes: float, seconds: float) -> int:
    """Of each message of a transfer."""
    goodput_kbit = direction.ideal_goodput_kbit
    most = math.inf if goodput_kbit is None else 125 * goodput_kbit * seconds
    return max(100, round(min(1e6 * megabytes, most) / MESSAGES))


def block(size: int) -> dict[str, torch.Tensor]:
    return {"block": torch.zeros(size, dtype=torch.uint8)}


def timing(arrived: list[Message]) -> Transfer:
    quarter = len(arrived) // 4
    steady_ns = arrived[-1].received_ns - arrived[quarter - 1].received_ns
    whole_ns = arrived[-1].received_ns - arrived[0].header.sent_ns
    steady = sum(each.message_bytes for each in arrived[quarter:])
    whole = sum(each.message_bytes for each in arrived)
    return Transfer(8e6 * steady / steady_ns, 8e6 * whole / whole_ns)


async def serve(
    host: str, port: int, down: dict[str, int], control: str | None, results: Channel
) -> None:
    """Take every client's messages, and send it as many of its own size."""
    transport = ServerTransport(host, port, set(down), quiet, control)
    watching = asyncio.create_task(transport.watch_connections())
    arrived: dict[str, list[Message]] = {name: [] for name in down}
    left = len(down)
    while left:
        message = await transport.receive()
        if message.kind == "bye":
            left -= 1
            continue
        if message.kind == "hello":
            await transport.send(message.sender, "welcome", 0, ([], []), {})
            continue
        came = arrived[message.sender]
        came.append(message)
        if len(came) == MESSAGES:
            results.send({"client": message.sender, "way": "up", **timing(came)._asdict()})
            came.clear()
            encoded = encode_tensors(block(down[message.sender]))
            for _ in range(MESSAGES):
                await transport.send(message.sender, "down", 0, encoded, {})
    watching.cancel()
    transport.close()


def call(name: str, host: str, port: int, up: int, control: str | None, results: Channel) -> None:
    transport = ClientTransport(name, host, port, quiet, control)
    # Until it is connected, and its congestion control set, nothing is to be sent.
    transport.send("hello", 0, {}, {})
    transport.receive(WAIT_S)
    tensors = block(up)
    for _ in range(MESSAGES):
        transport.send("up", 0, tensors, {})
    arrived = [transport.receive(WAIT_S) for _ in range(MESSAGES)]
    results.send({"client": name, "way": "down", **timing(arrived)._asdict()})
    transport.send("bye", 0, {}, {})
    transport.close()


def measure(
    links: list[LinkProfile],
    backend: Any,
    megabytes: float,
    seconds: float,
    control: str | None,
) -> dict[tuple[str, str], Transfer]:
    """By profile and way, all of ``links`` at the same time."""
    layout = plan(links)
    network = backend.up(layout)
    ours, theirs = Channel.pair()
    down = {
        node.name: message_bytes(link.down, megabytes, seconds)
        for node, link in zip(layout.clients, links, strict=True)
    }

    def be(node: Node) -> None:
        host, port = stand(network, node)[1:3]
        torch.set_num_threads(1)
        if node is layout.server:
            asyncio.run(serve(host, port, down, control, theirs))
            return
        up = message_bytes(links[node.index - 1].up, megabytes, seconds)
        call(node.name, host, port, up, control, theirs)

    children = [Child(node.name, lambda node=node: be(node)) for node in layout.nodes]  # type: ignore
    theirs.close()
    found = {}
    names = {node.name: link.name for node, link in zip(layout.clients, links, strict=True)}
    try:
        for _ in range(2 * len(links)):
            row = ours.receive(WAIT_S)
            name, way = names[row.pop("client")], row.pop("way")
            found[name, way] = Transfer(**row)
        for child in children:
            child.wait(30)
    finally:
        for child in children:
            child.kill()
        ours.close()
        network.down()
    return found


def rate_kbit(link: LinkProfile) -> float:
    return max(each.rate_kbit or math.inf for each in (link.up, link.down))


def groups(links: list[LinkProfile]) -> list[list[LinkProfile]]:
    """Slow lines together as long as all of them are no work for this machine; slow ones first."""
    found: list[list[LinkProfile]] = []
    for link in sorted(links, key=rate_kbit):
        if found and sum(map(rate_kbit, [*found[-1], link])) <= AT_ONCE_KBIT:
            found[-1].append(link)
        else:
            found.append([link])
    return found


def controls(asked: str) -> list[str | None]:
    """Congestion controls to measure with; None is the host's. Those it is already come once."""
    host = namespaces.congestion_control()
    found: list[str | None] = []
    for name in asked.split(","):
        one = None if name in ("host", host) else name
        if one is not None:
            congestion.check(one, "userspace")
        if one not in found:
            found.append(one)
    return found


@click.command()
@click.option("--profiles", "names", default="all", show_default=True)
@click.option("--links", default="userspace", show_default=True)
@click.option("--megabytes", default=10.0, show_default=True, type=click.FloatRange(0.1, 1e4))
@click.option("--seconds", default=30.0, show_default=True, type=click.FloatRange(1, 3600))
@click.option("--congestion", "asked", default="host,cubic", show_default=True)
def main(names: str, links: str, megabytes: float, seconds: float, asked: str) -> None:
    chosen = profiles.names() if names == "all" else names.split(",")
    backend, _ = choice.choose(links)
    used = controls(asked)
    began = time.monotonic()
    columns = "".join(f"{one or namespaces.congestion_control():>28}" for one in used)
    click.echo(f"{'':37}{columns}")
    columns = f"{'kbit/s':>10} {'ratio':>6} {'whole':>6}   " * len(used)
    click.echo(f"{'':22} {'way':4} {'ideal':>10}{columns}")
    for group in groups([profiles.load(name) for name in chosen]):
        found = [measure(group, backend, megabytes, seconds, one) for one in used]
        for link in group:
            for way, direction in (("up", link.up), ("down", link.down)):
                tell(link.name, way, direction, [each[link.name, way] for each in found])
    click.echo(f"{time.monotonic() - began:.0f} s in all")


def tell(name: str, way: str, direction: Direction, found: list[Transfer]) -> None:
    ideal = direction.ideal_goodput_kbit
    line = f"{name:22} {way:4} {ideal or 0:10.1f}"
    for each in found:
        line += f"{each.steady_kbit:10.1f} "
        if ideal:
            line += f"{each.steady_kbit / ideal:6.3f} {each.whole_kbit / ideal:6.3f}   "
    if ideal:
        most = max(each.steady_kbit for each in found)
        what = f"transport on {name}, {way}: goodput"
        table.add(what, "kbit/s", most, "TCP at line rate", ideal, least=LEAST_RATIO)
    lost = direction.loss_percent
    click.echo(line + (f"loses {lost:g} %" if lost else ""))


if __name__ == "__main__":
    main()
