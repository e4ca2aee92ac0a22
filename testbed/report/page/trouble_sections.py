"""Sections on trouble: the links, failures and the host's load, before figures are believed."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable

from testbed.network.topology import SERVER
from testbed.record import host_load
from testbed.record.events import Check, NotProbed
from testbed.record.run_summary import Process, Summary
from testbed.report import way_in
from testbed.report.page import svg
from testbed.report.page.html import Markup, facts, section, table, tag
from testbed.report.read import Story
from testbed.report.text import few

MOST_ROWS = 20
"""Of any table here."""
MOST_DOTS = 60
BUSY = 0.2
"""Share of its working time that a process waits for a core, from which on it is said aloud."""
_VERDICTS = {
    "pass": "The links were measured before training, and each was as its profile says: {reason}.",
    "fail": "The links were measured before training, and some were not as their profiles say: "
    "{reason}. Minutes and bytes here are those of the links as they were.",
    "skipped": "The links were not measured: {reason}. Nothing here shows that they were as their "
    "profiles say.",
}
_HOSTS_VERDICTS = {
    "pass": "This machine had time for all that it stood for: {reason}.",
    "fail": "This machine did not have time for all that it stood for, and the rounds are longer "
    "for it: {reason}.",
    "skipped": "Whether this machine had time for all that it stood for was not judged: {reason}.",
}


def links_section(story: Story) -> Markup:
    summary = story.summary
    fidelity = summary.fidelity.links
    words = _VERDICTS[fidelity.verdict].format(reason=fidelity.reason.rstrip("."))
    parts = [tag("p", words)]
    groups = _groups(summary)
    if groups:
        parts += [_deviations(groups), _checks_table(groups)]
        failed = [check for checks in groups.values() for check in checks if not check.ok]
        if failed and len(summary.per_client) > 1:
            parts.append(_failed_table(failed))
    left = summary.fidelity.not_probed
    if left:
        parts.append(_left_table(summary, left))
    lost = sum(row.losses.both for row in summary.per_client)
    dropped = sum(row.queue_drops.both for row in summary.per_client)
    text = (
        f"In the whole run the clients' links lost {lost:,} packets as their profiles "
        f"ask, and full queues dropped {dropped:,}."
    )
    parts.append(tag("p", text))
    notes = [
        (name.replace("_", " "), value)
        for name, value in summary.link_facts.items()
        if isinstance(value, str | int | float) and not name.startswith("lateness")
    ]
    if notes:
        summary_line = tag("summary", f"How {summary.links} links do it")
        parts.append(tag("details", summary_line, facts(notes)))
    found = way_in.commands(story)
    if found:
        shown = list(found.items())[:MOST_ROWS]
        text = "\n".join(line for name, lines in shown for line in (f"# {name}", *lines))
        if len(found) > MOST_ROWS:
            text += f"\n# and {len(found) - MOST_ROWS} more: python cli.py links RUN"
        parts.append(tag("details", tag("summary", "As tc would make them"), tag("pre", text)))
    return section("links", "Links: asked and measured", *parts)


def _left_table(summary: Summary, left: list[NotProbed]) -> Markup:
    whose_of = _whose(summary)
    counts = Counter((whose_of.get(one.link, one.link), _gate(one), one.reason) for one in left)
    rows = [(*told, str(count)) for told, count in counts.most_common(MOST_ROWS)]
    caption = "What no probe can judge here, and was not probed"
    if len(rows) < len(counts):
        caption += f" (the first {len(rows)} of {len(counts)})"
    return table(caption, ("profile", "gate", "because", "links"), rows, 3)


def _whose(summary: Summary) -> dict[str, str]:
    """Names by node, whose link it is."""
    profile_of = {row.name: row.profile for row in summary.per_client}
    profile_of[SERVER] = f"server's {summary.server_profile}"
    return profile_of


def _gate(check: Check | NotProbed) -> str:
    way = "" if check.direction == "both" else f" {check.direction}"
    return f"{check.name}{way}"


def _groups(summary: Summary) -> dict[tuple[str, str], list[Check]]:
    """Checks by (whose link, what is measured), where the same was asked of all."""
    profile_of = _whose(summary)
    found: dict[tuple[str, str], list[Check]] = {}
    for check in summary.fidelity.checks:
        whose = profile_of.get(check.link, check.link)
        found.setdefault((whose, _gate(check)), []).append(check)
    return found


def _deviations(groups: dict[tuple[str, str], list[Check]]) -> Markup:
    rows = []
    for (whose, what), checks in list(groups.items())[:MOST_ROWS]:
        seen = sorted(
            ((check.measured - check.expected) / check.tolerance, check.ok)
            for check in checks
            if check.measured is not None and check.tolerance
        )
        kept = [seen[n] for n in svg.thinned(len(seen), MOST_DOTS)]
        rows.append((whose, what, kept))
    drawn = svg.dots(
        "How far each link was from its profile",
        "One row a gate and one mark a link; marks in the band hold. The table has the figures.",
        rows,
    )
    caption = "One mark a link; in the band it is as asked, a hollow square is a missed gate"
    return svg.figure(caption, drawn)


def _checks_table(groups: dict[tuple[str, str], list[Check]]) -> Markup:
    rows = []
    for (whose, what), checks in list(groups.items())[:MOST_ROWS]:
        asked = sorted({check.expected for check in checks})
        span = svg.number(asked[0])
        if len(asked) > 1:
            span += f" to {svg.number(asked[-1])}"
        seen = [check.measured for check in checks if check.measured is not None]
        measured = (
            [svg.number(pick(seen)) for pick in (min, statistics.median, max)]
            if seen
            else ["nothing came"] * 3
        )
        missed = sum(not check.ok for check in checks)
        tolerance = svg.number(max(check.tolerance for check in checks))
        hold = f"{len(checks) - missed} of {len(checks)}"
        gate = f"{what}, {checks[0].unit}"
        rows.append((whose, gate, span, f"± {tolerance}", *measured, hold))
    caption = "Each gate, over all links of a profile"
    if len(rows) < len(groups):
        caption += f" (the first {len(rows)} of {len(groups)})"
    heads = ("profile", "gate", "asked", "tolerance", "least", "median", "greatest", "hold")
    return table(caption, heads, rows, 2)


def _failed_table(failed: list[Check]) -> Markup:
    def miss(check: Check) -> float:
        if check.measured is None:
            return float("inf")
        return float(abs(check.measured - check.expected) / (check.tolerance or 1.0))

    worst = sorted(failed, key=miss, reverse=True)[:MOST_ROWS]
    rows = []
    for check in worst:
        seen = check.measured
        rows.append(
            (
                check.link,
                f"{check.name}, {check.direction}, {check.unit}",
                svg.number(check.expected),
                "nothing came" if seen is None else svg.number(seen),
                f"± {svg.number(check.tolerance)}",
            )
        )
    caption = f"Gates that are missed, the worst first ({len(worst)} of {len(failed)})"
    return table(caption, ("link", "gate", "asked", "measured", "tolerance"), rows, 2)


def how_it_ended(summary: Summary) -> str:
    """The section on the end of a run that did not end well."""
    how = {"failed": "The run failed", "interrupted": "The run was interrupted"}
    return f"{how[summary.status]}: {summary.reason}."


def failures_section(story: Story) -> Markup:
    summary = story.summary
    parts: list[Markup] = []
    if summary.status != "ok":
        parts.append(tag("p", how_it_ended(summary)))
    rows = list(_failures(story))
    if rows:
        heads = ("what", "reason", "times", "who")
        caption = "By reason"
        if len(rows) > MOST_ROWS:
            caption += f" (the first {MOST_ROWS} of {len(rows)})"
        parts.append(table(caption, heads, rows[:MOST_ROWS], 2))
    for node, text in story.tracebacks[:3]:
        whole = text if len(text) <= 4000 else f"…{text[-4000:]}"
        parts += [tag("h3", f"{node} failed"), tag("pre", tag("code", whole), tabindex=0)]
    if story.torn_lines:
        text = f"{story.torn_lines} lines of events.jsonl are torn and not counted here."
        parts.append(tag("p", text, class_="note"))
    if not parts:
        parts.append(
            tag("p", "Nothing failed: no client was lost, no update missed, no message dropped.")
        )
    return section("failures", "Failures", *parts)


def _failures(story: Story) -> Iterable[tuple[str, str, int, str]]:
    """(what, reason, times, who) of what went wrong, the same put together."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in story.summary.per_client:
        if row.lost:
            found.setdefault(("client lost", row.lost), []).append(row.name)
    for entry in story.summary.rounds:
        for miss in entry.missed:
            who = f"{miss.client} in round {entry.round}"
            found.setdefault(("update missed", miss.reason), []).append(who)
    drops: dict[str, int] = defaultdict(int)
    for drop in story.summary.dropped_messages:
        who = f"{drop.node} from {drop.peer}"
        found.setdefault(("message dropped", drop.reason), []).append(who)
        drops[drop.reason] += drop.count
    for client, reasons in story.overtaken.items():
        for reason in reasons:
            found.setdefault(("round overtaken", reason), []).append(client)
    for (node, how), times in story.exits.items():
        found.setdefault(("process ended", how), []).extend([node] * times)
    captures = story.summary.captures
    if captures and captures.incomplete:
        found["capture incomplete", "packets came too fast"] = captures.incomplete
    if captures and captures.failure:
        found["captures ended early", captures.failure] = ["all clients"]
    for (what, reason), all_ in found.items():
        names = list(dict.fromkeys(all_))
        times = drops[reason] if what == "message dropped" else len(all_)
        yield what, reason, times, few(names)


def host_section(story: Story) -> Markup:
    summary = story.summary
    rows = summary.processes
    certified = summary.fidelity.host
    parts: list[Markup] = [
        tag("p", _HOSTS_VERDICTS[certified.verdict].format(reason=certified.reason))
    ]
    if any(row.run_delay_s is None for row in rows):
        seconds = sum(row.cpu_s for row in rows)
        text = f"All processes together were on a core for {seconds:.1f} s. How long they waited "
        parts.append(tag("p", text + "for one this system does not say."))
    elif rows:
        parts += [tag("p", _load_in_words(rows)), _load_plot(rows)]
        parts.append(_load_table(rows))
    else:
        parts.append(tag("p", "No process has reported its load."))
    late = [
        (name, value)
        for name, value in summary.link_facts.items()
        if name.startswith("lateness") and isinstance(value, int | float)
    ]
    if late:
        text = "How late the process that carries the links let packets go, ms:"
        pairs = [(name[9:].removesuffix("_ms"), svg.number(value)) for name, value in late]
        parts += [tag("p", text), facts(pairs)]
    changes = summary.dynamics
    if changes.changes:
        text = (
            f"The links changed {changes.changes} times, "
            f"{svg.number(changes.lateness_mean_ms)} ms after their time in the mean and "
            f"{svg.number(changes.lateness_max_ms)} ms at most."
        )
        parts.append(tag("p", text))
    computed = host_load.rows_with_lateness(summary)
    if computed:
        worst = max(computed, key=host_load.late_s)
        how = "Computing took"
        if summary.compute.mode == "modelled":
            how = "Computing was modelled. Counting operations took"
        device = "its device" if summary.compute.device_class else "a core of its own"
        text = (
            f"{how} this machine longer than computing takes {device}, by "
            f"{host_load.late_s(worst):.2f} s at most ({worst.node}, in all rounds)."
        )
        parts.append(tag("p", text))
    return section("host", "How busy the machine was", *parts)


def _share(row: Process) -> float:
    working = row.cpu_s + _delay_s(row)
    return _delay_s(row) / working if working else 0.0


def _delay_s(row: Process) -> float:
    return row.run_delay_s or 0.0


def _load_in_words(rows: list[Process]) -> str:
    share = statistics.median(_share(row) for row in rows)
    text = (
        f"Of the time that it had work, a process waited for a free core for {100 * share:.0f} % "
        "(the median process). "
    )
    if share >= BUSY:
        return text + (
            "The machine and not the network made part of these minutes: take fewer clients, more "
            "cores, or a machine that does nothing else."
        )
    return text + "The machine had cores enough for these figures."


def _ranked(rows: list[Process]) -> list[Process]:
    return sorted(rows, key=_delay_s, reverse=True)


def _load_plot(rows: list[Process]) -> Markup:
    shown = [
        (
            row.node,
            [(row.cpu_s, "var(--send)"), (_delay_s(row), "var(--compute)")],
            f"{100 * _share(row):.0f} % waiting",
        )
        for row in _ranked(rows)[:12]
    ]
    drawn = svg.bars(
        "Time on a core and waiting for one",
        "The processes that waited longest; the table below has the figures.",
        shown,
        "seconds, the longest bar is " + svg.number(max(row.cpu_s + _delay_s(row) for row in rows)),
    )
    names = [("on a core", "var(--send)"), ("waiting for a core", "var(--compute)")]
    caption = f"The {len(shown)} of {len(rows)} processes that waited longest for a core"
    return svg.figure(caption, svg.swatches(names), drawn)


def _load_table(rows: list[Process]) -> Markup:
    on_gpus = any(row.peak_accelerator_mb is not None for row in rows)
    cells = [
        (
            row.node,
            f"{row.cpu_s:.2f}",
            f"{_delay_s(row):.2f}",
            f"{100 * _share(row):.0f}",
            f"{row.private_mb:.1f}",
            _megabytes(row.peak_private_mb),
            *([_megabytes(row.peak_accelerator_mb)] if on_gpus else []),
        )
        for row in _ranked(rows)[:MOST_ROWS]
    ]
    heads = (
        *("process", "on a core, s", "waiting for one, s", "waiting, %"),
        *("private memory, MB", "its peak, MB"),
        *(["peak on its GPU, MB"] if on_gpus else []),
    )
    shown = table(f"{len(cells)} of {len(rows)} processes", heads, cells)
    return tag("details", tag("summary", "Every figure"), shown)


def _megabytes(amount: float | None) -> str:
    return "-" if amount is None else f"{amount:.1f}"
