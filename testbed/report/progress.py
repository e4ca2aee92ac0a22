"""Progress of a run as a person sees it: a line a round, and a table at the end."""

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from testbed import clock
from testbed.metrics import metric
from testbed.network.topology import SERVER
from testbed.record import events, host_load
from testbed.record.events import Event, UpDown
from testbed.record.run_summary import Summary
from testbed.record.summary import SummaryBuilder
from testbed.report.text import one_line

_UNITS = ("B", "kB", "MB", "GB", "TB")


def human_bytes(count: float) -> str:
    """Decimal units, three significant figures: 53032 -> "53.0 kB"."""
    size, unit = float(count), 0
    while size >= 1000 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    digits = 0 if unit == 0 or size >= 100 else 1 if size >= 10 else 2
    return f"{size:.{digits}f} {_UNITS[unit]}"


class RoundLines:
    """Prints each round as it ends; on a terminal also what is going on in between."""

    def __init__(self, console: Console, rounds: int, clients: int) -> None:
        self._console = console
        self._rounds = rounds
        self._clients = clients
        self._ready = 0
        self._arrived = 0
        self._unsaved = False
        self._status = console.status("links are up; loading") if console.is_terminal else None
        self._handlers: dict[type[Event], Callable[[Any, SummaryBuilder], None]] = {
            events.Links: self._on_links,
            events.Ready: self._on_ready,
            events.Evaluated: self._on_evaluated,
            events.RoundStarted: self._on_round_started,
            events.Message: self._on_message,
            events.Resumed: self._on_resumed,
            events.Unsaved: self._on_unsaved,
            events.Certified: self._on_certified,
            events.Lost: self._on_lost,
            events.HostsCut: self._on_hosts_cut,
            events.Missed: self._on_missed,
            events.Wire: self._on_wire,
        }

    def take(self, event: Event, tally: SummaryBuilder) -> None:
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event, tally)

    def close(self) -> None:
        if self._status:
            self._status.stop()

    def _warn(self, text: str) -> None:
        self._console.print(text, style="yellow", highlight=False)

    def _say(self, text: str) -> None:
        if self._status:
            self._status.update(text)

    def _on_links(self, event: events.Links, tally: SummaryBuilder) -> None:
        # Not before: it starts a thread, and by now the supervisor has forked all it will fork.
        if self._status:
            self._status.start()

    def _on_ready(self, event: events.Ready, tally: SummaryBuilder) -> None:
        self._ready += 1
        self._say(f"{self._ready} of {self._clients + 1} nodes are ready")

    def _on_evaluated(self, event: events.Evaluated, tally: SummaryBuilder) -> None:
        # There are none where all models are the clients' own.
        if event.metrics:
            shown = _metrics(event.metrics)
            self._console.print(f"before training: {shown}", highlight=False)

    def _on_round_started(self, event: events.RoundStarted, tally: SummaryBuilder) -> None:
        self._arrived = 0
        if event.round == 1:
            loading_s = clock.host_s(event.t)
            self._console.print(f"training began after {loading_s:.1f} s", highlight=False)
        self._say(f"round {event.round} of {self._rounds}")

    def _on_message(self, event: events.Message, tally: SummaryBuilder) -> None:
        if event.node == SERVER and event.round:
            self._arrived += 1
            self._say(f"round {event.round} of {self._rounds}: {self._arrived} updates arrived")

    def _on_resumed(self, event: events.Resumed, tally: SummaryBuilder) -> None:
        self._console.print(
            f"goes on after round {event.round}; {event.lost.seconds:.1f} s of what "
            "followed it are lost",
            highlight=False,
        )

    def _on_unsaved(self, event: events.Unsaved, tally: SummaryBuilder) -> None:
        # The others' reasons are the same, and so are later ones.
        if not self._unsaved:
            self._warn(f"a state is not kept: {event.reason}")
        self._unsaved = True

    def _on_certified(self, event: events.Certified, tally: SummaryBuilder) -> None:
        verdict, reason = event.fidelity.verdict, event.fidelity.reason
        style = "yellow" if verdict == "fail" else None
        text = f"links checked: {verdict}: {reason}"
        self._console.print(text, style=style, highlight=False)

    def _on_lost(self, event: events.Lost, tally: SummaryBuilder) -> None:
        self._warn(f"lost {event.peer}: {event.reason}")

    def _on_hosts_cut(self, event: events.HostsCut, tally: SummaryBuilder) -> None:
        between = " and ".join(event.hosts)
        self._warn(f"hosts {between} reach each other no more: {event.reason}")

    def _on_missed(self, event: events.Missed, tally: SummaryBuilder) -> None:
        self._warn(f"round {event.round}: no update from {event.peer}: {event.reason}")

    def _on_wire(self, event: events.Wire, tally: SummaryBuilder) -> None:
        if event.round is None:
            return
        row = tally.round_summary(event.round)
        wire = row.bytes.wire
        failed = f"  {row.clients_failed} clients failed" if row.clients_failed else ""
        self._console.print(
            f"round {event.round}/{self._rounds}  {_metrics(row.metrics)}  "
            f"up {human_bytes(wire.up)}  down {human_bytes(wire.down)}  "
            f"{row.seconds:.2f} s{failed}",
            highlight=False,
        )


def _metrics(metrics: Mapping[str, float | None]) -> str:
    return "  ".join(f"{one_line(name)} {metric(value)}" for name, value in metrics.items())


def closing_table(summary: Summary) -> Table:
    """The run in one table: result, time, and bytes at their three levels."""
    title = one_line(f"{summary.method} on {summary.profile}")
    table = Table(title=title, title_justify="left")
    table.add_column("what")
    table.add_column("value", justify="right")
    for name, value in summary.metrics.final.items():
        initial = summary.metrics.initial
        was = f"{metric(initial[name])} -> " if name in initial else ""
        table.add_row(one_line(name), f"{was}{metric(value)}")
    evaluated = summary.evaluated
    if evaluated.images != evaluated.of or evaluated.split != "test":
        row = f"{evaluated.split} samples evaluated"
        table.add_row(row, f"{evaluated.images:,} of {evaluated.of:,}")
    table.add_row("rounds", str(summary.rounds_done))
    vain = sum(entry.clients_ok == 0 for entry in summary.rounds if entry.finished)
    if vain:
        table.add_row("of these without any update", str(vain))
    if summary.resumed:
        rounds = ", ".join(str(each.from_round) for each in summary.resumed)
        table.add_row("resumed after round", rounds)
    seconds, slower = summary.seconds, summary.dilation != 1
    here = " of this machine" if slower or summary.elastic else ""
    table.add_row(f"startup, s{here}", f"{seconds.host_startup:.2f}")
    table.add_row("training, s", f"{seconds.training:.2f}")
    table.add_row(f"total, s{here}", f"{seconds.host_total:.2f}")
    if slower:
        table.add_row("dilation", f"{summary.dilation:g}")
    if summary.elastic:
        table.add_row("of that the clock stood still, s", f"{seconds.held:.2f}")
    for level in ("payload", "message", "wire"):
        amounts: UpDown = getattr(summary.bytes, level)
        label = f"{level} bytes, up / down"
        if level == "wire" and summary.links == "loopback":
            label += " (estimate)"
        table.add_row(label, f"{human_bytes(amounts.up)} / {human_bytes(amounts.down)}")
    if summary.budget_mb:
        share = summary.bytes.payload.both / 1e6 / summary.budget_mb
        ends = ", spent" if summary.ended == "budget" else ""
        table.add_row(f"of the payload budget of {summary.budget_mb:,g} MB{ends}", f"{share:.2%}")
    if (busiest := summary.busiest) and busiest.node != SERVER:
        label = f"payload bytes of {busiest.node}, the busiest, sent / received"
        amount = f"{human_bytes(busiest.sent)} / {human_bytes(busiest.received)}"
        table.add_row(label, amount)
    if (used := summary.congestion) and used != (asked := summary.congestion_asked):
        table.add_row("congestion control", f"{used} (asked: {asked})" if asked else used)
    clients = [row for row in summary.processes if row.node != SERVER]
    if clients:
        most = max(row.private_mb for row in clients)
        table.add_row("most private memory of a client, MB", f"{most:.1f}")
        peaks = [row.peak_private_mb for row in clients if row.peak_private_mb is not None]
        if peaks:
            table.add_row("at its peak within a round, MB", f"{max(peaks):.1f}")
        on_gpus = [r.peak_accelerator_mb for r in clients if r.peak_accelerator_mb is not None]
        if on_gpus:
            table.add_row("most memory of a client on its GPU, MB", f"{max(on_gpus):.1f}")
    compute = summary.compute
    computed = [row for row in compute.nodes if row.node != SERVER]
    modelled = compute.mode == "modelled"
    if computed and (modelled or compute.device_class):
        most = max(map(host_load.device_s, computed))
        how = "modelled" if modelled else "as its device"
        table.add_row(f"most computing of a client, s ({how})", f"{most:.2f}")
        late = [row.late_s for row in compute.nodes if row.late_s is not None]
        if late:
            table.add_row("this machine behind a device, s", f"{max(late):.2f}")
    lost = [row for row in summary.per_client if row.lost]
    if lost:
        table.add_row("clients lost", str(len(lost)))
    return table
