"""How a run grows with its clients: set-up, memory, the server's CPU time, rounds, tear-down.

    python benchmarks/scale.py [--clients=10,50,200,1000] [--profile=4g]

LoRA on the shipped model, drawn glyphs, two rounds of one epoch: clients train for real, so a round
takes what the machine's cores take for all of them. Each row ends with the set-up's ratio to one
that grows linearly from the first row's, without the seconds of imports that every run begins with;
MB of the machine are the most in use at any second less those before. Limits, at 1000 clients:
set-up 60 s, 12 MB of private memory a client, tear-down 10 s.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import click
import psutil
import table

CLI = Path(__file__).parent.parent / "cli.py"
FLAGS = ("--dataset=glyphs", "--rounds=2", "--set=local_epochs=1", "--round-timeout=1200")
LIMIT_S = 3600.0
SETUP_LIMIT_S, CLIENT_LIMIT_MB, DOWN_LIMIT_S = 60.0, 12.0, 10.0
AT_CLIENTS = 1000


class Figures(NamedTuple):
    links_s: float
    """Namespaces, devices and queues; beside it the nodes' process imports and loads."""
    probing_s: float
    nodes_s: float
    """From the first node's start to the last one's joining."""
    setup_s: float
    """From the command to the first round."""
    client_mb: float
    worst_mb: float
    machine_mb: float
    server_cpu_s: float
    """A round."""
    round_s: float
    down_s: float
    """From the server's last word to the end of everything but the report."""


def one_run(clients: int, profile: str) -> Figures:
    before = psutil.virtual_memory().used
    most = before
    with tempfile.TemporaryDirectory() as out:
        flags = [f"--out={out}", f"--clients={clients}", f"--profile={profile}", *FLAGS]
        command = [sys.executable, str(CLI), "launch", *flags]
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        until_s = time.monotonic() + LIMIT_S
        while run.poll() is None:
            most = max(most, psutil.virtual_memory().used)
            if time.monotonic() > until_s:
                run.terminate()
            time.sleep(0.5)
        if run.returncode:
            raise click.ClickException(f"{clients} clients: the run ended with {run.returncode}")
        (folder,) = Path(out).iterdir()
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
        events = [json.loads(line) for line in (folder / "events.jsonl").open()]
    times: dict[str, list[float]] = {}
    for event in events:
        times.setdefault(event["event"], []).append(event["t"])
    late = [entry for entry in summary["rounds"] if entry["clients_failed"]]
    if late:
        raise click.ClickException(f"{clients} clients: {late[0]['missed'][0]}")
    nodes = {row["node"]: row for row in summary["processes"]}
    server = nodes.pop("server")
    private_mb = [row["private_mb"] for row in nodes.values()]
    return Figures(
        links_s=times["links"][0] - times["run"][0],
        probing_s=times["certified"][0] - times["links"][0],
        nodes_s=times["joined"][0] - times["certified"][0],
        setup_s=summary["seconds"]["startup"],
        client_mb=statistics.median(private_mb),
        worst_mb=max(private_mb),
        machine_mb=(most - before) / 1e6,
        server_cpu_s=server["cpu_s"] / len(summary["rounds"]),
        round_s=statistics.median(entry["seconds"] for entry in summary["rounds"]),
        down_s=times["closed"][0] - times["done"][0],
    )


@click.command()
@click.option("--clients", default="10,50,200,1000", show_default=True)
@click.option("--profile", default="4g", show_default=True)
def main(clients: str, profile: str) -> None:
    click.echo(f"{profile}, load {os.getloadavg()[0]:.2f} at the start")
    names = ("links s", "probing s", "nodes s", "set-up s", "client MB", "worst MB")
    names += ("machine MB", "server CPU s", "round s", "down s", "linear")
    click.echo(" ".join(f"{name:>12}" for name in ("clients", *names)))
    first: tuple[int, float] | None = None
    for count in [int(text) for text in clients.split(",")]:
        found = one_run(count, profile)
        own_s = found.probing_s + found.nodes_s + found.links_s
        first = first or (count, own_s)
        linear = (own_s / count) / (first[1] / first[0])
        values = [f"{value:12.2f}" for value in (*found, linear)]
        click.echo(" ".join([f"{count:12}", *values]))
        if count > first[0]:
            what = f"{count} clients: set-up beyond imports, a client"
            table.add(what, "s", own_s / count, f"{first[0]} clients'", first[1] / first[0], most=1)
        if count == AT_CLIENTS:
            for name, value, limit in (
                ("set-up, s", found.setup_s, SETUP_LIMIT_S),
                ("worst client, MB", found.worst_mb, CLIENT_LIMIT_MB),
                ("tear-down, s", found.down_s, DOWN_LIMIT_S),
            ):
                click.echo(f"{name:24} {value:8.2f}  limit {limit:6.2f}  ratio {value / limit:.2f}")
                what, _, unit = name.partition(", ")
                table.add(f"{count} clients: {what}", unit, value, "limit", limit, most=1)


if __name__ == "__main__":
    main()
