"""What the `userspace` links cost and keep: goodput, CPU a frame, lateness, set-up of many nodes.

    python benchmarks/links.py [--seconds=4] [--nodes=20,200,1000] [--congestion=bbr]

First table: TCP streams fill the uplinks of a few layouts at once, each link its own stream of
plain sockets, one process for all senders and one for all receivers. Ratio is goodput to the most
that TCP can carry at the line's rate, rate * 1448 / 1514, of all links together and of the slowest.
CPU is that of the link process, in cores and for each frame that it delivered, acknowledgements
too. `others` is what the rest of the machine did meanwhile, in cores: where it is much, the row
says little. Second table: networks of so many nodes up and down again; the memory is the kernel's
(slab) and the link process's own, for each node.
"""

import os
import resource
import time
from pathlib import Path
from typing import Any

import click
import psutil
import streams
import table
from streams import WAIT_S, WARM_S, busy_s, delivered, used_s

from testbed.links.linux import namespaces
from testbed.links.userspace import backend as userspace
from testbed.network.direction import Direction
from testbed.network.profiles import LinkProfile, load
from testbed.network.topology import plan
from testbed.processes.channel import Channel
from testbed.processes.child import Child

LATENESS = ("p50", "p95", "p99", "p99.9", "max")


def even(rate_kbit: float | None, delay_ms: float) -> LinkProfile:
    line = Direction(rate_kbit=rate_kbit, delay_ms=delay_ms)
    return LinkProfile(name="even", up=line, down=line)


CASES: list[tuple[str, list[LinkProfile]]] = [
    ("one 4g", [load("4g")]),
    ("one of 100 Mbit/s, 10 ms", [even(100_000, 10)]),
    ("one ethernet, 1 Gbit/s, 0.25 ms", [load("ethernet")]),
    ("20 of 50 Mbit/s, 25 ms", [even(50_000, 25)] * 20),
    ("one without limits", [even(None, 0)]),
]


def fill(profiles: list[LinkProfile], congestion: str | None, seconds: float) -> dict[str, Any]:
    """Goodput of every link and what the link process used while all were full."""
    layout = plan(profiles)
    network = userspace.up(layout)
    process = network._process.pid
    ours, theirs = Channel.pair()

    def receive() -> None:
        streams.take(streams.await_calls(network, layout, theirs), seconds, theirs)

    def send() -> None:
        streams.send(streams.call(network, layout, congestion), WARM_S + seconds + WAIT_S)

    children = [Child("receiver", receive)]
    try:
        ours.receive(WAIT_S)
        children.append(Child("sender", send))
        ours.receive(WAIT_S)
        pids = [process, *(child.pid for child in children)]
        before = busy_s(), [used_s(pid) for pid in pids], network.counters()
        kbit = ours.receive(seconds + WAIT_S)["kbit"]
        used = [used_s(pid) - was for pid, was in zip(pids, before[1], strict=True)]
        others_s = busy_s() - before[0] - sum(used)
        frames = delivered(network.counters(), before[2])
    finally:
        for child in reversed(children):
            child.kill()
        closing = network.down()
        ours.close()
        theirs.close()
    return {
        "kbit": kbit,
        "cores": used[0] / seconds,
        "frame_us": 1e6 * used[0] / frames,
        "others": others_s / seconds,
        **closing,
    }


def fill_all(congestion: str | None, seconds: float) -> None:
    click.echo(
        f"{'':32} {'Mbit/s':>8} {'ratio':>6} {'least':>6} {'cores':>6} {'µs/frame':>9}  "
        f"lateness, ms: {' '.join(f'{name:>6}' for name in LATENESS)}  in turns  others"
    )
    for name, profiles in CASES:
        found = fill(profiles, congestion, seconds)
        kbit, ideal = found["kbit"], profiles[0].up.ideal_goodput_kbit
        ratios = f"{'':6} {'':6}"
        if ideal:
            ratios = f"{sum(kbit) / len(kbit) / ideal:6.4f} {min(kbit) / ideal:6.4f}"
            what = f"{name}: goodput of the slowest link"
            table.add(what, "kbit/s", min(kbit), "TCP at line rate", ideal, least=0.98)
        late = " ".join(f"{found[f'lateness_{key}_ms']:6.3f}" for key in LATENESS)
        in_turns = found["frames_in_turns"] / max(1, found["releases"])
        click.echo(
            f"{name:32} {sum(kbit) / 1000:8.1f} {ratios} {found['cores']:6.2f} "
            f"{found['frame_us']:9.1f}  {'':13} {late}  {in_turns:8.0%}  {found['others']:6.2f}"
        )


def slab_kb() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Slab:"))


def build_all(counts: list[int]) -> None:
    """Networks of so many nodes, up and down."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    click.echo(f"{'nodes':>6} {'up, s':>8} {'down, s':>8} {'kernel, KB/node':>16} {'own, MB':>8}")
    for count in counts:
        layout, slab = plan([load("4g")] * (count - 1)), slab_kb()
        began = time.monotonic()
        network = userspace.up(layout)
        up_s = time.monotonic() - began
        node_kb = (slab_kb() - slab) / count
        own_mb = psutil.Process(network._process.pid).memory_full_info().uss / 1e6
        began = time.monotonic()
        network.down()
        down_s = time.monotonic() - began
        click.echo(f"{count:6} {up_s:8.2f} {down_s:8.2f} {node_kb:16.0f} {own_mb:8.1f}")


@click.command()
@click.option("--seconds", default=4.0, show_default=True, type=click.FloatRange(0.5, 600))
@click.option("--nodes", default="20,200,1000", show_default=True, help="Set-ups to time.")
@click.option("--congestion", help="TCP congestion control of the senders.  [default: the host's]")
def main(seconds: float, nodes: str, congestion: str | None) -> None:
    reason = userspace.probe()
    if reason is not None:
        raise click.ClickException(f"userspace links do not work here: {reason}")
    name = congestion or namespaces.congestion_control()
    click.echo(f"{os.cpu_count()} cores, congestion control {name}, {seconds:g} s a row")
    fill_all(congestion, seconds)
    click.echo()
    build_all([int(count) for count in nodes.split(",") if count])


if __name__ == "__main__":
    main()
