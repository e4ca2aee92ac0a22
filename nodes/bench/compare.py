"""What the runs of a bench found, a row each: to a target accuracy, or a round and client."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any

from rich.table import Table

from nodes.bench.plan import Bench, Row

Summary = dict[str, Any]
Figures = dict[str, float | None]


def figures(summary: Summary, target_accuracy: float | None) -> Figures:
    """Numbers of one run. Bytes are of all clients, both ways; MB are of 10^6 bytes.

    With a target, time and bytes are those until the end of the round that reached it, and None
    where none did.
    """
    rounds = [entry for entry in summary["rounds"] if entry["finished"]]
    accuracies = [_accuracy(entry["metrics"]) for entry in rounds]
    parts = sum(entry["clients_ok"] for entry in rounds)
    flops = [each["round_flops"] for each in summary["per_client"] if each.get("round_flops")]
    memory = [each["private_mb"] for each in summary["processes"] if each["node"] != "server"]
    payload = sum(_payload(entry) for entry in rounds)
    found: Figures = {
        "accuracy": max((a for a in accuracies if a is not None), default=None),
        "minutes": sum(entry["seconds"] for entry in rounds) / 60,
        "minutes_a_round": _share(sum(entry["seconds"] for entry in rounds) / 60, len(rounds)),
        "wire_mb": sum(_wire(entry) for entry in rounds) / 1e6,
        "payload_mb": payload / 1e6,
        "one_way_mb": _share(payload / 2e6, parts),
        "up_gib": _share(
            sum(entry["bytes"]["payload"]["up"] for entry in rounds) / 2**30, len(rounds)
        ),
        "client_round_mb": _share(payload / 1e6, parts),
        "client_round_gflop": statistics.fmean(flops) / 1e9 if flops else None,
        "client_memory_mb": max(memory, default=None),
    }
    if target_accuracy is not None:
        reached = [n for n, a in enumerate(accuracies, 1) if a is not None and a >= target_accuracy]
        until = rounds[: reached[0]] if reached else None
        found["rounds_to_target"] = reached[0] if reached else None
        found["minutes_to_target"] = until and sum(entry["seconds"] for entry in until) / 60
        found["payload_mb_to_target"] = until and sum(map(_payload, until)) / 1e6
        found["wire_mb_to_target"] = until and sum(map(_wire, until)) / 1e6
    return found


def _accuracy(metrics: dict[str, float]) -> float | None:
    return metrics.get("accuracy", metrics.get("client_accuracy"))


def _payload(entry: dict[str, Any]) -> int:
    payload: dict[str, int] = entry["bytes"]["payload"]
    return payload["up"] + payload["down"]


def _wire(entry: dict[str, Any]) -> int:
    wire: dict[str, int] = entry["bytes"]["wire"]
    return wire["up"] + wire["down"]


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def medians(runs: Iterable[Figures]) -> tuple[Figures, dict[str, tuple[float, float]]]:
    """Each figure's median over runs, and its least and greatest; None where some run lacks it."""
    found = list(runs)
    middle: Figures = {}
    spread: dict[str, tuple[float, float]] = {}
    for name in found[0]:
        values = [each[name] for each in found]
        present = [value for value in values if value is not None]
        middle[name] = statistics.median(present) if len(present) == len(values) else None
        if middle[name] is not None:
            spread[name] = (min(present), max(present))
    return middle, spread


def shares(own: Figures, baseline: Figures | None) -> Figures:
    """Of the baseline's payload, operations and time, a client and round."""
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


Column = tuple[str, Callable[[Row, Figures], str]]


def table(bench: Bench, groups: list[tuple[str, Row, Figures]]) -> Table:
    """Rows as they are compared: (where, row, its figures), ``where`` the profile and clients."""
    columns = list(_columns(bench, groups))
    shown = Table(title=bench.title, title_justify="left", caption=bench.note or None)
    shown.caption_justify = "left"
    several = len({where for where, _, _ in groups}) > 1
    if several:
        shown.add_column("links")
    for number, (head, _) in enumerate(columns):
        shown.add_column(head, justify="right" if number else "left")
    for where, row, found in groups:
        shown.add_row(*([where] if several else []), *(text(row, found) for _, text in columns))
    return shown


def _columns(bench: Bench, groups: list[tuple[str, Row, Figures]]) -> Iterable[Column]:
    yield "", lambda row, found: row.name
    figures = [found for _, _, found in groups]
    papers = [row.paper for _, row, _ in groups if row.paper]
    if any("rounds_to_target" in found for found in figures):
        target = bench.run.get("target_accuracy")
        yield "best accuracy", _number("accuracy", "{:.3f}")
        yield f"rounds to {target}", _number("rounds_to_target", "{:.0f}", "never")
        yield "minutes", _number("minutes_to_target", "{:.2f}", "")
        yield "payload MB", _number("payload_mb_to_target", "{:.2f}", "")
        yield "wire MB", _number("wire_mb_to_target", "{:.2f}", "")
        yield "client memory MB", _number("client_memory_mb", "{:.1f}")
        yield "client GFLOP a round", _number("client_round_gflop", "{:.3g}")
        return
    if any(found["accuracy"] is not None for found in figures):
        yield "best accuracy", _number("accuracy", "{:.3f}")
    if any(paper.one_way_mb is not None for paper in papers):
        yield "paper: MB one way", _paper("one_way_mb", "{:.3f}")
    if any(paper.up_gib is not None for paper in papers):
        yield "paper: GiB up", _paper("up_gib", "{:.4g}")
        yield "GiB up", _number("up_gib", "{:.4g}")
    yield "MB one way", _number("one_way_mb", "{:.3f}")
    yield "client GFLOP a round", _number("client_round_gflop", "{:.4g}")
    if bench.baseline or any(row.baseline for row in bench.rows):
        if any(paper.payload_share is not None for paper in papers):
            yield "paper: payload share", _paper("payload_share", "{:.4g}")
        yield "payload share", _number("payload_share", "{:.4g}")
        if any(paper.flops_share is not None for paper in papers):
            yield "paper: FLOP share", _paper("flops_share", "{:.4g}")
        yield "FLOP share", _number("flops_share", "{:.4g}")
        yield "time share", _number("minutes_share", "{:.3g}")
    yield "wire MB", _number("wire_mb", "{:.2f}")
    yield "minutes a round", _number("minutes_a_round", "{:.2f}")


def _number(name: str, form: str, missing: str = "-") -> Callable[[Row, Figures], str]:
    def text(row: Row, found: Figures) -> str:
        value = found[name]
        return missing if value is None else form.format(value)

    return text


def _paper(name: str, form: str) -> Callable[[Row, Figures], str]:
    def text(row: Row, found: Figures) -> str:
        value = getattr(row.paper, name) if row.paper else None
        return "-" if value is None else form.format(value)

    return text
