"""Programs of a run as a person sees them: their output, a line an end, and a table after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from rich.table import Table

from testbed.network.topology import SERVER
from testbed.record import events
from testbed.record.events import Event, Flow
from testbed.record.program_summary import Program
from testbed.record.run_summary import Summary
from testbed.record.summary import SummaryBuilder
from testbed.report.progress import human_bytes
from testbed.report.terminal import Output
from testbed.report.text import counted, few, one_line

MOST_ROLES = 4
"""Of clients: beyond them all are one."""


class Line(Protocol):
    """A line of a program's output."""

    @property
    def node(self) -> str: ...

    @property
    def text(self) -> str: ...


class ProgramLines:
    """Prints what programs print, each line with its node, and how each ends."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def say(self, line: Line) -> None:
        self._output.say(f"{line.node}: {one_line(line.text)}")

    def take(self, event: Event, tally: SummaryBuilder) -> None:
        if isinstance(event, events.Certified):
            verdict, reason = event.fidelity.verdict, event.fidelity.reason
            style = "yellow" if verdict == "fail" else None
            self._output.say(f"links checked: {verdict}: {reason}", style=style)
        elif isinstance(event, events.Exited):
            fails = event.code and not event.stopped
            asked = ", as it was asked to end" if event.stopped else ""
            text = f"{event.node} {event.how} after {event.seconds:.2f} s{asked}"
            self._output.say(text, style="yellow" if fails else None)
        elif isinstance(event, events.Brought) and event.files:
            much = counted(event.files, "file")
            where = f"of its folder on host {event.host}"
            self._output.say(f"{event.node}: {much}, {human_bytes(event.bytes)}, {where} came here")
        elif isinstance(event, events.RoundStarted):
            self._output.say(f"round {event.round} begins")


class Row(NamedTuple):
    """A node and what became of its program."""

    node: str
    exit: str
    seconds: str
    cpu: str
    memory: str
    up: str
    down: str
    resent: str


HEADS = ("node", "exit", "seconds", "CPU, s", "memory, MB", "sent, MB", "received, MB", "resent")


def rows(summary: Summary) -> list[Row]:
    """A row a node, the server first; bytes are those on the wire."""
    processes = {row.node: row for row in summary.processes}
    clients = {row.name: row for row in summary.per_client}
    found = []
    for program in summary.programs:
        used, client = processes.get(program.node), clients.get(program.node)
        wire = None if client is None else client.bytes.wire
        seconds = program.seconds
        found.append(
            Row(
                program.node,
                ending(program),
                "-" if seconds is None else f"{seconds:.2f}",
                "-" if used is None else f"{used.cpu_s:.2f}",
                "-" if used is None or not used.peak_private_mb else f"{used.peak_private_mb:.1f}",
                "-" if wire is None else f"{wire.up / 1e6:.3f}",
                "-" if wire is None else f"{wire.down / 1e6:.3f}",
                str(sum(flow.resent_segments for flow in program.flows)),
            )
        )
    return found


def ending(program: Program) -> str:
    """ "0", "3", "stopped (143)", "-" """
    if program.code is None:
        return "-"
    return f"stopped ({program.code})" if program.stopped else str(program.code)


class Role(NamedTuple):
    """Nodes that have one command, and what became of it."""

    name: str
    """ "server", "clients", "client-1, client-3" """
    nodes: int
    command: str
    """Of the first of them."""
    exits: str
    """ "0", "3 x 0, 1 x 28" """
    seconds: tuple[float, float] | None
    """The least and the most that one of them ran; None: none has ended."""
    cpu_s: float
    """Of all of them."""
    memory_mb: float | None
    """The most that one had to itself."""
    up: int | None
    """Bytes on the wire of all of them, and ``down`` likewise; None of the server."""
    down: int | None
    resent_segments: int


def roles(summary: Summary) -> list[Role]:
    """Roles of a run's nodes, the server first."""
    server = [row for row in summary.programs if row.node == SERVER]
    clients: dict[str, list[Program]] = {}
    for row in summary.programs:
        if row.node != SERVER:
            clients.setdefault(row.command, []).append(row)
    if len(clients) > MOST_ROLES:
        clients = {"": [row for own in clients.values() for row in own]}
    names = ["clients"] if len(clients) == 1 else [few(_nodes(own)) for own in clients.values()]
    found = [_role(summary, SERVER, server)] if server else []
    return found + [_role(summary, n, own) for n, own in zip(names, clients.values(), strict=True)]


def _nodes(own: Sequence[Program]) -> list[str]:
    return [row.node for row in own]


def _role(summary: Summary, name: str, own: Sequence[Program]) -> Role:
    nodes = set(_nodes(own))
    used = [row for row in summary.processes if row.node in nodes]
    wires = [row.bytes.wire for row in summary.per_client if row.name in nodes]
    ran = [row.seconds for row in own if row.seconds is not None]
    return Role(
        name,
        len(own),
        own[0].command,
        endings(own),
        (min(ran), max(ran)) if ran else None,
        sum(row.cpu_s for row in used),
        max((row.peak_private_mb or 0.0 for row in used), default=0.0) or None,
        sum(wire.up for wire in wires) if wires else None,
        sum(wire.down for wire in wires) if wires else None,
        sum(flow.resent_segments for row in own for flow in row.flows),
    )


def endings(own: Sequence[Program]) -> str:
    """ "0", "3 x 0, 1 x 28" """
    found = Counter(map(ending, own))
    if len(found) == 1:
        return next(iter(found))
    return ", ".join(f"{count} x {text}" for text, count in found.items())


def exits(summary: Summary) -> str:
    """ "server stopped (143); clients 3 x 0, 1 x 28" """
    return "; ".join(f"{role.name} {role.exits}" for role in roles(summary))


def longest_s(summary: Summary) -> float | None:
    """Seconds of the program that ran longest, of those that nobody asked to end if there are any.

    None: none has ended.
    """
    ran = [(not row.stopped, row.seconds) for row in summary.programs if row.seconds is not None]
    return max(ran)[1] if ran else None


def resent_segments(summary: Summary) -> int:
    """Segments that TCP sent again, of all nodes."""
    return sum(flow.resent_segments for row in summary.programs for flow in row.flows)


def settings(summary: Summary, config: Mapping[str, Any]) -> dict[str, Any]:
    """Commands by role and variables of all nodes, which may tell a run from another.

    ``config``: its config.toml.
    """
    env = config.get("env")
    return {role.name: role.command for role in roles(summary)} | (
        env if isinstance(env, dict) else {}
    )


class FlowRow(NamedTuple):
    """TCP connections between two nodes, of one service."""

    who: str
    """Who called."""
    whom: str
    connections: int
    sent: int
    received: int
    resent: int


def flows(summary: Summary) -> list[FlowRow]:
    """A row each of what nodes called, by who called; those that only the called one told of too.

    The largest first. Bytes are payload, ``sent`` by the caller.
    """
    names = addresses(summary)
    found: dict[tuple[str, str], FlowRow] = {}
    for program in summary.programs:
        for flow in program.flows:
            peer = names.get(flow.peer, flow.peer)
            row = _row(program.node, peer, flow)
            known = found.get((row.who, row.whom))
            # The caller's own word comes first; of the other end it is the same from there.
            if known is None or not flow.serves:
                resent = row.resent + (known.resent if known else 0)
                found[row.who, row.whom] = row._replace(resent=resent)
            else:
                resent = known.resent + row.resent
                found[row.who, row.whom] = known._replace(resent=resent)
    return sorted(found.values(), key=lambda row: -row.sent - row.received)


def _row(node: str, peer: str, flow: Flow) -> FlowRow:
    if flow.serves:
        place = f"{node}:{flow.port}"
        return FlowRow(
            peer, place, flow.connections, flow.received, flow.sent, flow.resent_segments
        )
    place = f"{peer}:{flow.port}"
    return FlowRow(node, place, flow.connections, flow.sent, flow.received, flow.resent_segments)


def addresses(summary: Summary) -> dict[str, str]:
    """Nodes by address."""
    from testbed.network.topology import SUBNET, client_address

    found = {str(SUBNET[1]): SERVER}
    for number, client in enumerate(summary.per_client, start=1):
        found[client_address(number)] = client.name
    return found


def closing_table(summary: Summary) -> Table:
    """The run in one table, a row a node."""
    wire = summary.bytes.wire
    title = f"exec on {summary.profile}: {human_bytes(wire.up)} up, {human_bytes(wire.down)} down"
    table = Table(title=one_line(title), title_justify="left")
    for place, head in enumerate(HEADS):
        table.add_column(head, justify="left" if place < 1 else "right")
    for row in rows(summary):
        table.add_row(*map(one_line, row))
    return table
