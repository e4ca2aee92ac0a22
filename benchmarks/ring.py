"""A ring against a star: FedAvg by an all-reduce among the clients, and by a server, same links.

    python benchmarks/ring.py [--profiles=4g,wifi] [--clients=8] [--rounds=4] [--links=userspace]

Every parameter of the shipped model is averaged (1.21 MB one way). Clients compute next to nothing
(modelled, on the fastest of devices), so that a round's seconds are the network's and the testbed's
own. For each profile the server stands behind a line without limits and behind one like the
clients'. MB are of the wire, a round: of the client that moved most, one way, and of the server.
Seconds are the median over rounds but the first, in which the ring connects; that one stands beside
it. Each row of the ring ends with its ratios to the star's: bytes of all clients, and seconds.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import click
import table

CLI = Path(__file__).parent.parent / "cli.py"
LIMIT_S = 1200.0


class Figures(NamedTuple):
    client_mb: float
    server_mb: float
    all_mb: float
    first_s: float
    round_s: float


def one_run(flags: list[str]) -> Figures:
    """Figures a round of one `launch` with these flags."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, str(CLI), "launch", f"--out={out}", *flags]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=LIMIT_S)
        (folder,) = Path(out).iterdir()
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
        lines = (json.loads(line) for line in (folder / "events.jsonl").open())
        counters = [event["counters"] for event in lines if event["event"] == "wire"][-1]
    rounds = summary["rounds_done"]
    clients = [row["bytes"]["wire"] for row in summary["per_client"]]
    first_s, *other_s = (entry["seconds"] for entry in summary["rounds"])
    return Figures(
        client_mb=max(max(wire.values()) for wire in clients) / 1e6 / rounds,
        server_mb=sum(way[1] for way in counters[0]) / 1e6 / rounds,
        all_mb=sum(summary["bytes"]["wire"].values()) / 1e6 / rounds,
        first_s=first_s,
        round_s=statistics.median(other_s),
    )


@click.command()
@click.option("--profiles", default="4g,wifi", show_default=True)
@click.option("--clients", default=8, show_default=True, type=click.IntRange(2, 200))
@click.option("--rounds", default=4, show_default=True, type=click.IntRange(2, 100))
@click.option("--links", default="auto", show_default=True)
def main(profiles: str, clients: int, rounds: int, links: str) -> None:
    click.echo(f"{clients} clients, {rounds} rounds, load {os.getloadavg()[0]:.2f} at the start")
    click.echo(
        f"{'clients':10} {'server':10} {'':5} {'MB a client':>11} {'MB server':>10} {'MB all':>8} "
        f"{'first, s':>9} {'round, s':>9}  ratio of MB, of s"
    )
    common = ["--method=fedavg", "--compute=modelled", "--device-class=100000"]
    common += [f"--clients={clients}", f"--rounds={rounds}", f"--links={links}", "--no-calibrate"]
    for profile in profiles.split(","):
        for server in (None, profile):
            star: Figures | None = None
            for name, transport in (("star", "zmq"), ("ring", "gloo")):
                flags = [*common, f"--profile={profile}", f"--transport={transport}"]
                found = one_run(flags + ([f"--server-profile={server}"] if server else []))
                star = star or found
                if name == "ring":
                    what = f"ring of {clients} on {profile}, server's line {server or 'unlimited'}"
                    table.add(f"{what}: a round", "s", found.round_s, "star", star.round_s)
                    table.add(f"{what}: wire", "MB", found.all_mb, "star", star.all_mb)
                ratios = f"{found.all_mb / star.all_mb:11.2f}, {found.round_s / star.round_s:.2f}"
                click.echo(
                    f"{profile:10} {server or 'no limits':10} {name:5} {found.client_mb:11.3f} "
                    f"{found.server_mb:10.3f} {found.all_mb:8.2f} {found.first_s:9.2f} "
                    f"{found.round_s:9.2f}  {ratios if name == 'ring' else ''}"
                )


if __name__ == "__main__":
    main()
