"""Reading of events.jsonl: typed, bounded, and in an order that a run can have.

A run's folder may be damaged, or somebody else's. Whoever reads it takes its events from here, so
that no kind, type, name or number is met later that this version does not write, and nothing takes
its size from a figure in the file. Of kinds that are not known nothing but their time and node is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import msgspec

from testbed.config_error import excerpt
from testbed.network.topology import SERVER, client_name
from testbed.record import events
from testbed.record.events import Event

EVENTS = "events.jsonl"
MOST_LINE_BYTES = 16_000_000
"""The certificate of MAX_CLIENTS links has 6 MB."""
SUPERVISOR = "supervisor"


class Damaged(ValueError):
    """A line is no event of a run; the text says which and why."""


class _Named(msgspec.Struct):
    event: str


class _Any(msgspec.Struct):
    t: events.Seconds
    node: str


_KINDS = {str(kind.__struct_config__.tag) for kind in events.KINDS}
_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(events.Known)
_BETWEEN_NODES = (events.Message, events.Lost, events.Missed)
"""What has a node as its peer."""
_OF_NODES = (
    *(events.Message, events.Reduced, events.Shaped, events.Usage),
    events.Computed,
)


_OF_PROGRAMS = (events.Isolated, events.Exited, events.Brought, events.Carried)


def lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file, the last one maybe torn.

    Raises:
        Damaged: one is longer than any event.
    """
    while line := file.readline(MOST_LINE_BYTES):
        if len(line) == MOST_LINE_BYTES:
            raise Damaged(f"a line has {MOST_LINE_BYTES:,} bytes or more")
        yield line


def decoded(line: bytes) -> Event | None:
    """A line's event, whatever stands before it; None where it is torn.

    Raises:
        Damaged: it is none.
    """
    try:
        return _decoder.decode(line)
    except msgspec.ValidationError as error:
        wrong = error
    except (ValueError, RecursionError):
        return None
    # A torn line may be no event before its end is looked at.
    try:
        msgspec.json.decode(line, type=msgspec.Raw)
    except (ValueError, RecursionError):
        return None
    return None if line.strip() == b"null" else _unknown(line, wrong)


def _unknown(line: bytes, wrong: msgspec.ValidationError) -> Event:
    """An event of a later version; nothing is made of what else is in it."""
    try:
        kind = msgspec.json.decode(line, type=_Named).event
    except msgspec.ValidationError:
        raise Damaged("is no event") from wrong
    if kind in _KINDS:
        raise Damaged(str(wrong)) from wrong
    told = msgspec.json.decode(line, type=_Any)
    return Event(t=told.t, node=told.node)


def read(found: Iterable[bytes]) -> Iterator[Event | None]:
    """The event of each line, in turn; None of one that is torn.

    Raises:
        Damaged: one is not as this version writes it.
    """
    order = _Order()
    for number, line in enumerate(found, start=1):
        try:
            event = decoded(line)
            if event is not None:
                order.check(event)
        except (ValueError, OverflowError) as error:
            raise Damaged(f"line {number}: {excerpt(error)}") from error
        yield event


class _Order:
    """The order of events: later ones must agree with earlier ones."""

    def __init__(self) -> None:
        self._nodes = {SUPERVISOR, SERVER}
        self._clients: list[str] | None = None
        self._programs: set[str] = set()
        """Nodes that have one."""
        self._begun = 0
        """The latest round that has begun."""

    def check(self, event: Event) -> None:
        if isinstance(event, events.Run):
            self._begin(event)
        kind = event.event
        if event.node not in self._nodes:
            raise Damaged(f"{kind}: {event.node!r} is no node of this run")
        clients = self._clients or []
        if isinstance(event, _BETWEEN_NODES) and event.peer not in {SERVER, *clients}:
            raise Damaged(f"{kind}: {event.peer!r} is no node of this run")
        of_a_client = isinstance(event, events.Reduced) or (
            isinstance(event, events.Ready) and event.samples is not msgspec.UNSET
        )
        if (isinstance(event, events.Lost) and event.peer == SERVER) or (
            of_a_client and event.node not in clients
        ):
            raise Damaged(f"{kind}: is of a client")
        if isinstance(event, _OF_NODES) and event.node == SUPERVISOR:
            raise Damaged(f"{kind}: is of a node")
        if isinstance(event, _OF_PROGRAMS) and event.node not in self._programs:
            raise Damaged(f"{kind}: {event.node} has no program in this run")
        if isinstance(event, events.Wire | events.Certified):
            _check_length(kind, "counters", event.counters, clients)
        elif isinstance(event, events.Links):
            # Which lines there are, an older run does not say; qdiscs are netem's.
            if event.lines:
                _check_length(kind, "lines", event.lines, clients)
            if event.qdiscs:
                _check_length(kind, "qdiscs", event.qdiscs, clients)
            _check_facts(event.facts)
            if not isinstance(event.facts.get("backend"), str):
                raise Damaged("links: backend is no name")
        elif isinstance(event, events.Closed):
            _check_facts(event.links)
        self._follow(event)

    def _begin(self, run: events.Run) -> None:
        if self._clients is not None:
            raise Damaged("a second run begins")
        names = run.client_names
        if names != [client_name(number) for number in range(1, len(names) + 1)]:
            raise Damaged("run: client_names are not client-1 and so on")
        if not isinstance(run.config.get("options", {}), dict):
            raise Damaged("run: options are no table")
        if len(run.client_profiles) != len(names):
            raise Damaged("run: client_profiles are not one of each client")
        self._clients = names
        self._nodes.update(names)
        self._programs = set(events.known(run.programs) or {})
        if not self._programs <= self._nodes - {SUPERVISOR}:
            raise Damaged("run: programs are not those of its nodes")

    def _follow(self, event: Event) -> None:
        """No round is skipped, so that how many there are is no figure of the file's."""
        if isinstance(event, events.RoundStarted):
            if event.round > self._begun + 1:
                raise Damaged(f"round {event.round} begins after round {self._begun}")
            self._begun = max(self._begun, event.round)
        elif isinstance(event, events.Round | events.Wire | events.Resumed):
            number = event.round or 0
            if number > self._begun:
                raise Damaged(f"{event.event}: round {number} has not begun")


def _check_length(kind: str, name: str, found: list[Any], clients: list[str]) -> None:
    if len(found) != 1 + len(clients):
        raise Damaged(f"{kind}: {name} are not those of {len(clients)} clients")


def _check_facts(facts: dict[str, Any]) -> None:
    for name, value in facts.items():
        if name.startswith("lateness") and type(value) not in (int, float):
            raise Damaged(f"{name} is no number")
