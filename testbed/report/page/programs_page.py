"""The report.html of a run of programs: how each ended, what went over its link, and when."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path

from testbed.network.topology import SERVER
from testbed.record import trust
from testbed.record.events import Environment
from testbed.record.run_summary import Summary
from testbed.report.page import doubts, html, svg
from testbed.report.page.hosts_section import hosts_section
from testbed.report.page.html import Markup, facts, section, table, tag
from testbed.report.page.rounds_section import timeline_section
from testbed.report.page.svg import Curve, number
from testbed.report.page.trouble_sections import (
    failures_section,
    host_section,
    how_it_ended,
    links_section,
)
from testbed.report.programs import HEADS, flows, rows
from testbed.report.rates import rates
from testbed.report.read import Story
from testbed.report.text import counted, few, ranges, shortened

MOST_CURVES = 6
MOST_ROWS = 200
MOST_FLOWS = 50
MOST_LETTERS = 60
"""Of the names of nodes that have one command."""

_CLIENT = re.compile("client-[1-9][0-9]{0,8}")


def page(story: Story, folder: Path) -> str:
    summary = story.summary
    clients = counted(summary.clients, "client")
    title = f"Programs on {summary.profile}, {clients}"
    good = summary.status == "ok"
    badge = tag("span", summary.status, class_=f"badge {'good' if good else 'bad'}")
    parts = [
        tag(
            "header",
            tag("h1", title, " ", badge),
            tag("p", result(story), class_="lead"),
            tag("p", trust.line(summary)),
            _tiles(summary),
        ),
        _programs_section(story),
        _rates_section(story),
        _bytes_section(summary),
    ]
    if story.rounds:
        parts.append(timeline_section(story))
    parts += [
        links_section(story),
        failures_section(story),
        host_section(story),
        hosts_section(story),
        _what_ran(story),
        _repeat(story, folder),
    ]
    return html.page(f"{title}: {summary.status}", *parts)


def result(story: Story) -> str:
    """The result in a sentence or two."""
    summary = story.summary
    wire = summary.bytes.wire
    ended = [row for row in summary.programs if row.code is not None and not row.stopped]
    well = sum(row.code == 0 for row in ended)
    text = (
        f"{well} of {len(summary.programs)} programs ended well by themselves; "
        f"{number(wire.both / 1e6)} MB crossed the clients' links "
        f"({number(wire.up / 1e6)} up, {number(wire.down / 1e6)} down)."
    )
    if summary.status == "ok":
        return text
    return f"{text} {how_it_ended(summary)} {_when_bytes_stopped(story)}"


def _when_bytes_stopped(story: Story) -> str:
    last = last_bytes(story)
    if not last:
        return "No bytes were seen to cross a link."
    told = few([f"{node}'s at {at:.1f} s" for node, at in last.items()])
    return f"The last bytes crossed links {max(last.values()):.1f} s after programs began: {told}."


def _tiles(summary: Summary) -> Markup:
    longest = max((row.seconds or 0.0 for row in summary.programs), default=0.0)
    parts = summary.fidelity
    pairs: list[tuple[str, object]] = [
        ("MB on the wire", number(summary.bytes.wire.both / 1e6)),
        ("seconds of the longest", number(longest)),
        ("failed", sum(bool(row.code) and not row.stopped for row in summary.programs)),
        ("links checked", html.verdict(parts.links.verdict)),
        ("host kept up", html.verdict(parts.host.verdict)),
    ]
    return html.tiles(pairs)


def _programs_section(story: Story) -> Markup:
    summary = story.summary
    told = {node: f"{last:.1f}" for node, last in last_bytes(story).items()}
    found = rows(summary)
    cells = [(*row, told.get(row.node, "-")) for row in found[:MOST_ROWS]]
    heads = (*HEADS, "last bytes at, s")
    caption = (
        "Each program; memory is the most that its processes had to themselves, bytes are those on "
        "the wire, resent are TCP's segments, and the last bytes are counted from the first start"
    )
    if len(found) > MOST_ROWS:
        caption += f" ({MOST_ROWS} of {len(found)})"
    asked = [story.config.get(field) for field in ("expect_bytes", "round_regex")]
    said = doubts.of(summary, *(text if isinstance(text, str) else None for text in asked))
    notes = [tag("p", f"{text}.") for text in said]
    ends = table(caption, heads, cells)
    return section("programs", "How each program ended", *notes, ends, _commands(summary))


def _commands(summary: Summary) -> Markup:
    """A row a command, which may be long and many nodes' own."""
    whose: dict[str, list[str]] = {}
    for row in summary.programs:
        whose.setdefault(row.command, []).append(row.node)
    cells = [(_named(nodes), command) for command, nodes in whose.items()]
    caption = "Commands, and whose they are"
    if len(cells) > MOST_ROWS:
        caption += f" ({MOST_ROWS} of {len(cells)})"
    return table(caption, ("nodes", "command"), cells[:MOST_ROWS], 2)


def _named(nodes: list[str]) -> str:
    """ "server", "client-2", "clients 1-3, 7" """
    clients = [node for node in nodes if _CLIENT.fullmatch(node)]
    told = [node for node in nodes if node not in clients]
    if len(clients) > 1:
        clients = [f"clients {ranges(sorted(int(name[7:]) for name in clients))}"]
    return shortened(" and ".join(told + clients), MOST_LETTERS)


def last_bytes(story: Story) -> dict[str, float]:
    """Seconds after programs began at which each node's link was last seen to carry anything."""
    nodes = [SERVER, *(row.name for row in story.summary.per_client)]
    found: dict[str, float] = {}
    for before, after in itertools.pairwise(story.readings):
        for node, was, now in zip(nodes, before.bytes, after.bytes, strict=False):
            if now != was:
                found[node] = after.t - story.readings[0].t
    return found


def _rates_section(story: Story) -> Markup:
    title = "Bytes a second on each link"
    readings = story.readings
    if len(readings) < 3:
        return section("rates", title, tag("p", "Programs ran too briefly for the meters."))
    clients = [row.name for row in story.summary.per_client]
    busiest = sorted(range(1, len(clients) + 1), key=lambda place: -sum(readings[-1].bytes[place]))[
        :MOST_CURVES
    ]
    plots = []
    for way, word in enumerate(("up", "down")):
        found = [
            Curve(clients[place - 1], rates(readings, place, way), style)
            for style, place in enumerate(sorted(busiest))
        ]
        most = max(y for curve in found for _, y in curve.points)
        description = f"{len(found)} of {len(clients)} clients; at most {number(most)} kB/s."
        label = f"kB/s {word}"
        drawn = svg.curves(f"{label} by client", description, found, "seconds", label, marks=None)
        names = svg.legend((curve.name, curve.style) for curve in found)
        plots.append(
            svg.figure(f"{word} on the wire, of {few([c.name for c in found])}", names, drawn)
        )
    return section("rates", title, tag("div", *plots, class_="plots"))


def _bytes_section(summary: Summary) -> Markup:
    wire = summary.bytes.wire
    text = (
        f"All clients together: {number(wire.up / 1e6)} MB up and {number(wire.down / 1e6)} MB "
        "down on the wire, with headers, acknowledgements and retransmissions. The programs are "
        "not of this testbed, so what kind of message bytes belong to is not known; below are the "
        "TCP connections that the kernel told of, in bytes of payload. UDP is in none."
    )
    found = flows(summary)
    cells = [
        (
            row.who,
            row.whom,
            f"{row.connections:,}",
            f"{row.sent / 1e6:.3f}",
            f"{row.received / 1e6:.3f}",
            f"{row.resent:,}",
        )
        for row in found[:MOST_FLOWS]
    ]
    parts = [tag("p", text)]
    if cells:
        caption = "Payload by who called whom"
        if len(found) > MOST_FLOWS:
            caption += f" (the largest {MOST_FLOWS} of {len(found)})"
        heads = ("from", "to", "connections", "sent, MB", "received, MB", "segments resent")
        parts.append(table(caption, heads, cells, 2))
    return section("bytes", "Bytes by flow", *parts)


def _what_ran(story: Story) -> Markup:
    summary = story.summary
    machine = summary.environment or Environment()
    pairs: list[tuple[str, object]] = [
        ("run", summary.run_id),
        ("clients", f"{summary.clients:,}"),
        ("clients' links", summary.profile),
        ("server's link", summary.server_profile or "without limits"),
        ("link backend", summary.links),
        ("congestion control", summary.congestion_asked or "-"),
        ("seconds in all", f"{summary.seconds.host_total:.1f}"),
        ("machine", f"{machine.cores} cores, {machine.memory_mb:,} MB"),
        ("system", machine.kernel),
        ("source", machine.git or "-"),
    ]
    whole = [(name, str(value)) for name, value in story.config.items() if value is not None]
    settings = tag("details", tag("summary", "Every setting"), facts(whole))
    return section("run", "What was run, and on what", facts(pairs), settings)


def _repeat(story: Story, folder: Path) -> Markup:
    config = shlex.quote((folder / "config.toml").as_posix())
    again = f"python cli.py exec --file={config}"
    return section(
        "repeat",
        "Run it again",
        tag("p", "With every setting and command as it was:"),
        tag("pre", tag("code", again), tabindex=0),
    )
