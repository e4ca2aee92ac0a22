"""The elastic clock against one that is slower throughout, and against none.

    python benchmarks/clock.py [--links=userspace] [--repeat=1] [--congestion=reno] [CASE ...]

Each case is run with each clock. The reference is a constant dilation with which this machine's
part of the certificate passes: the one that `--dilation=auto` finds, and where that is not enough
twice as much, three times at most. Seconds are emulated ones of a round, the median of all rounds
of all repeats; bytes are those on the wire, both ways. Asked for: the median within 3 % of the
reference's, bytes within 0.5 %, a host that passes, and the default run within 25 s of the
machine's time.

TCP is Reno, since CUBIC is no reference: the end of its slow start (HyStart) goes by a spacing of
acknowledgements and a growth of the round trip that are constants of the kernel's time, 2 and 4 to
16 ms, which a constant dilation shortens to nothing.
"""

import json
import math
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import click
import table

CLI = Path(__file__).parent.parent / "cli.py"
CASES = {
    "default": ("--profile=4g", "--clients=20"),
    "fedavg-wifi": ("--method=fedavg", "--profile=wifi", "--clients=20", "--rounds=4"),
    "fedbuff": ("--method=fedbuff", "--profile=4g", "--clients=10", "--rounds=8"),
    "splitfed": ("--method=splitfed", "--profile=4g", "--clients=10", "--rounds=2"),
    "vit-b16": (
        *("--compute=modelled", "--model=vit-b16", "--device-class=laptop"),
        *("--profile=4g", "--clients=10", "--rounds=3"),
    ),
}
"""Flags of each case."""
SECONDS_APART, BYTES_APART = 0.03, 0.005
HOST_LIMIT_S = 25.0
"""Of the default run, with two cores."""
LIMIT_S = 3000.0


class Measured(NamedTuple):
    rounds_s: list[float]
    compute_s: list[float]
    """Of the slowest client in each, where the method's rounds have such."""
    wire_bytes: int
    host: str
    links: str
    machine_s: float
    dilation: float

    @property
    def round_s(self) -> float:
        return statistics.median(self.rounds_s)

    @property
    def computing_s(self) -> float:
        return statistics.median(self.compute_s) if self.compute_s else math.nan


def run(flags: tuple[str, ...], dilation: str | float) -> Measured:
    """What one run's summary says."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, str(CLI), "launch", *flags, f"--dilation={dilation}"]
        done = subprocess.run(
            [*command, f"--out={out}", "--quiet"], capture_output=True, text=True, timeout=LIMIT_S
        )
        if done.returncode:
            raise click.ClickException(f"{' '.join(command)}: {done.stderr[-500:]}")
        (folder,) = Path(out).iterdir()
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return Measured(
        [entry["seconds"] for entry in summary["rounds"]],
        [entry["compute_s"] for entry in summary["rounds"] if entry["compute_s"] is not None],
        sum(summary["bytes"]["wire"].values()),
        summary["fidelity"]["host"]["verdict"],
        summary["fidelity"]["links"]["verdict"],
        summary["seconds"]["host_total"],
        summary["dilation"],
    )


def joined(runs: list[Measured]) -> Measured:
    """The same of several runs: all rounds, and of the rest the median or the worst."""
    return Measured(
        [seconds for each in runs for seconds in each.rounds_s],
        [seconds for each in runs for seconds in each.compute_s],
        round(statistics.median(each.wire_bytes for each in runs)),
        min(each.host for each in runs),
        min(each.links for each in runs),
        statistics.median(each.machine_s for each in runs),
        runs[-1].dilation,
    )


def reference(flags: tuple[str, ...], repeat: int) -> Measured:
    """By a constant dilation with which the host passes, or the last that was tried."""
    asked: str | float = "auto"
    runs: list[Measured] = []
    for _ in range(3):
        runs = [run(flags, asked)]
        asked = runs[0].dilation
        if runs[0].host == "pass":
            break
        asked = 2 * asked
    return joined(runs + [run(flags, asked) for _ in range(repeat - 1)])


@click.command()
@click.option("--links", default="userspace", type=click.Choice(["userspace", "loopback"]))
@click.option("--repeat", default=1, show_default=True, type=click.IntRange(1, 20))
@click.option("--congestion", default="reno", show_default=True)
@click.argument("cases", nargs=-1, type=click.Choice(list(CASES)))
def main(links: str, repeat: int, congestion: str, cases: tuple[str, ...]) -> None:
    head = f"{'case':12} {'clock':>14} {'s a round':>10} {'from':>8} {'to':>8} {'computing':>10}"
    click.echo(f"{head} {'MB':>8} {'host':>8} {'links':>8} {'machine s':>10}")
    for case in cases or CASES:
        flags = (*CASES[case], f"--links={links}", f"--congestion={congestion}")
        of = {
            "none": joined([run(flags, 1) for _ in range(repeat)]),
            "constant": reference(flags, repeat),
            "elastic": joined([run(flags, "elastic") for _ in range(repeat)]),
        }
        for clock, found in of.items():
            name = f"{clock}, {found.dilation:g}" if clock == "constant" else clock
            click.echo(
                f"{case:12} {name:>14} {found.round_s:10.3f} {min(found.rounds_s):8.3f} "
                f"{max(found.rounds_s):8.3f} {found.computing_s:10.3f} "
                f"{found.wire_bytes / 1e6:8.3f} {found.host:>8} {found.links:>8} "
                f"{found.machine_s:10.1f}"
            )
        elastic, constant = of["elastic"], of["constant"]
        apart = elastic.round_s / constant.round_s - 1
        more = elastic.wire_bytes / constant.wire_bytes - 1
        click.echo(f"{case:12} elastic to constant: {100 * apart:+.2f} % s, {100 * more:+.3f} % MB")
        what = f"elastic clock, {case}: "
        for name, unit, of_each, most in (
            ("a round", "s", (elastic.round_s, constant.round_s), SECONDS_APART),
            ("on the wire", "bytes", (elastic.wire_bytes, constant.wire_bytes), BYTES_APART),
        ):
            measured, value = of_each
            within = {"least": 1 - most, "most": 1 + most}
            table.add(f"{what}{name}", unit, measured, "constant dilation", value, **within)
        passes = float(elastic.host == "pass")
        table.add(f"{what}host passes", "", passes, "its verdict", 1.0, least=1)
        if case == "default":
            name = f"{what}of the machine"
            table.add(name, "s", elastic.machine_s, "limit", HOST_LIMIT_S, most=1)


if __name__ == "__main__":
    main()
