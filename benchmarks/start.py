"""From the command to the first round: where the time goes, and what is imported for it.

    python benchmarks/start.py [--clients=20] [--profile=4g] [--repeat=3]

First table: when each step of a start had ended, seconds after the command, as medians. Steps of
the network and of the nodes' process, the zygote, go on at the same time: the zygote imports and
loads while links are built and probed. Second table: the seconds that packages take to import, by
`python -X importtime` in one more run, in the command itself and in the zygote; what every node is
forked with costs no node anything.
"""

import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import click
import table

CLI = Path(__file__).parent.parent / "cli.py"
LIMIT_S = 6.0
"""Asked for with 20 clients."""
STEPS = {
    "run": "configuration checked",
    "links": "links are up",
    "certified": "links probed, zygote loaded",
    "started": "every node forked",
    "ready": "every node has its model and socket",
    "joined": "every client has said hello",
    "round_started": "first round",
}
LEAST_IMPORT_S = 0.02
IMPORT = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)")


def launch(clients: int, profile: str, out: str, *python: str) -> tuple[Path, str]:
    """The folder of a run of one round, and what was printed on standard error."""
    command = [sys.executable, *python, str(CLI), "launch", f"--out={out}", "--rounds=1"]
    command += [f"--clients={clients}", f"--profile={profile}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise click.ClickException(f"the run ended with {done.returncode}: {done.stderr[-500:]}")
    (folder,) = Path(out).iterdir()
    return folder, done.stderr


def steps(folder: Path) -> dict[str, float]:
    """When the last event of each kind came, seconds after the command."""
    found: dict[str, float] = {}
    for line in (folder / "events.jsonl").open():
        event = json.loads(line)
        found[event["event"]] = event["t"]
    return {name: found[name] for name in STEPS if name in found}


def imports(text: str) -> Counter[str]:
    """Seconds of each package, its own modules alone."""
    found: Counter[str] = Counter()
    for micros, module in IMPORT.findall(text):
        found[module.partition(".")[0]] += int(micros) / 1e6
    return found


@click.command()
@click.option("--clients", default=20, show_default=True, type=click.IntRange(1, 1000))
@click.option("--profile", default="4g", show_default=True)
@click.option("--repeat", default=3, show_default=True, type=click.IntRange(1, 100))
def main(clients: int, profile: str, repeat: int) -> None:
    runs = []
    for _ in range(repeat):
        with tempfile.TemporaryDirectory() as out:
            runs.append(steps(launch(clients, profile, out)[0]))
    click.echo(f"{clients} clients on {profile}, median of {repeat}: seconds after the command")
    for name, words in STEPS.items():
        times = [run[name] for run in runs if name in run]
        if times:
            spread = f"(from {min(times):.2f} to {max(times):.2f})"
            click.echo(f"{words:38} {statistics.median(times):6.2f}  {spread}")
    first_s = statistics.median(run["round_started"] for run in runs)
    click.echo(f"{'limit':38} {LIMIT_S:6.2f}  ratio {first_s / LIMIT_S:.2f}")
    what = f"start of {clients} clients, from the command to the first round"
    table.add(what, "s", first_s, "limit", LIMIT_S, most=1)
    with tempfile.TemporaryDirectory() as out:
        folder, errors = launch(clients, profile, out, "-X", "importtime")
        command, zygote = imports(errors), imports((folder / "nodes.log").read_text())
    click.echo(f"\n{'seconds of imports':24} {'command':>8} {'zygote':>8}")
    for package, _ in (command + zygote).most_common():
        if max(command[package], zygote[package]) >= LEAST_IMPORT_S:
            click.echo(f"{package:24} {command[package]:8.2f} {zygote[package]:8.2f}")
    click.echo(f"{'all':24} {command.total():8.2f} {zygote.total():8.2f}")


if __name__ == "__main__":
    main()
