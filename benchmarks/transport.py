"""Large tensors over 127.0.0.1, unshaped: our transport, ZeroMQ with nothing above it, and gRPC.

    python benchmarks/transport.py [--mebibytes=100,10,1] [--repeat=10] [--peers=.venv-peers]

One server and one client, each a process. Up: the client sends a message and waits for a short
answer. Down: it asks in a few bytes and gets the message. Seconds are from its sending to the
answer's arrival. Bare ZeroMQ has the same kinds of socket and sends and takes frames without a
copy, as we do; what ours adds is names, types, shapes, checks, events and asyncio at the server,
which keeps the memory of large messages for the next ones as the server of a run does. (A client of
a run gives its memory back after each round, as neither does here.)
gRPC has two columns: bytes that are there already, in one message or as a stream of 1 MiB,
whichever is quicker; and an array as federated learning over gRPC sends it, by numpy.save in a
protobuf message and back. It comes from the package index into an environment of its own; where it
cannot, its columns are empty.

Ours and the bare one take turns, so that a busy machine is busy for both; gRPC goes before them.
Times are the quickest of all turns, with the median beside it; ratios are of the quickest, theirs /
ours: more than 1 is ours quicker.
"""

import asyncio
import functools
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import table
import torch
import zmq
from peers import FOLDER, NoPeer, environment

from testbed.network.direction import WAYS
from testbed.processes import heap
from testbed.processes.channel import Channel
from testbed.processes.child import Child
from testbed.transport.sockets import ClientTransport, ServerTransport
from testbed.transport.wire import encode_tensors

HOST = "127.0.0.1"
WAIT_S = 120.0
GRPC_LIMIT_S = 600.0
GRPC = ("grpcio>=1.60", "protobuf>=5", "numpy>=2")
GRPC_RATIO = 5.0
"""Asked for of large tensors."""

Exchange = Callable[[str, int], None]


@functools.cache
def tensors(size: int) -> dict[str, torch.Tensor]:
    return {"block": torch.ones(size, dtype=torch.uint8)} if size else {}


@functools.cache
def data(size: int) -> bytes:
    return size * b"1"


async def serve_ours(port: int) -> None:
    heap.keep_large()
    torch.set_num_threads(1)
    transport = ServerTransport(HOST, port, {"client-1"}, lambda event: None)
    while True:
        message = await transport.receive()
        size = int(message.details["size"])
        await transport.send("client-1", "answer", 0, encode_tensors(tensors(size)), {})


def call_ours(port: int) -> Exchange:
    transport = ClientTransport("client-1", HOST, port, lambda event: None)

    def exchange(way: str, size: int) -> None:
        up, down = (size, 0) if way == "up" else (0, size)
        transport.send("block", 0, tensors(up), {"size": down})
        answer = transport.receive(WAIT_S)
        assert answer.payload_bytes == down

    return exchange


def serve_bare(port: int) -> None:
    sock = zmq.Context().socket(zmq.ROUTER)
    sock.bind(f"tcp://{HOST}:{port}")
    while True:
        identity, asked, *_ = sock.recv_multipart(copy=False)
        sock.send_multipart([identity, data(int(asked.bytes))], copy=False)


def call_bare(port: int) -> Exchange:
    sock = zmq.Context().socket(zmq.DEALER)
    sock.setsockopt(zmq.RCVTIMEO, round(1000 * WAIT_S))
    sock.connect(f"tcp://{HOST}:{port}")

    def exchange(way: str, size: int) -> None:
        up, down = (size, 0) if way == "up" else (0, size)
        sock.send_multipart([str(down).encode(), data(up)], copy=False)
        (answer,) = sock.recv_multipart(copy=False)
        assert len(answer) == down

    return exchange


def call(ports: tuple[int, int], sizes: list[int], repeat: int, results: Channel) -> None:
    """Every exchange in turns, ours and the bare one; seconds of each."""
    torch.set_num_threads(1)
    exchanges = {"ours": call_ours(ports[0]), "bare": call_bare(ports[1])}
    for size in sizes:
        seconds: dict[str, list[float]] = {f"{n} {way}": [] for n in exchanges for way in WAYS}
        for turn in range(repeat + 1):
            for name, exchange in exchanges.items():
                for way in WAYS:
                    began = time.perf_counter()
                    exchange(way, size)
                    if turn:  # The first connects, and finds no memory to use again.
                        seconds[f"{name} {way}"].append(time.perf_counter() - began)
        results.send({"size": size, "seconds": seconds})


def free_ports(count: int) -> list[int]:
    import socket

    held = [socket.create_server((HOST, 0)) for _ in range(count)]
    ports: list[int] = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports


def measure(sizes: list[int], repeat: int) -> dict[int, dict[str, list[float]]]:
    ours, bare = free_ports(2)
    here, there = Channel.pair()
    children = [
        Child("server", lambda: asyncio.run(serve_ours(ours))),
        Child("bare server", lambda: serve_bare(bare)),
        Child("client", lambda: call((ours, bare), sizes, repeat, there)),
    ]
    there.close()
    try:
        rows = [here.receive(WAIT_S * repeat) for _ in sizes]
    finally:
        for child in children:
            child.kill()
        here.close()
    return {row["size"]: row["seconds"] for row in rows}


def measure_grpc(folder: Path, sizes: list[int], repeat: int) -> dict[str, dict[str, list[float]]]:
    """Raises NoPeer where there is no gRPC to be had."""
    python = environment(folder, *GRPC)
    words = [str(number) for size in sizes for number in (size, repeat)]
    command = [str(python), str(FOLDER / "grpc_bytes.py"), *words]
    # In a session of its own, so that what it leaves can be ended by the group's id.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            out, errors = process.communicate(timeout=GRPC_LIMIT_S)
        except subprocess.TimeoutExpired as error:
            os.killpg(process.pid, 9)
            raise NoPeer(f"gRPC took longer than {GRPC_LIMIT_S:g} s") from error
    if process.returncode:
        raise NoPeer(f"gRPC: {errors.strip().splitlines()[-1]}")
    found: dict[str, dict[str, list[float]]] = json.loads(out)
    return found


@click.command()
@click.option("--mebibytes", default="100,10,1", show_default=True, help="Sizes of messages.")
@click.option("--repeat", default=10, show_default=True, type=click.IntRange(1, 1000))
@click.option("--peers", default=".venv-peers", show_default=True, type=click.Path(path_type=Path))
def main(mebibytes: str, repeat: int, peers: Path) -> None:
    sizes = [round(float(each) * (1 << 20)) for each in mebibytes.split(",")]
    grpc: dict[str, Any] = {}
    try:
        grpc = measure_grpc(peers, sizes, repeat)
    except NoPeer as reason:
        click.echo(f"no gRPC: {reason}")
    found = measure(sizes, repeat)
    click.echo(f"quickest (median) of {repeat}, ms; load {os.getloadavg()[0]:.2f}")
    click.echo(
        f"{'MiB':>6} {'':4} {'ours':>17} {'GB/s':>6} {'bare ZeroMQ':>17} {'ratio':>6} "
        f"{'gRPC, bytes':>17} {'ratio':>6} {'gRPC, arrays':>17} {'ratio':>6}"
    )
    for size, seconds in found.items():
        for way in WAYS:
            ours, bare = seconds[f"ours {way}"], seconds[f"bare {way}"]
            line = (
                f"{size / (1 << 20):6g} {way:4} {shown(ours)} {size / min(ours) / 1e9:6.2f} "
                f"{shown(bare)} {min(bare) / min(ours):6.2f}"
            )
            if way == "up" and grpc:
                arrays = grpc[str(size)].pop("arrays")
                quickest = min(grpc[str(size)].values(), key=min)
                for name, theirs in (("bytes", quickest), ("arrays", arrays)):
                    line += f" {shown(theirs)} {min(theirs) / min(ours):6.2f}"
                    tell(size, way, ours, f"gRPC, {name}", theirs, least=GRPC_RATIO)
            tell(size, way, ours, "bare ZeroMQ", bare, least=1)
            click.echo(line)


def tell(
    size: int, way: str, ours: list[float], peer: str, theirs: list[float], least: float
) -> None:
    what = f"transport, {size / (1 << 20):g} MiB {way}"
    quickest_ms = 1000 * min(ours), 1000 * min(theirs)
    table.add(what, "ms", quickest_ms[0], peer, quickest_ms[1], least=least, inverse=True)


def shown(seconds: list[float]) -> str:
    """ "  12.34 ( 13.37)" """
    return f"{1000 * min(seconds):8.2f} ({1000 * statistics.median(seconds):6.2f})"


if __name__ == "__main__":
    main()
