"""Rows of a bench's table: what runs took to a target accuracy, or a round and client."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from rich.table import Table

from experiments import accounts
from experiments.plan import Bench, Claim, Row, aim
from testbed import metrics
from testbed.metrics import OWN, Metrics, Target, words
from testbed.network.topology import SERVER
from testbed.record.events import Verdict, known
from testbed.record.run_summary import RoundSummary, Summary
from testbed.report import curves
from testbed.report.compare import claims
from testbed.report.compare.claims import Examined, shown

Figures = dict[str, float | None]
Spread = dict[str, tuple[float, float]]
"""The least and greatest of several runs' figures."""


DOUBT = "?"
OF_DOUBT = f"{DOUBT}: the certificate of one of the runs failed, so that its minutes say nothing."


class Group(NamedTuple):
    """Runs that differ in nothing but seed and repeat."""

    where: str
    """Profile and clients."""
    row: Row
    figures: Figures
    """Medians."""
    spread: Spread
    point: Mapping[str, Any] = {}
    """Values of the bench's grid that the row was tuned to."""
    at_edge: Sequence[str] = ()
    """Options of them whose value is the grid's least or greatest."""
    has: Sequence[str] = ()
    """What the row has that others lack."""
    accounts: Mapping[str, float] = MappingProxyType({})
    """Medians of what a claim can name."""
    certificate: Verdict = "pass"
    """The worst of the runs'."""
    metric: str = "accuracy"
    """What the runs are shown by."""


def figures(summary: Summary, target: Target | None, metric: str | None = None) -> Figures:
    """Numbers of one run. Bytes are of all clients, both ways; MB are of 10^6 bytes.

    By its own name stands the best of ``metric``: where none is given of the target's, or of the
    one that leads. ``busiest_mb`` is of the whole run, what the busiest node sent and received,
    and ``busiest_client_mb`` the same where that is a client. ``client_round_s`` is what the median
    client computes in the median round, in which a set-up in the first does not show.

    With a budget, ``budget_share`` is how much of it the payload was, and ``rounds_in_budget`` how
    many such rounds it allows.

    With a target, time and bytes are those until the end of the round that reached it; and, as
    ``..._interpolated``, until the moment in that round when the metric, on a straight line from
    the round before, was the target. All are None where no round did, and the latter where nobody
    knows the metric before the round.
    """
    rounds = [entry for entry in summary.rounds if entry.finished]
    name = metric or (target.metric if target else curves.metric(summary))
    reached = [metrics.value(entry.metrics, name) for entry in rounds]
    parts = sum(entry.clients_ok or 0 for entry in rounds)
    flops = [own for each in summary.per_client if (own := known(each.round_flops))]
    clients = [each for each in summary.processes if each.node != SERVER]
    # Without values a process takes what its device would not.
    real = summary.compute.mode != "modelled"
    peaks = [each.peak_private_mb for each in clients if real]
    minutes = sum(map(_SPENT["minutes"], rounds))
    payload = sum(entry.bytes.payload.both for entry in rounds)
    busiest = summary.busiest
    found: Figures = {
        name: metrics.best(reached, name),
        OWN + name: _clients_at_best(rounds, name),
        "minutes": minutes,
        "minutes_a_round": _share(minutes, len(rounds)),
        "wire_mb": sum(entry.bytes.wire.both for entry in rounds) / 1e6,
        "payload_mb": payload / 1e6,
        "busiest_mb": None if busiest is None else (busiest.sent + busiest.received) / 1e6,
        "one_way_mb": _share(payload / 2e6, parts),
        "client_round_mb": _share(payload / 1e6, parts),
        "client_round_gflop": statistics.fmean(flops) / 1e9 if flops else None,
        "client_round_s": _median(map(_client_s, rounds)),
        "client_memory_mb": max((mb for mb in peaks if mb is not None), default=None),
    }
    if summary.budget_mb:
        found["budget_share"] = payload / 1e6 / summary.budget_mb
        found["rounds_in_budget"] = _share(summary.budget_mb * 1e6 * len(rounds), payload)
    found["busiest_client_mb"] = (
        None if busiest is None or busiest.node == SERVER else found["busiest_mb"]
    )
    if target is not None:
        found |= _to_target(summary.metrics.initial, rounds, target)
    return found


def _to_target(first: Metrics, rounds: list[RoundSummary], target: Target) -> Figures:
    """Figures of what the target took; ``first``: metrics before the first round."""
    told = [first, *(entry.metrics for entry in rounds)]
    values = [metrics.value(each, target.metric) for each in told]
    good = (n for n, value in enumerate(values) if n and target.reached_by(value))
    last = next(good, None)
    share = None
    if last is not None:
        share = curves.crossing(values[last - 1], values[last] or 0.0, target)
    found: Figures = {}
    for name, of_round in _SPENT.items():
        spent = [of_round(entry) for entry in rounds[:last]]
        found[f"{name}_to_target"] = None if last is None else sum(spent)
        found[f"{name}_interpolated"] = (
            None if share is None else sum(spent[:-1]) + share * spent[-1]
        )
    return found


def _client_s(entry: RoundSummary) -> float | None:
    """Seconds that the median client computes in a round; None where rounds overlap."""
    if entry.compute_s is None:
        return None
    if entry.spans_over_clients:
        return entry.spans_over_clients.median.compute_s
    return _median(own.compute_s for own in entry.spans)


def _median(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.median(there) if there else None


_SPENT: dict[str, Callable[[RoundSummary], float]] = {
    "rounds": lambda entry: 1,
    "minutes": lambda entry: (entry.seconds or 0.0) / 60,
    "payload_mb": lambda entry: entry.bytes.payload.both / 1e6,
    "wire_mb": lambda entry: entry.bytes.wire.both / 1e6,
}
"""What a round takes, by name."""


def _clients_at_best(rounds: list[RoundSummary], name: str) -> float | None:
    """The metric of the clients' own models, after the round in which it is the best."""
    values = [metrics.value(entry.metrics, name) for entry in rounds]
    best = metrics.best(values, name)
    return None if best is None else rounds[values.index(best)].metrics.get(OWN + name)


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def medians(runs: Iterable[Figures]) -> tuple[Figures, Spread]:
    """Each figure's median over runs, and its least and greatest; None where some run lacks it.

    ``runs`` is how many they are, and ``runs_to_target`` how many of them reached a target.
    """
    found = list(runs)
    middle: Figures = {}
    spread: Spread = {}
    for name in found[0]:
        values = [each.get(name) for each in found]
        present = [value for value in values if value is not None]
        middle[name] = statistics.median(present) if len(present) == len(values) else None
        if middle[name] is not None:
            spread[name] = (min(present), max(present))
    middle["runs"] = len(found)
    if "rounds_to_target" in found[0]:
        middle["runs_to_target"] = sum(each["rounds_to_target"] is not None for each in found)
    return middle, spread


def shares(own: Figures, baseline: Figures | None) -> Figures:
    """Shares of the baseline's payload, operations and time, a client and round."""
    found: Figures = {}
    names = {
        "payload_share": "client_round_mb",
        "flops_share": "client_round_gflop",
        "minutes_share": "minutes_a_round",
    }
    for share, name in names.items():
        part, whole = own[name], baseline[name] if baseline else None
        found[share] = part / whole if part is not None and whole else None
    return found


_DIGITS = 9
"""Of a share: what it differs by beyond them is of floating-point numbers alone."""


def examined(group: Group, claim: Claim, base: Mapping[str, float] | None) -> Examined:
    """A claim held against a row's runs; ``base``: what the row has that it is held against."""
    verdict: claims.Verdict = "not reproducible here"
    found, reason = None, claim.because
    if claim.account is not None and claim.figure is not None and claim.tolerance is not None:
        try:
            found = accounts.value(claim.account, group.accounts, base)
        except KeyError as missing:
            reason = _also(f"no run has the figure {missing}", claim.because)
        if found is not None and math.isnan(found):
            found, reason = None, _also("the runs come to no number", claim.because)
        if found is not None:
            beside = round(found / claim.figure - 1, _DIGITS)
            right = {
                "about": abs(beside) <= claim.tolerance,
                "at least": beside >= -claim.tolerance,
                "at most": beside <= claim.tolerance,
            }
            verdict = "confirmed" if right[claim.holds] else "not confirmed"
            off = (
                f"{abs(beside):.1%} {'above' if beside > 0 else 'below'}" if beside else "the same"
            )
            reason = _also(f"{off}, tolerance {claim.tolerance:.3g}", claim.because)
            if group.certificate == "fail" and accounts.is_of_time(claim.account):
                verdict = "not reproducible here"
                reason = _also(
                    "the run's certificate failed, so that its time says nothing", reason
                )
    stated = "" if claim.figure is None else f"{shown(claim.figure, claim.unit)}: "
    return Examined(
        links=group.where,
        row=group.row.name,
        paper=("" if claim.holds == "about" else f"{claim.holds} ") + stated + claim.counts,
        figure=claim.figure,
        recomputed=found,
        unit=claim.unit,
        account=claim.account,
        wire_mb=group.figures["wire_mb"] or 0.0,
        minutes=group.figures["minutes"] or 0.0,
        certificate=group.certificate,
        verdict=verdict,
        reason=reason,
    )


def _also(reason: str, more: str) -> str:
    return f"{reason}; {more}" if more else reason


Column = tuple[str, Callable[[Group], str]]


def table(bench: Bench, groups: list[Group]) -> Table:
    """Rows as they are compared: medians, with (least to greatest) of several runs."""
    columns = list(_columns(bench, groups))
    notes = [bench.note, OF_DOUBT] if any(g.certificate == "fail" for g in groups) else [bench.note]
    caption = "\n".join(filter(None, notes)) or None
    shown = Table(title=bench.title, title_justify="left", caption=caption)
    shown.caption_justify = "left"
    several = len({group.where for group in groups}) > 1
    if several:
        shown.add_column("links")
    for number, (head, _) in enumerate(columns):
        shown.add_column(head, justify="right" if number else "left", overflow="fold")
    for group in groups:
        own = [text(group) for _, text in columns]
        shown.add_row(*([group.where] if several else []), *own)
    return shown


def _columns(bench: Bench, groups: list[Group]) -> Iterable[Column]:
    yield "", lambda group: group.row.name
    figures = [group.figures for group in groups]
    own: list[Column] = []
    # Several where rows are of different tasks.
    shown = list(dict.fromkeys(group.metric for group in groups))
    best: list[Column] = []
    for name in shown:
        if any(found.get(OWN + name) is not None for found in figures):
            own.append(("clients' own then", _number(OWN + name, "{:.3f}")))
        if any(found.get(name) is not None for found in figures):
            best.append((f"best {words(name)}", _number(name, "{:.3f}")))
    busiest: list[Column] = []
    if any(found.get("busiest_client_mb") is not None for found in figures):
        # Elsewhere the server has all bytes, and its own say nothing new.
        busiest = [("busiest node: payload MB", _number("busiest_mb", "{:.2f}"))]
    budget: list[Column] = []
    if any(found.get("budget_share") is not None for found in figures):
        budget.append(("of its budget", _number("budget_share", "{:.2%}")))
        budget.append(("rounds in budget", _number("rounds_in_budget", "{:,.0f}")))
    if any(group.has for group in groups):
        yield "also has", lambda group: "; ".join(group.has)
    for option in bench.grid:
        yield option, _tuned(option)
    if any((found["runs"] or 1) > 1 for found in figures):
        yield "runs", _number("runs", "{:.0f}")
    if any("rounds_to_target" in found for found in figures):
        target = aim(bench)
        assert target is not None
        yield f"best {words(target.metric)}", _number(target.metric, "{:.3f}")
        yield from own
        named = "" if target.metric == "accuracy" else f"{words(target.metric)} "
        yield f"rounds to {named}{target.value:g}", _rounds_to_target
        for name, form in (("minutes", "{:.3f}"), ("payload MB", "{:.2f}"), ("wire MB", "{:.2f}")):
            figure = name.replace(" ", "_").lower()
            yield name, _number(f"{figure}_to_target", form, "")
            yield f"{name}, interpolated", _number(f"{figure}_interpolated", form, "")
        yield from budget
        yield from busiest
        yield "client peak memory MB", _number("client_memory_mb", "{:.1f}")
        yield "client GFLOP a round", _number("client_round_gflop", "{:.3g}")
        yield "client s a round", _number("client_round_s", "{:.3g}")
        return
    yield from best
    yield from own
    if any(group.row.formula_mb is not None for group in groups):
        yield "formula: MB one way", _formula
    yield "MB one way", _number("one_way_mb", "{:.3f}")
    yield "client GFLOP a round", _number("client_round_gflop", "{:.4g}")
    yield "client s a round", _number("client_round_s", "{:.3g}")
    if any(found.get("client_memory_mb") is not None for found in figures):
        yield "client peak memory MB", _number("client_memory_mb", "{:.1f}")
    if bench.baseline or any(row.baseline for row in bench.rows):
        yield "payload share", _number("payload_share", "{:.4g}")
        yield "FLOP share", _number("flops_share", "{:.4g}")
        yield "time share", _number("minutes_share", "{:.3g}")
    yield "wire MB", _number("wire_mb", "{:.2f}")
    yield from budget
    yield from busiest
    yield "minutes a round", _number("minutes_a_round", "{:.2f}")


def _tuned(option: str) -> Callable[[Group], str]:
    def text(group: Group) -> str:
        value = f"{group.point[option]}"
        return f"{value} (edge)" if option in group.at_edge else value

    return text


def _rounds_to_target(group: Group) -> str:
    reached = group.figures["runs_to_target"]
    missing = f"{reached:.0f} of {group.figures['runs']:.0f} runs" if reached else "never"
    return _number("rounds_to_target", "{:g}", missing)(group)


def _number(name: str, form: str, missing: str = "-") -> Callable[[Group], str]:
    return lambda group: cell(group, name, form, missing)


def cell(group: Group, name: str, form: str, missing: str = "-") -> str:
    """A figure of runs; behind a time of which a run's certificate says that it is none, DOUBT."""
    doubt = DOUBT if name.startswith("minutes") and group.certificate == "fail" else ""
    return text(group, name, form + doubt, missing)


class Measured(Protocol):
    """Runs that are a row of a table."""

    @property
    def figures(self) -> Figures: ...

    @property
    def spread(self) -> Spread: ...


def text(row: Measured, name: str, form: str, missing: str = "-") -> str:
    """A figure as a table has it: "1.20", "1.20 (1.10 to 1.40)"."""
    value = row.figures.get(name)
    if value is None:
        return missing
    ends = [form.format(end) for end in row.spread.get(name, ())]
    alike = len(set(ends)) < 2
    return form.format(value) + ("" if alike else f" ({ends[0]} to {ends[1]})")


def _formula(group: Group) -> str:
    return "-" if group.row.formula_mb is None else f"{group.row.formula_mb:.3f}"
