"""Whether clients of split training wait for one another: a round of one, and of many.

    python benchmarks/exchanges.py [--clients=1,4,16] [--profile=starlink] [--links=userspace]

SplitFed sends activations and gets gradients back for each batch, so a round is a row of round
trips. Every client has as many batches, and behind a line of its own it should take as long among
many as by itself. Compute is modelled, on devices that take no time; what modelling itself takes of
this machine does not count, since the run's clock is slowed down. The ratio is to the first row's.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import table

CLI = Path(__file__).parent.parent / "cli.py"
FLAGS = ("--method=splitfed", "--compute=modelled", "--device-class=100000", "--rounds=3")
FLAGS += ("--server-device-class=100000", "--dataset=glyphs", "--partition=iid", "--no-calibrate")
FLAGS += ("--dilation=10",)
SAMPLES = 128
"""Of a client."""
BATCH = 16
LIMIT_S = 900.0
MOST_RATIO = 1.1


def round_s(clients: int, profile: str, links: str) -> float:
    """The median of a run's rounds but the first."""
    with tempfile.TemporaryDirectory() as out:
        flags = [f"--clients={clients}", f"--profile={profile}", f"--links={links}", *FLAGS]
        flags += [f"--train-samples={SAMPLES * clients}", f"--set=batch_size={BATCH}"]
        command = [sys.executable, str(CLI), "launch", f"--out={out}", *flags]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=LIMIT_S)
        (folder,) = Path(out).iterdir()
        summary = json.loads((folder / "summary.json").read_text())
        return statistics.median(entry["seconds"] for entry in summary["rounds"][1:])


@click.command()
@click.option("--clients", default="1,4,16", show_default=True)
@click.option("--profile", default="starlink", show_default=True)
@click.option("--links", default="userspace", show_default=True)
def main(clients: str, profile: str, links: str) -> None:
    click.echo(f"SplitFed on {profile}, {SAMPLES} samples a client in batches of {BATCH}")
    click.echo(f"{'clients':>8} {'round, s':>9} {'ratio':>6}")
    first: tuple[int, float] | None = None
    for count in (int(each) for each in clients.split(",")):
        seconds = round_s(count, profile, links)
        first = first or (count, seconds)
        click.echo(f"{count:8} {seconds:9.3f} {seconds / first[1]:6.2f}")
        if count != first[0]:
            what = f"a round of SplitFed on {profile}, {count} clients"
            table.add(what, "s", seconds, f"{first[0]} alone", first[1], most=MOST_RATIO)


if __name__ == "__main__":
    main()
