"""A round without training, ours and Flower's: the model to every client and back, and its mean.

    python benchmarks/flower.py [--rounds=5] [--peers=.venv-peers] [--ours-alone]

Three settings, each with its limit: 2 clients and a model of 4 MiB over 127.0.0.1, the same behind
lines of 10 Mbit/s, and 20 clients with 1 MiB over 127.0.0.1. Flower's SuperLink and SuperNodes run
as their command line starts them, with nothing changed; 20 of its clients take 8 GB and minutes.
All processes stand in network namespaces of this benchmark, those of Flower too: what is shaped is
the same `userspace` link for both.

Seconds are the median over rounds but the first, from one's end to the next one's for Flower, and
from the server's first message to the new model for ours. The ideal is both transfers, one after
the other, at the most that TCP carries on the line. MB are private memory a client, that of all its
processes. Flower comes from the package index into an environment of its own; where it cannot be
had, its rows are empty.
"""

import contextlib
import itertools
import json
import os
import select
import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import psutil
import table
import torch
from peers import FOLDER, NoPeer, environment, version
from torch import nn

from methods.shared.averaging import WeightedMean
from methods.shared.local_training import load_trainable, trainable_state
from nodes.client import participate
from nodes.compute import Real
from nodes.server import serve
from testbed import clock
from testbed.links.interface import Network
from testbed.links.linux import namespaces
from testbed.links.userspace import backend as userspace
from testbed.network.direction import Direction
from testbed.network.profiles import LinkProfile
from testbed.network.topology import Node, Plan, plan
from testbed.processes.channel import Channel
from testbed.processes.child import Child
from testbed.run.config import RunConfig
from testbed.run.zygote import Address, Told
from testbed.transport.keys import RunKeys

FLOWER = "flwr>=1.41"
PORT, RUNTIME_PORT = 8000, 9100
STEP_LIMIT_S = 120.0
"""Of what comes before the first round, and of each round."""
HOST = "127.0.0.1"


class Setting(NamedTuple):
    name: str
    clients: int
    bytes: int
    rate_kbit: float | None
    """None: all over 127.0.0.1."""
    limit_s: float
    """Where there is a rate, the lines' limit counts instead."""


MIB = 1 << 20
SETTINGS = (
    Setting("2 clients, 4 MiB, unshaped", 2, 4 * MIB, None, 0.1),
    Setting("2 clients, 4 MiB, 10 Mbit/s", 2, 4 * MIB, 10_000, 0.0),
    Setting("20 clients, 1 MiB, unshaped", 20, MIB, None, 0.5),
)
MOST_OVER_IDEAL = 1.03


class Model(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size // 4))


class Server:
    """FedAvg's round."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    async def round(self, fleet: Any) -> None:
        state, mean = trainable_state(self.model), WeightedMean()
        await fleet.broadcast("model", state)
        async for update in fleet.gather("model", like=state):
            mean.add(update.tensors, weight=fleet.samples[update.sender])
        load_trainable(self.model, mean.result())

    def evaluate(self, images: Any, labels: Any) -> dict[str, float]:
        return {}


class Client:
    """Sends back what it got."""

    def __init__(self, model: nn.Module) -> None:
        self.like = trainable_state(model)

    def round(self, peer: Any) -> None:
        peer.send("model", peer.receive("model", like=self.like).tensors)


class Figures(NamedTuple):
    round_s: float
    client_mb: float


Place = Callable[[Node], None]
"""Moves this process to where a node stands."""


def ours(setting: Setting, layout: Plan, place: Place, host: str, rounds: int) -> Figures:
    torch.set_num_threads(1)
    config = RunConfig(rounds=rounds + 1, time_limit_s=STEP_LIMIT_S * (rounds + 2))
    model = Model(setting.bytes)
    samples = {node.name: 1 for node in layout.clients}
    pairs = [Channel.pair(others=Told) for _ in layout.nodes]

    def be(node: Node) -> None:
        place(node)
        channel = pairs[node.index][1]
        if node is layout.server:
            clock.run(serve(config, Server(model), None, samples, False, Real(), channel))
        else:
            participate(config, Client(model), None, node.name, {}, 1, None, Real(), channel)

    children = [Child(node.name, lambda node=node: be(node)) for node in layout.nodes]  # type: ignore
    keys = RunKeys(samples)
    for node, (here, there) in zip(layout.nodes, pairs, strict=True):
        there.close()
        here.send(Address(host, layout.port, keys=keys.of(node.name)))
    seconds: list[float] = []
    used: dict[int, float] = {}
    ends = time.monotonic() + config.time_limit_s
    channels = {here: number for number, (here, _) in enumerate(pairs)}
    try:
        while channels:
            ready, _, _ = select.select(list(channels), [], [], ends - time.monotonic())
            if not ready:
                raise click.ClickException(f"{setting.name}: ours did not end")
            for channel in ready:
                for line in channel.drain():
                    if line["event"] == "round":
                        seconds.append(line["seconds"])
                    elif line["event"] == "usage" and channels[channel]:
                        used[channels[channel]] = line["private_mb"]
                if channel.closed:
                    del channels[channel]
    finally:
        for child in children:
            child.kill()
        for here, _ in pairs:
            here.close()
    return Figures(statistics.median(seconds[1:]), statistics.median(used.values()))


@contextlib.contextmanager
def commands(place: Place, environ: dict[str, str], log: Path) -> Iterator[Callable[..., int]]:
    """``start(node, *command)`` starts a command where a node stands, and returns its process id.

    All that they started ends with the context.
    """
    children: list[Child] = []

    def start(node: Node, *command: str) -> int:
        def be() -> None:
            place(node)
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            for stream in (1, 2):
                os.dup2(out, stream)
            os.execvpe(command[0], command, environ)

        children.append(Child(command[0], be))
        return children[-1].pid

    try:
        yield start
    finally:
        left = [process for child in children for process in tree(child.pid)]
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for child in children:
            child.kill()


def tree(pid: int) -> list[psutil.Process]:
    try:
        top = psutil.Process(pid)
        return [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def private_mb(pid: int) -> float:
    total = 0
    for process in tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().uss
    return total / 1e6


def flowers(
    setting: Setting, layout: Plan, place: Place, host: str, rounds: int, python: Path
) -> Figures:
    """Raises NoPeer where it did not come to an end."""
    programs = python.parent.absolute()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        shutil.copytree(FOLDER / "flower_app", base / "app")
        (base / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n[superlink.here]\n'
            f'address = "{HOST}:{PORT}"\ninsecure = true\n'
        )
        environ = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "HOME": folder,
            "FLWR_HOME": folder,
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
        }
        times, log = base / "times.json", base / "log"
        config = f"rounds={rounds + 1} bytes={setting.bytes} clients={setting.clients} "
        config += f"out='{times}'"
        with commands(place, environ, log) as start:
            start(
                layout.server, "flower-superlink", "--insecure", "--host=0.0.0.0",
                f"--port={PORT}", "--disable-runtime-dependency-installation",
            )  # fmt: skip
            wait_for_port(layout.server, place)
            nodes = [
                start(
                    node, "flower-supernode", "--insecure", f"--superlink={host}:{PORT}",
                    f"--port={RUNTIME_PORT + node.index}",
                )
                for node in layout.clients
            ]  # fmt: skip
            start(layout.server, "flwr", "run", str(base / "app"), "here", "--run-config", config)
            ends = time.monotonic() + STEP_LIMIT_S * (rounds + 2) + 5 * setting.clients
            while len(stamps := read(times)) < rounds + 2:
                if time.monotonic() > ends:
                    last = log.read_text(errors="replace").strip().splitlines()[-1:]
                    raise NoPeer(f"Flower did not end in time; its last words: {last}")
                time.sleep(0.1)
            memory = statistics.median(private_mb(pid) for pid in nodes)
    steps = [after - before for before, after in itertools.pairwise(stamps)]
    return Figures(statistics.median(steps[1:]), memory)


def read(times: Path) -> list[float]:
    """What has been written so far; a file that is being written counts as not yet there."""
    try:
        found: list[float] = json.loads(times.read_text())
    except (OSError, ValueError):
        return []
    return found


def wait_for_port(node: Node, place: Place) -> None:
    """Until the SuperLink takes connections."""

    def knock() -> None:
        place(node)
        while True:
            with contextlib.suppress(OSError), socket.create_connection((HOST, PORT), 1):
                return
            time.sleep(0.1)

    child = Child("knock", knock)
    there = child.wait(STEP_LIMIT_S)
    child.kill()
    if not there:
        raise NoPeer("Flower's SuperLink did not start")


def settle(setting: Setting) -> tuple[Plan, Network, Place, str]:
    """The network of a setting: where its nodes stand, and the server's address for them."""
    line = Direction(rate_kbit=setting.rate_kbit)
    layout = plan([LinkProfile(name="line", up=line, down=line)] * setting.clients)
    network = userspace.up(layout)
    shaped = setting.rate_kbit is not None

    def place(node: Node) -> None:
        # 127.0.0.1 of the server's namespace is as good as any, and nobody else is there.
        namespaces.enter(network.endpoint(node if shaped else layout.server).namespaces)

    return layout, network, place, layout.server.address if shaped else HOST


def limit_s(setting: Setting) -> float:
    """What a round may take: of the setting, or by what the lines can carry."""
    if setting.rate_kbit is None:
        return setting.limit_s
    goodput_kbit = Direction(rate_kbit=setting.rate_kbit).ideal_goodput_kbit
    assert goodput_kbit is not None
    return MOST_OVER_IDEAL * 2 * 8 * setting.bytes / (1000 * goodput_kbit)


@click.command()
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1, 1000))
@click.option("--peers", default=".venv-peers", show_default=True, type=click.Path(path_type=Path))
@click.option("--ours-alone", is_flag=True, help="Install and run nothing else.")
def main(rounds: int, peers: Path, ours_alone: bool) -> None:
    reason = userspace.probe()
    if reason is not None:
        raise click.ClickException(f"takes network namespaces: {reason}")
    python, lacking = None, "left out"
    if not ours_alone:
        try:
            python = environment(peers, FLOWER)
        except NoPeer as error:
            lacking = str(error)
            click.echo(f"no Flower: {error}")
    click.echo(f"seconds a round, median of {rounds}; load {os.getloadavg()[0]:.2f} at the start")
    click.echo(
        f"{'':30} {'ours, s':>8} {'limit, s':>9} {'ratio':>6} {'Flower, s':>10} {'ratio':>7}  "
        "MB a client: ours, Flower"
    )
    for setting in SETTINGS:
        layout, network, place, host = settle(setting)
        try:
            found = ours(setting, layout, place, host, rounds)
            theirs = None
            if python is not None:
                try:
                    theirs = flowers(setting, layout, place, host, rounds, python)
                except NoPeer as error:
                    lacking = str(error)
                    click.echo(f"{setting.name}: {error}")
        finally:
            network.down()
        most_s = limit_s(setting)
        what = f"a round of {setting.name}"
        table.add(what, "s", found.round_s, "limit", most_s, most=1)
        if theirs is None:
            table.add_missing(what, "s", "Flower", f"no Flower: {lacking}")
        else:
            peer = f"Flower {version(python, 'flwr')}"
            table.add(what, "s", found.round_s, peer, theirs.round_s, most=1)
            memory_row = f"memory of a client, {setting.name}"
            table.add(memory_row, "MB", found.client_mb, peer, theirs.client_mb, most=1)
        line = (
            f"{setting.name:30} {found.round_s:8.3f} {most_s:9.3f} {found.round_s / most_s:6.2f} "
        )
        memory = f"  {found.client_mb:.1f}"
        if theirs is not None:
            line += f"{theirs.round_s:10.2f} {theirs.round_s / found.round_s:7.1f}"
            memory += f", {theirs.client_mb:.0f}"
        else:
            line += f"{'':18}"
        click.echo(line + memory)


if __name__ == "__main__":
    main()
