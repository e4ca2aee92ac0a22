"""The report's timeline: what each client did in every round, and who was waited for."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from testbed.metrics import metric
from testbed.network.topology import SERVER
from testbed.record import spans
from testbed.record.run_summary import RoundSummary, Spans
from testbed.report.page import svg, timeline
from testbed.report.page.html import Markup, scroll, section, table, tag
from testbed.report.read import Round, Story
from testbed.report.text import counted

TITLE = "What each node did when"
KINDS = ("receive", "compute", "send", "wait")
MOST_ROWS = 24
"""Clients that a timeline shows."""
MOST_OPEN = 20
"""Rows of a table that is open from the start."""
MOST_ROUNDS = 100
"""Rounds that the table shows."""
COLUMNS = 480
_LEGEND = [
    ("receiving", "var(--receive)"),
    ("computing", "var(--compute)"),
    ("sending", "var(--send)"),
    ("waiting", "var(--wait)"),
]


def timeline_section(story: Story) -> Markup:
    if not story.rounds:
        text = "No round began, so there is nothing to show."
        return section("timeline", TITLE, tag("p", text))
    means = _means(story.rounds)
    clients = {name: each for name, each in means.items() if name != SERVER}
    shown = [SERVER, *chosen([row.name for row in story.summary.per_client], clients)]
    rounds = without_starts(story)
    zero = rounds[0].began_ns
    plots = [_plot(story, shown, rounds, zero, "all rounds")]
    finished = [each for each in rounds if each.finished]
    if len(rounds) > 1 and finished:
        longest = max(finished, key=lambda each: each.ended_ns - each.began_ns)
        plots.append(_plot(story, shown, [longest], zero, f"round {longest.number}, the longest"))
    return section(
        "timeline",
        TITLE,
        *_sentences(story, clients),
        svg.swatches(_LEGEND),
        *plots,
        _means_table(means, len(clients)),
        _rounds_table(story),
    )


def without_starts(story: Story) -> list[Round]:
    """The rounds, with those after a new start of the run as if that had taken no time."""
    before_a_start = {each.from_round for each in story.summary.resumed}
    found: list[Round] = []
    taken_ns = 0
    for each in story.rounds:
        if found and found[-1].number in before_a_start:
            taken_ns = each.began_ns - found[-1].ended_ns
        found.append(_earlier(each, taken_ns) if taken_ns else each)
    return found


def _earlier(one: Round, by_ns: int) -> Round:
    moved = {
        node: [
            span._replace(began_ns=span.began_ns - by_ns, ended_ns=span.ended_ns - by_ns)
            for span in own
        ]
        for node, own in one.spans.items()
    }
    began_ns, ended_ns = one.began_ns - by_ns, one.ended_ns - by_ns
    return one._replace(began_ns=began_ns, ended_ns=ended_ns, spans=moved)


def _means(rounds: Sequence[Round]) -> dict[str, dict[str, float]]:
    """Mean seconds by node, the server first, of each kind of span in the rounds that ended."""
    found: dict[str, list[Spans]] = {}
    for each in rounds:
        for node, own in each.spans.items() if each.finished else ():
            found.setdefault(node, []).append(spans.seconds(own))
    order = sorted(found, key=lambda node: (node != SERVER, len(node), node))
    return {
        node: {
            kind: statistics.fmean(getattr(each, f"{kind}_s") for each in found[node])
            for kind in KINDS
        }
        for node in order
    }


def chosen(clients: Sequence[str], means: dict[str, dict[str, float]]) -> list[str]:
    """All clients, or evenly from the one that waits least to the one that waits most."""
    if len(clients) <= MOST_ROWS:
        return list(clients)
    ranked = sorted(clients, key=lambda name: means[name]["wait"] if name in means else math.inf)
    return [ranked[n] for n in svg.thinned(len(ranked), MOST_ROWS)]


def _plot(
    story: Story,
    nodes: Sequence[str],
    rounds: Sequence[Round],
    zero: int,
    which: str,
) -> Markup:
    began, ended = rounds[0].began_ns, max(each.ended_ns for each in rounds)
    rows = []
    for node in nodes:
        own = [span for each in rounds for span in each.spans.get(node, [])]
        rows.append(svg.Strip(node, timeline.columns(own, began, ended, COLUMNS)))
    first, last = (began - zero) / 1e9, (ended - zero) / 1e9
    count = len(story.summary.per_client)
    bounds = [(each.began_ns - zero) / 1e9 for each in rounds] if len(rounds) < 40 else []
    description = (
        f"The server and {len(rows) - 1} of {count} clients, a row each, from second "
        f"{svg.number(first)} to {svg.number(last)}; the table below has the figures."
    )
    drawn = svg.strips(
        f"Receiving, computing, sending and waiting in {which}",
        description,
        rows,
        COLUMNS,
        (first, last),
        bounds,
    )
    caption = f"{which[0].upper()}{which[1:]}"
    if len(rows) - 1 < count:
        caption += (
            f": {len(rows) - 1} of {count} clients, from the one that waited least to the one that "
            "waited most"
        )
    if bounds and len(bounds) > 1:
        caption += "; a thin line is where a round begins"
        if story.summary.resumed:
            caption += ", and the time of new starts is left out"
    return svg.figure(caption, scroll(caption, drawn))


def _sentences(story: Story, means: dict[str, dict[str, float]]) -> list[Markup]:
    found = []
    if means:
        total = {kind: sum(each[kind] for each in means.values()) for kind in KINDS}
        whole = sum(total.values()) or 1.0
        shares = {kind: f"{100 * amount / whole:.0f} %" for kind, amount in total.items()}
        found.append(
            f"Of a round, a client spends {shares['compute']} computing, {shares['send']} sending, "
            f"{shares['receive']} receiving and {shares['wait']} waiting, in the mean."
        )
    lasts = Counter(filter(None, (each.last for each in story.rounds if each.finished)))
    if lasts and len(story.summary.per_client) > 1:
        count = sum(lasts.values())
        named = ", ".join(f"{name} ({times} of {count})" for name, times in lasts.most_common(3))
        more = " and others" if len(lasts) > 3 else ""
        found.append(f"The last to answer, by rounds: {named}{more}.")
    ratios = [entry.measured_to_ideal for entry in story.summary.rounds]
    if known := [ratio for ratio in ratios if ratio]:
        found.append(
            f"The median round took {svg.number(statistics.median(known))} times as long as it "
            "would if TCP filled the lines."
        )
    return [tag("p", text) for text in found]


def _means_table(means: dict[str, dict[str, float]], clients: int) -> Markup:
    if not means:
        return Markup("")
    rows = [(name, *(f"{each[kind]:.3f}" for kind in KINDS)) for name, each in means.items()]
    if clients > MOST_ROWS:
        own = [each for name, each in means.items() if name != SERVER]
        rows = rows[:1]
        for name, pick in (("least", min), ("median", statistics.median), ("greatest", max)):
            figures = (f"{pick([each[kind] for each in own]):.3f}" for kind in KINDS)
            rows.append((f"clients, {name}", *figures))
    heads = ("node", "receiving, s", "computing, s", "sending, s", "waiting, s")
    caption = f"Mean seconds of a finished round, {counted(clients, 'client')}"
    return table(caption, heads, rows)


def _rounds_table(story: Story) -> Markup:
    rounds = story.summary.rounds
    entries = [rounds[n] for n in svg.thinned(len(rounds), MOST_ROUNDS)]
    metrics = list(dict.fromkeys(name for entry in entries for name in entry.metrics))
    columns: list[tuple[str, Callable[[RoundSummary], Any]]] = [
        ("round", lambda entry: f"{entry.round}{'' if entry.finished else ', not finished'}"),
        *((name, lambda entry, name=name: entry.metrics.get(name)) for name in metrics),
        ("seconds", lambda entry: entry.seconds),
        ("computing, s", lambda entry: entry.compute_s),
        ("transfers, s", lambda entry: entry.transfer_s),
        ("the rest, s", lambda entry: entry.wait_s),
    ]
    caption = "Each round; computing, transfers and the rest are those of its slowest client"
    if any(entry.ideal_s for entry in entries):
        columns.append(("on full lines, s", lambda entry: entry.ideal_s))
        caption += "; on full lines is what it would take if TCP filled them"
    columns += [
        # The links' counters are read when a round is over.
        ("wire up, MB", lambda entry: entry.bytes.wire.up / 1e6 if entry.finished else None),
        ("wire down, MB", lambda entry: entry.bytes.wire.down / 1e6 if entry.finished else None),
        ("clients", lambda entry: entry.clients_ok),
        ("failed", lambda entry: entry.clients_failed),
    ]
    if len(entries) < len(rounds):
        caption += f" ({len(entries)} of {len(rounds)} rounds, evenly)"
    rows = [[_cell(value(entry)) for _, value in columns] for entry in entries]
    shown = table(caption, [name for name, _ in columns], rows)
    if len(rows) <= MOST_OPEN:
        return shown
    return tag("details", tag("summary", "Every round"), shown)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return metric(value) if isinstance(value, float) else str(value)
