"""From the command to the first round on 1, 2 and 4 hosts, which are network namespaces here.

    python benchmarks/hosts_start.py [--hosts=1,2,4] [--clients=8] [--profile=4g] [--repeat=3]

Agents listen before the command. Each step is when its last event came, seconds after the command,
as a median (`benchmarks/start.py`). All hosts share this machine's cores: each has a zygote, which
imports and loads for itself, so what several machines would do at once takes turns here.
"""

import contextlib
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import table
from start import CLI, STEPS, steps

from testbed.links.linux import namespaces
from testbed.links.userspace import backend as userspace
from testbed.network.direction import Direction
from testbed.network.profiles import LinkProfile
from testbed.network.topology import plan

WAY = Direction(delay_ms=0.05)
UNDERLAY = LinkProfile(name="underlay", up=WAY, down=WAY)
LIMIT_S = 300.0


@contextlib.contextmanager
def machines(
    count: int, environment: dict[str, str]
) -> Iterator[list[tuple[str, tuple[int, ...]]]]:
    """Address and namespaces of each machine; on all but the first an agent listens."""
    layout = plan([UNDERLAY] * count)
    with contextlib.ExitStack() as owned:
        network = userspace.up(layout)
        owned.callback(network.down)
        found = [(node.address, network.endpoint(node).namespaces) for node in layout.clients]
        for address, places in found[1:]:
            words = [sys.executable, str(CLI), "agent", f"--listen={address}", "--until-input-ends"]
            agent = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
                preexec_fn=lambda places=places: namespaces.enter(places),  # type: ignore[misc]
            )
            owned.enter_context(agent)
            owned.callback(agent.terminate)
            assert agent.stdout is not None
            if not agent.stdout.readline().startswith("agent: listening"):
                raise click.ClickException(f"no agent listens at {address}")
        yield found


def started(count: int, clients: int, profile: str) -> dict[str, float]:
    """When each step of a run on so many hosts had ended."""
    environment = {**os.environ, "WIRETUNE_TOKEN": secrets.token_hex(32)}
    with machines(count, environment) as found, tempfile.TemporaryDirectory() as out:
        words = [sys.executable, str(CLI), "launch", f"--out={out}", "--rounds=1", "--plain"]
        words += [f"--clients={clients}", f"--profile={profile}", "--dilation=1"]
        words += ["--links=userspace"]
        if count > 1:
            words.append("--hosts=" + ",".join(address for address, _ in found))
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            env=environment,
            preexec_fn=lambda: namespaces.enter(found[0][1]),
        )
        if done.returncode:
            raise click.ClickException(
                f"the run ended with {done.returncode}: {done.stdout[-500:]}"
            )
        (folder,) = Path(out).iterdir()
        return steps(folder)


@click.command()
@click.option("--hosts", default="1,2,4", show_default=True)
@click.option("--clients", default=8, show_default=True, type=click.IntRange(1, 1000))
@click.option("--profile", default="4g", show_default=True)
@click.option("--repeat", default=3, show_default=True, type=click.IntRange(1, 100))
def main(hosts: str, clients: int, profile: str, repeat: int) -> None:
    if (reason := userspace.probe()) is not None:
        raise click.ClickException(f"userspace links do not work here: {reason}")
    counts = [int(each) for each in hosts.split(",")]
    load = Path("/proc/loadavg").read_text().split()[0]
    heads = ["hosts", *STEPS.values()]
    click.echo(f"| {' | '.join(heads)} |\n|{'---:|' * len(heads)}")
    alone_s: float | None = None
    for count in counts:
        runs = [started(count, clients, profile) for _ in range(repeat)]
        medians = [statistics.median(run[name] for run in runs) for name in STEPS]
        alone_s = medians[-1] if count == 1 else alone_s
        click.echo(f"| {count} | {' | '.join(f'{each:.2f}' for each in medians)} |")
        if alone_s is not None and count > 1:
            what = f"start of {clients} clients on {count} hosts of this machine"
            table.add(what, "s", medians[-1], "one host", alone_s)
    click.echo(f"\n{os.cpu_count()} cores, {clients} clients, load {load} before")


if __name__ == "__main__":
    main()
