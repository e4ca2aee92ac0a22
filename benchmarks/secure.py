"""CURVE's cost: bytes on the wire, round trips at start, CPU, and rounds of many clients.

    python benchmarks/secure.py [--repeat=5] [--clients=20] [--rounds=5] [--profile=4g]

One server and one client, each a process, over 127.0.0.1, with keys and without in turns. Bytes are
those of TCP's stream, as a relay between the two has passed them on; round trips are what a relay
that holds each direction for DELAY_MS adds to the time until the first answer. CPU is of both ends.
The rounds are of `launch`, over the links of ``--links``, at the same seed.
"""

import asyncio
import json
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

import click
import msgspec
import table
import torch

from testbed.processes import heap
from testbed.processes.channel import Channel
from testbed.processes.child import Child
from testbed.transport.keys import RunKeys
from testbed.transport.sockets import ClientTransport, ServerTransport

HOST = "127.0.0.1"
ROOT = Path(__file__).parents[1]
DELAY_MS = 100.0
WAIT_S = 120.0
MIB = 1 << 20
MOST_BYTES, MOST_TRIPS = 0.02, 1.0
"""More than none, of messages from 1 MiB on, and at start."""
MOST_OF_DIGITS, SAMPLES = 100, 8
"""Clients that the default data set is enough for; samples of each where there are more."""
SIZES = {"53 KB": (53_000, 50), "1 MiB": (MIB, 50), "100 MiB": (100 * MIB, 150)}
"""Payload, and in how many tensors: LoRA's of the shipped model, and weights of ViT-B/16."""


class Figures(msgspec.Struct):
    """Figures of one end."""

    cpu_s: list[float]
    seconds: list[float]


def tensors(size: int, count: int) -> dict[str, torch.Tensor]:
    return {f"block.{n}.weight": torch.ones(size // count, dtype=torch.uint8) for n in range(count)}


def serve(port: int, keys: RunKeys | None, turns: int, results: Channel) -> None:
    async def run() -> None:
        heap.keep_large()
        own = keys.of("server") if keys else None
        transport = ServerTransport(HOST, port, ["client-1"], lambda event: None, keys=own)
        cpu_s = []
        while True:
            before = time.process_time()
            message = await transport.receive()
            await transport.send("client-1", "answer", 0, ([], []), {})
            cpu_s.append(time.process_time() - before)
            if message.kind == "bye" or len(cpu_s) > turns:
                break
        transport.close()
        results.send(Figures(cpu_s, []))

    torch.set_num_threads(1)
    asyncio.run(run())


def call(port: int, keys: RunKeys | None, size: tuple[int, int], turns: int, to: Channel) -> None:
    torch.set_num_threads(1)
    block = tensors(*size)
    own = keys.of("client-1") if keys else None
    began = time.monotonic()
    transport = ClientTransport("client-1", HOST, port, lambda event: None, keys=own)
    cpu_s, seconds = [], []
    for turn in range(turns + 1):
        before = time.process_time()
        transport.send("update", 0, block if turn else {}, {})
        transport.receive(WAIT_S)
        seconds.append(time.monotonic() - began)
        cpu_s.append(time.process_time() - before)
        began = time.monotonic()
    transport.close()
    to.send(Figures(cpu_s, seconds))


class Relay:
    """Passes one connection's stream on, ``delay_s`` later each way, and counts its bytes."""

    def __init__(self, port: int, delay_s: float) -> None:
        self.listener = socket.create_server((HOST, 0))
        self.port: int = self.listener.getsockname()[1]
        self._to, self._delay_s = port, delay_s
        self.bytes = 0

    def run(self, finished: Any) -> None:
        """Until ``finished()``."""
        one, _ = self.listener.accept()
        other = socket.create_connection((HOST, self._to))
        held: deque[tuple[float, socket.socket, bytes]] = deque()
        with one, other, selectors.DefaultSelector() as selector:
            for source, sink in ((one, other), (other, one)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(source, selectors.EVENT_READ, sink)
            while not finished():
                wait_s = max(0.0, held[0][0] - time.monotonic()) if held else 0.05
                for key, _ in selector.select(min(0.05, wait_s)):
                    source: Any = key.fileobj
                    data = source.recv(MIB)
                    if not data:
                        selector.unregister(source)
                    self.bytes += len(data)
                    held.append((time.monotonic() + self._delay_s, key.data, data))
                while held and held[0][0] <= time.monotonic():
                    _, sink, data = held.popleft()
                    if data:
                        sink.sendall(data)
                    else:
                        sink.shutdown(socket.SHUT_WR)


def talk(secure: bool, size: tuple[int, int], turns: int, delay_s: float | None) -> dict[str, Any]:
    """``turns`` messages with answers; ``delay_s``: by a relay, which counts; None: by none."""
    with socket.create_server((HOST, 0)) as probe:
        port: int = probe.getsockname()[1]
    keys = RunKeys(["client-1"]) if secure else None
    relay = None if delay_s is None else Relay(port, delay_s)
    (here, there), (ours, theirs) = Channel.pair(Figures), Channel.pair(Figures)
    children = [
        Child("server", lambda: serve(port, keys, turns, there)),
        Child("client", lambda: call(relay.port if relay else port, keys, size, turns, theirs)),
    ]
    for end in (there, theirs):
        end.close()
    try:
        if relay is not None:
            relay.run(lambda: all(child.ended() for child in children))
        server, client = here.receive(WAIT_S), ours.receive(WAIT_S)
    finally:
        for child in children:
            child.kill()
    return {
        "bytes": relay.bytes if relay else 0,
        "first_s": client.seconds[0],
        "seconds": min(client.seconds[1:], default=0.0),
        "cpu_s": (sum(server.cpu_s[1:]) + sum(client.cpu_s[1:])) / max(1, turns),
    }


def rounds(secure: bool, clients: int, count: int, profile: str, links: str) -> dict[str, float]:
    """A run of ``launch``: its training, wire bytes, and CPU of its server."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [f"--clients={clients}", f"--rounds={count}", f"--profile={profile}", "--json"]
        flags += [f"--links={links}", f"--out={folder}", "--secure" if secure else "--no-secure"]
        if clients > MOST_OF_DIGITS:
            flags += ["--dataset=glyphs", f"--train-samples={SAMPLES * clients}"]
        command = [sys.executable, str(ROOT / "cli.py"), "launch", *flags, "--no-calibrate"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise click.ClickException(done.stderr)
        summary = json.loads(done.stdout)
    wire = summary["bytes"]["wire"]
    server = next(each for each in summary["processes"] if each["node"] == "server")
    return {
        "round, s": summary["seconds"]["training"] / count,
        "startup, s": summary["seconds"]["startup"],
        "wire, MB": (wire["up"] + wire["down"]) / 1e6,
        "server CPU, s": server["cpu_s"],
        "client, MB": max(p["peak_private_mb"] or 0 for p in summary["processes"] if p != server),
    }


@click.command()
@click.option("--repeat", default=5, show_default=True, type=click.IntRange(1, 1000))
@click.option("--clients", default="20", show_default=True, help="Of runs, such as 20,1000.")
@click.option("--rounds", "count", default=5, show_default=True, type=click.IntRange(1, 1000))
@click.option("--profile", default="4g", show_default=True)
@click.option("--links", default="loopback", show_default=True)
def main(repeat: int, clients: str, count: int, profile: str, links: str) -> None:
    click.echo(f"load {os.getloadavg()[0]:.2f}")
    click.echo(f"{'':8} {'tensors':>7} {'clear':>10} {'secure':>10} {'more':>8}")
    for name, size in SIZES.items():
        clear, secure = (talk(each, size, 1, 0.0)["bytes"] for each in (False, True))
        start = [talk(each, size, 0, 0.0)["bytes"] for each in (False, True)]
        more = (secure - start[1]) / (clear - start[0]) - 1
        click.echo(f"{name:8} {size[1]:7} {clear:10} {secure:10} {100 * more:7.3f} %")
        click.echo(f"{'':8} of that the connection: {start[0]} and {start[1]} bytes")
        if size[0] >= MIB:
            what = f"secure, {name}: bytes on the wire"
            table.add(what, "ratio", 1 + more, "at most", 1 + MOST_BYTES, most=1)
    trips = [
        1000
        * min(talk(each, (0, 1), 0, DELAY_MS / 1000)["first_s"] for _ in range(3))
        / 2
        / DELAY_MS
        for each in (False, True)
    ]
    click.echo(
        f"round trips to the first answer: {trips[0]:.2f} in the clear, {trips[1]:.2f} secure"
    )
    click.echo(f"{'':8} {'ms, clear':>10} {'secure':>8} {'CPU ms a MB, clear':>19} {'secure':>8}")
    for name, size in SIZES.items():
        turns = repeat if size[0] > MIB else 20 * repeat
        found = [talk(each, size, turns, None) for each in (False, True)]
        ms = [1000 * each["seconds"] for each in found]
        cpu = [1e9 * each["cpu_s"] / size[0] for each in found]
        click.echo(f"{name:8} {ms[0]:10.2f} {ms[1]:8.2f} {cpu[0]:19.2f} {cpu[1]:8.2f}")
    for number in [int(each) for each in clients.split(",") if each]:
        for name in ("in the clear", "secure"):
            row = rounds(name == "secure", number, count, profile, links)
            told = ", ".join(f"{what} {value:.4g}" for what, value in row.items())
            click.echo(f"{number} clients on {profile}, {name}: {told}")


if __name__ == "__main__":
    main()
