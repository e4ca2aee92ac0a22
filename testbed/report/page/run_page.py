"""A run's report.html: the result first, then what it rests on."""

from __future__ import annotations

import shlex
from pathlib import Path

from testbed.metrics import OWN, one_of, words
from testbed.metrics import metric as told
from testbed.record import trust
from testbed.record.events import Environment, UpDown
from testbed.record.reading import EVENTS
from testbed.record.run_summary import Evaluated, Summary
from testbed.report import curves
from testbed.report.page import html, programs_page, svg
from testbed.report.page.hosts_section import hosts_section
from testbed.report.page.html import Markup, facts, section, table, tag
from testbed.report.page.resent import captured, sent_again
from testbed.report.page.rounds_section import timeline_section
from testbed.report.page.stages import staged
from testbed.report.page.svg import Curve, number
from testbed.report.page.trouble_sections import (
    failures_section,
    host_section,
    how_it_ended,
    links_section,
)
from testbed.report.read import Story, read, refusing
from testbed.report.text import counted, few

NAME = "report.html"
MOST_KINDS = 12


def write(folder: Path) -> Path:
    """Write the report of the run in ``folder``, and return where.

    Raises:
        ConfigError: ``folder`` holds no run.
        OSError: it cannot be written.
    """
    path = folder / NAME
    story = read(folder)
    with refusing(f"RUN {folder}: {EVENTS}"):
        text = page(story, folder)
    html.write(path, text)
    return path


def page(story: Story, folder: Path) -> str:
    summary = story.summary
    if summary.programs:
        return programs_page.page(story, folder)
    title = f"{summary.method} on {summary.profile}, {counted(summary.clients, 'client')}"
    good = summary.status == "ok"
    badge = tag("span", summary.status, class_=f"badge {'good' if good else 'bad'}")
    return html.page(
        f"{title}: {summary.status}",
        tag(
            "header",
            tag("h1", title, " ", badge),
            tag("p", result(story), class_="lead"),
            tag("p", trust.line(summary)),
            _tiles(summary),
        ),
        _metric_section(summary),
        timeline_section(story),
        _bytes_section(summary),
        links_section(story),
        failures_section(story),
        host_section(story),
        hosts_section(story),
        _what_ran(story),
        _repeat(story, folder),
    )


def result(story: Story) -> str:
    """The result in a sentence or two."""
    summary = story.summary
    done, asked = summary.rounds_done, story.config.get("rounds")
    wire = summary.bytes.wire
    clients = counted(summary.clients, "client")
    metric = curves.metric(summary)
    found = curves.points(summary, metric)
    where = f"with {clients} on {summary.profile}"
    if not done:
        text = f"{summary.method} {where} finished no round."
    else:
        rounds = counted(done, "round") if done == asked else f"{done} of {asked} rounds"
        cost = (
            f"{_minutes(found[-1].minutes)}, with {number(wire.both / 1e6)} MB on the "
            f"wire ({number(wire.up / 1e6)} up, {number(wire.down / 1e6)} down)"
        )
        before, after = found[0].value, found[-1].value
        if after is None:
            text = f"{rounds} of {summary.method} {where} took {cost}."
            if summary.compute.mode == "modelled":
                text += " Computing was modelled, so nothing was learnt."
            elif summary.metrics.final.keys() & {metric, OWN + metric}:
                text += f" Its {words(metric)} was no finite number then."
        else:
            name = curves.label(summary, metric)
            rise = f"reached {name} {told(after)}"
            if before is not None:
                rise = f"went from {name} {told(before)} to {told(after)}"
            text = f"{summary.method} {where} {rise} in {rounds} and {cost}."
    if summary.ended == "budget":
        text += " It ended there, for its budget was spent."
    if summary.resumed:
        text += f" It was killed and went on after {_after(summary)}."
    if summary.status != "ok":
        text += f" {how_it_ended(summary)}"
    return text


def _after(summary: Summary) -> str:
    """ "round 2, and after round 5", with what that cost."""
    rounds = ", and after ".join(f"round {each.from_round}" for each in summary.resumed)
    lost = [each.lost for each in summary.resumed]
    seconds = sum(each.seconds for each in lost)
    megabytes = sum(each.message.both for each in lost) / 1e6
    return f"{rounds}; {number(seconds)} s and {number(megabytes)} MB of messages are not counted"


def _dilation(summary: Summary) -> str:
    found = f" (by {summary.dilation_found})" if summary.dilation_found else ""
    if summary.elastic:
        return (
            f"elastic: the run's clock stood still for {summary.seconds.held:.1f} s of this "
            "machine, while nodes had to wait for a core"
        )
    if summary.dilation == 1:
        return f"none{found}: times are those of this machine"
    return (
        f"{summary.dilation:g}{found}: training's times are emulated, and took this machine as "
        "much longer; those to start and in all are its own"
    )


def _minutes(minutes: float) -> str:
    if minutes < 1:
        return f"{number(minutes)} minutes ({number(60 * minutes)} s)"
    return f"{number(minutes)} minutes"


def _tiles(summary: Summary) -> Markup:
    metric = curves.metric(summary)
    found = curves.points(summary, metric)
    top = curves.best(found, metric)
    parts = summary.fidelity
    pairs: list[tuple[str, object]] = [
        (f"best {words(metric)}", "-" if top is None else told(top)),
        ("minutes of rounds", number(found[-1].minutes)),
        ("MB on the wire", number(summary.bytes.wire.both / 1e6)),
        ("rounds", summary.rounds_done),
        ("links checked", html.verdict(parts.links.verdict)),
        ("host kept up", html.verdict(parts.host.verdict)),
        ("no strangers", html.verdict(parts.strangers.verdict)),
    ]
    return html.tiles(pairs)


def _metric_section(summary: Summary) -> Markup:
    metric = curves.metric(summary)
    title = f"{words(metric).capitalize()} against minutes and bytes"
    found = [point for point in curves.points(summary, metric) if point.value is not None]
    if len(found) < 2:
        why = (
            "Computing was modelled: times and bytes are those of the real method, and nothing "
            "was learnt."
            if summary.compute.mode == "modelled"
            else f"No finished round has {one_of(metric)}."
        )
        return section("accuracy", title, tag("p", why))
    name = curves.label(summary, metric)
    heights = [point.value or 0.0 for point in found]
    plots = []
    for label, along in (
        ("minutes", [point.minutes for point in found]),
        ("MB on the wire", [point.wire_mb for point in found]),
    ):
        curve = Curve(str(summary.method), list(zip(along, heights, strict=True)), 0)
        description = (
            f"From {told(heights[0])} at {number(along[0])} to {told(heights[-1])} at "
            f"{number(along[-1])} {label}, a mark a round."
        )
        drawn = svg.curves(f"{name} against {label}", description, [curve], label, name)
        plots.append(svg.figure(f"{name[0].upper()}{name[1:]} against {label}", drawn))
    note = (
        "Minutes are of rounds; loading and checking the links come before. Bytes are of all "
        "clients, both ways, with headers, acknowledgements and retransmissions"
    )
    note += "; over loopback links they are an estimate." if _estimated(summary) else "."
    return section("accuracy", title, tag("div", *plots, class_="plots"), _note(note))


def _estimated(summary: Summary) -> bool:
    return summary.links == "loopback"


def _note(text: str) -> Markup:
    return tag("p", text, class_="note")


def _bytes_section(summary: Summary) -> Markup:
    amounts = summary.bytes
    kinds = [(kind, ways) for kind, ways in amounts.by_kind.items() if ways.up or ways.down]
    kinds.sort(key=lambda each: -each[1].both)
    if len(kinds) > MOST_KINDS:
        rest = kinds[MOST_KINDS - 1 :]
        other = UpDown(sum(ways.up for _, ways in rest), sum(ways.down for _, ways in rest))
        kinds = [*kinds[: MOST_KINDS - 1], (f"{len(rest)} others", other)]
    levels = [
        (
            f"{level} (estimate)" if level == "wire" and _estimated(summary) else level,
            what,
            *(f"{size / 1e6:.3f}" for size in (ways.up, ways.down, ways.both)),
        )
        for level, ways, what in (
            ("payload", amounts.payload, "tensors"),
            ("message", amounts.message, "ZeroMQ frames, headers included"),
            (
                *("wire", amounts.wire),
                "Ethernet frames: TCP/IP headers, acknowledgements, retransmissions",
            ),
        )
    ]
    heads = ("level", "what it counts", "up, MB", "down, MB", "both, MB")
    parts = [table("All clients together; up is client to server", heads, levels, 2)]
    if kinds:
        rows = [
            (
                kind,
                [(ways.up / 1e6, "var(--c1)"), (ways.down / 1e6, "var(--c2)")],
                f"{number(ways.up / 1e6)} + {number(ways.down / 1e6)}",
            )
            for kind, ways in kinds
        ]
        most = max(ways.both for _, ways in kinds) / 1e6
        drawn = svg.bars(
            "Payload by kind of message and direction",
            "; ".join(f"{kind}: {after}" for kind, _, after in rows),
            rows,
            f"MB of payload; the longest bar is {number(most)}",
        )
        names = [("up: to the server", "var(--c1)"), ("down: to clients", "var(--c2)")]
        parts.append(svg.figure("Payload by kind of message", svg.swatches(names), drawn))
    if summary.budget_mb:
        used = amounts.payload.both / 1e6
        text = (
            f"Of its budget of {number(summary.budget_mb)} MB of payload, all clients and both "
            f"ways, it used {number(used)} MB, {used / summary.budget_mb:.1%}."
        )
        parts.append(tag("p", text))
    parts += staged(summary)
    wire = sorted(row.bytes.wire.both for row in summary.per_client)
    if wire:
        text = (
            f"A client's own bytes on the wire: {number(wire[0] / 1e6)} MB at least, "
            f"{number(wire[len(wire) // 2] / 1e6)} MB the median, "
            f"{number(wire[-1] / 1e6)} MB at most."
        )
        parts.append(tag("p", text))
    parts.append(sent_again(summary))
    if summary.captures:
        parts.append(tag("p", captured(summary.captures)))
    return section("bytes", "Bytes by kind and direction", *parts)


def _what_ran(story: Story) -> Markup:
    summary, config = story.summary, story.config
    machine = summary.environment or Environment()
    trainable, total = summary.trainable_parameters, summary.total_parameters
    model = str(summary.model)
    if trainable is not None and total:
        model += f", {trainable:,} of {total:,} parameters trained"
    seconds = summary.seconds
    compute = str(summary.compute.mode)
    if summary.compute.device_class:
        compute += f", {summary.compute.device_class}"
    if summary.compute.accelerators:
        names = ", ".join(dict.fromkeys(summary.compute.accelerators))
        compute += f", clients on {summary.compute.accelerator}, "
        compute += f"server on {summary.compute.server_accelerator} ({names})"
    taken = config.get("clients_per_round")
    pairs: list[tuple[str, object]] = [
        ("run", summary.run_id),
        ("method", summary.method),
        ("model", model),
        ("data", f"{summary.dataset}, {config.get('partition')} partition"),
        ("evaluated on", _evaluated(summary.evaluated)),
        ("clients", f"{summary.clients:,}{f', {taken} a round' if taken else ''}"),
        ("rounds asked for", config.get("rounds")),
        ("clients' links", summary.profile),
        ("server's link", summary.server_profile or "without limits"),
        ("versions of links", _versions(summary.profile_versions)),
        ("link backend", summary.links),
        ("congestion control", summary.congestion or "-"),
        ("computing", compute),
        ("seed", summary.seed),
        (
            "seconds",
            f"{seconds.host_startup:.1f} to start, {seconds.training:.1f} training, "
            f"{seconds.host_total:.1f} in all",
        ),
        ("dilation", _dilation(summary)),
        ("machine", f"{machine.cores} cores, {machine.memory_mb:,} MB"),
        ("system", machine.kernel),
        ("software", f"Python {machine.python}, torch {machine.torch}"),
        ("source", machine.git or "-"),
    ]
    options = config.get("options") or {}
    own = [(name, str(value)) for name, value in options.items()]
    whole = [
        (name, str(value))
        for name, value in config.items()
        if name != "options" and value is not None
    ]
    parts = [facts(pairs)]
    if own:
        parts += [tag("h3", f"Options of {summary.method}"), facts(own)]
    parts.append(tag("details", tag("summary", "Every other setting"), facts(whole)))
    return section("run", "What was run, and on what", *parts)


def _evaluated(evaluated: Evaluated) -> str:
    if not evaluated.images:
        return "-"
    return f"{evaluated.images:,} of {evaluated.of:,} {evaluated.split} samples"


def _versions(versions: dict[str, str]) -> str:
    return few([f"{name}: {version}" for name, version in versions.items()]) or "-"


def _repeat(story: Story, folder: Path) -> Markup:
    config = shlex.quote((folder / "config.toml").as_posix())
    again = f"python cli.py launch --config={config}"
    typed = f"python {_quoted_anew(story.summary.command or '')}"
    return section(
        "repeat",
        "Run it again",
        tag("p", "With every setting as it was, also those that were left to their defaults:"),
        tag("pre", tag("code", again), tabindex=0),
        tag("p", "As it was typed, as the record has it:"),
        tag("pre", tag("code", typed), tabindex=0),
    )


def _quoted_anew(command: str) -> str:
    """The same words: a record may say anything, and somebody may take it to a shell."""
    try:
        return shlex.join(shlex.split(command))
    except ValueError:
        return shlex.quote(command)
