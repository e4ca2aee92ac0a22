"""What a tunnel between two hosts costs: CPU a frame, goodput, and how late frames come.

    python benchmarks/hosts.py [--seconds=4] [--cases="4g;20 of 4g"] [--ways=up;down] [--apart-ms=2]

TCP streams fill the clients' links, up to the server or down from it: on one host, with the server
on host a and all clients on host b, and the same with what passes between the two in the clear, as
with `--no-secure`. Both are link processes of this machine, whose tunnel is a connection on the
loopback device; with `--apart-ms` the hosts are network namespaces, so far from one another, whose
own link process takes a core's time as well.

µs a frame: CPU of a link process over the frames that reached a node, acknowledgements too; with
two hosts that of the server's, of the clients', and both to those of one host, then the same in the
clear. Late: how long after their releases frames came from the other host; left: how long after its
time a frame left its last line, on one host and on the one that takes the stream. `others` is what
the rest of the machine did meanwhile, in cores: where it is much, goodput and lateness say little.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec
import streams
import table
from streams import WAIT_S, WARM_S, busy_s, delivered, used_s

from testbed.links.interface import LinkCounters, Network
from testbed.links.linux import namespaces
from testbed.links.tunnel.meeting import Meeting, listen, new_token
from testbed.links.tunnel.tunnel import LATE
from testbed.links.userspace import backend as userspace
from testbed.network.direction import Direction
from testbed.network.hosts import Host, placed
from testbed.network.profiles import LinkProfile, load
from testbed.network.topology import Plan, plan
from testbed.processes.channel import Channel
from testbed.processes.child import Child

PORT = 4000
SERVERS, CLIENTS = "a", "b"
"""Names of the hosts, by whom they have."""
_LINE = Direction(rate_kbit=50_000, delay_ms=25)
EVEN = LinkProfile(name="even", up=_LINE, down=_LINE)
CASES: dict[str, list[LinkProfile]] = {
    "4g": [load("4g")],
    "wifi": [load("wifi")],
    "ethernet": [load("ethernet")],
    "20 of 4g": [load("4g")] * 20,
    "20 of 50 Mbit/s, 25 ms": [EVEN] * 20,
}


class Filled(NamedTuple):
    """Links of a layout that were full for a while."""

    kbit: list[float]
    """Goodput of each."""
    frame_us: dict[str, float]
    """CPU of each host's link process, in µs a frame that reached a node of any."""
    others: float
    """Cores that the rest of the machine took."""
    closing: dict[str, dict[str, Any]]
    """Each host's closing facts."""

    @property
    def both_us(self) -> float:
        return sum(self.frame_us.values())


def ends(layout: Plan, up: bool, seconds: float, results: Channel) -> dict[str, Any]:
    """What the server's process does on its network, and the clients'."""
    whole_s = WARM_S + seconds + WAIT_S

    def serve(network: Network) -> None:
        sockets = streams.await_calls(network, layout, results)
        streams.take(sockets, seconds, results) if up else streams.send(sockets, whole_s)

    def call(network: Network) -> None:
        sockets = streams.call(network, layout)
        streams.send(sockets, whole_s) if up else streams.take(sockets, seconds, results)

    return {"serve": serve, "call": call}


class End:
    """A process that has a host's network, builds it at once and starts streams when told."""

    def __init__(
        self,
        name: str,
        build: Callable[[], userspace.UserspaceNetwork],
        parts: dict[str, Callable[[Network], None]],
    ) -> None:
        self._ours, theirs = Channel.pair()
        self._child = Child(name, lambda: self._live(build, parts, theirs))
        theirs.close()

    def _live(self, build: Any, parts: dict[str, Any], channel: Channel) -> None:
        self._ours.close()
        network = build()
        children: list[Child] = []
        try:
            channel.send({"pid": network._process.pid})
            while (order := channel.receive(None)["order"]) != "stop":
                if order == "count":
                    channel.send(
                        {"counters": network.counters(), "pids": [c.pid for c in children]}
                    )
                else:
                    children.append(Child(order, lambda: parts[order](network)))
        finally:
            for child in children:
                child.kill()
            closing = network.down()
        channel.send(closing)

    def up(self) -> int:
        """Process id of its link process, once it carries packets."""
        return int(self._ours.receive(WAIT_S)["pid"])

    def start(self, part: str) -> None:
        self._ours.send({"order": part})

    def count(self) -> tuple[list[LinkCounters], list[int]]:
        """Counters, and the processes that have streams."""
        self._ours.send({"order": "count"})
        found = self._ours.receive(WAIT_S)
        return msgspec.convert(found["counters"], list[LinkCounters]), found["pids"]

    def stop(self) -> dict[str, Any]:
        self._ours.send({"order": "stop"})
        return dict(self._ours.receive(WAIT_S))

    def close(self) -> None:
        self._child.kill()
        self._ours.close()


def one_host(layout: Plan) -> dict[str, Callable[[], userspace.UserspaceNetwork]]:
    return {SERVERS: lambda: userspace.up(layout)}


@contextlib.contextmanager
def two_hosts(
    layout: Plan, apart_ms: float, *, secure: bool
) -> Iterator[dict[str, Callable[[], userspace.UserspaceNetwork]]]:
    """Builders of both hosts' networks, to be called in processes of their own."""
    names, token = (SERVERS, CLIENTS), new_token()
    spread = placed(layout, [Host(name, 1, 0) for name in names], place=_place(layout))
    with contextlib.ExitStack() as owned:
        outer, outside = None, plan([_underlay(apart_ms)] * 2).clients
        if apart_ms:
            outer = userspace.up(plan([_underlay(apart_ms)] * 2))
            owned.callback(outer.down)
            addresses = dict(zip(names, ((n.address, PORT) for n in outside), strict=True))
            listeners = {}
        else:
            listeners = {name: owned.enter_context(listen("127.0.0.1")) for name in names}
            addresses = {name: each.getsockname() for name, each in listeners.items()}

        def build(place: int, name: str) -> userspace.UserspaceNetwork:
            if outer is not None:
                namespaces.enter(outer.endpoint(outside[place]).namespaces)
            listener = listeners.get(name) or listen(*addresses[name])
            return userspace.up(spread, Meeting(name, addresses, listener, token, secure))

        yield {
            name: lambda place=place, name=name: build(place, name)  # type: ignore[misc]
            for place, name in enumerate(names)
        }


def _place(layout: Plan) -> str:
    return f"server={SERVERS},client-1:{len(layout.clients)}={CLIENTS}"


def _underlay(apart_ms: float) -> LinkProfile:
    """A quarter of the round trip between two hosts, which is a way to the middle."""
    way = Direction(delay_ms=apart_ms / 4)
    return LinkProfile(name="underlay", up=way, down=way)


def fill(
    layout: Plan,
    builders: dict[str, Callable[[], userspace.UserspaceNetwork]],
    up: bool,
    seconds: float,
) -> Filled:
    """Fill every link of the layout, and watch the link processes meanwhile."""
    ours, theirs = Channel.pair()
    parts = ends(layout, up, seconds, theirs)
    hosts = {name: End(name, build, parts) for name, build in builders.items()}
    try:
        links = {name: host.up() for name, host in hosts.items()}
        hosts[SERVERS].start("serve")
        ours.receive(WAIT_S)
        hosts[CLIENTS if CLIENTS in hosts else SERVERS].start("call")
        ours.receive(WAIT_S + WARM_S)
        before = [host.count() for host in hosts.values()]
        pids = [*links.values(), *(pid for _, own in before for pid in own)]
        was_busy, was = busy_s(), [used_s(pid) for pid in pids]
        kbit = ours.receive(seconds + WAIT_S)["kbit"]
        used = [used_s(pid) - then for pid, then in zip(pids, was, strict=True)]
        others_s = busy_s() - was_busy - sum(used)
        after = [host.count() for host in hosts.values()]
        rows = zip(after, before, strict=True)
        frames = sum(delivered(now, then) for (now, _), (then, _) in rows)
        closing = {name: host.stop() for name, host in hosts.items()}
    finally:
        for host in hosts.values():
            host.close()
        ours.close()
        theirs.close()
    cost = {name: 1e6 * s / frames for name, s in zip(links, used, strict=False)}
    return Filled(kbit, cost, others_s / seconds, closing)


def percentiles(facts: dict[str, Any], name: str) -> str:
    return " / ".join(f"{facts[f'{name}_{each}_ms']:.3g}" for each in LATE)


def show(name: str, way: str, one: Filled, two: Filled, clear: Filled, ideal_kbit: float) -> str:
    """A row of the table; the rows for the table of all benchmarks besides."""
    takes, other = (SERVERS, CLIENTS) if way == "up" else (CLIENTS, SERVERS)
    late = percentiles(two.closing[takes]["tunnels"][other], "late")
    left = [percentiles(facts, "lateness") for facts in (one.closing[SERVERS], two.closing[takes])]
    ratios = [f"{min(each.kbit) / ideal_kbit:.4f}" for each in (one, two, clear)]
    what = f"{name}, {way}, server and clients on two hosts"
    table.add(f"{what}: CPU of both", "µs/frame", two.both_us, "one host", one.both_us)
    table.add(f"{what}: CPU of both", "µs/frame", two.both_us, "in the clear", clear.both_us)
    table.add(
        f"{what}: goodput of the slowest link", "kbit/s", min(two.kbit), "one host", min(one.kbit)
    )
    cells = (
        *(name, way, *ratios, f"{one.both_us:.1f}"),
        *(f"{two.frame_us[SERVERS]:.1f}", f"{two.frame_us[CLIENTS]:.1f}"),
        *(f"{each.both_us / one.both_us:.2f}" for each in (two, clear)),
        *(late, *left, ", ".join(f"{each.others:.2f}" for each in (one, two, clear))),
    )
    return f"| {' | '.join(cells)} |"


HEADS = (
    *("links", "way", "ratio, one host", "two", "in the clear"),
    *("µs a frame, one host", "the server's", "clients'", "both to one", "in the clear"),
    *(f"late, ms, {' / '.join(LATE)}", "left, one host", "left, two", "others"),
)


def measure(cases: Sequence[str], ways: Sequence[str], seconds: float, apart_ms: float) -> None:
    click.echo(f"| {' | '.join(HEADS)} |\n|---|---|{'---:|' * (len(HEADS) - 2)}")
    for name in cases:
        layout = plan(CASES[name])
        for way in ways:
            up = way == "up"
            one = fill(layout, one_host(layout), up, seconds)
            both = []
            for secure in (True, False):
                with two_hosts(layout, apart_ms, secure=secure) as builders:
                    both.append(fill(layout, builders, up, seconds))
            ideal = getattr(CASES[name][0], way).ideal_goodput_kbit
            click.echo(show(name, way, one, *both, ideal))


def _chosen(names: str, known: Sequence[str], option: str) -> list[str]:
    found = [name.strip() for name in names.split(";") if name.strip()]
    for name in found:
        if name not in known:
            raise click.BadParameter(f"{name!r} is none of {', '.join(known)}", param_hint=option)
    return found


@click.command()
@click.option("--seconds", default=4.0, show_default=True, type=click.FloatRange(0.5, 600))
@click.option("--cases", default=";".join(CASES), show_default=True)
@click.option("--ways", default="up;down", show_default=True)
@click.option("--apart-ms", default=0.0, type=click.FloatRange(0, 1000), help="Round trip.")
def main(seconds: float, cases: str, ways: str, apart_ms: float) -> None:
    reason = userspace.probe()
    if reason is not None:
        raise click.ClickException(f"userspace links do not work here: {reason}")
    chosen = _chosen(cases, list(CASES), "--cases"), _chosen(ways, ("up", "down"), "--ways")
    load_before = Path("/proc/loadavg").read_text().split()[0]
    began = time.monotonic()
    measure(*chosen, seconds, apart_ms)
    click.echo(
        f"\n{os.cpu_count()} cores, congestion control {namespaces.congestion_control()}, "
        f"{seconds:g} s a row, load {load_before} before, {time.monotonic() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
