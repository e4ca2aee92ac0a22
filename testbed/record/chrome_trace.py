"""trace.json: a run on one time axis, for Perfetto (ui.perfetto.dev) and chrome://tracing.

Chrome's trace event format. A process is a node: its rounds with its spans in them, on one track;
each message as an asynchronous event of the client that sent or received it; changes of its link,
and what it lost, as instants. A program of `exec` is a span, its link's kB/s are counters. Times
are microseconds since the command.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from testbed import files
from testbed.network.direction import WAYS
from testbed.network.topology import SERVER
from testbed.record import recovery
from testbed.record.events import (
    Event,
    Exited,
    Lost,
    Message,
    Missed,
    Reduced,
    Resumed,
    Run,
    Shaped,
    Wire,
    as_dict,
    known,
)
from testbed.record.reading import EVENTS
from testbed.record.spans import Timeline

NAME = "trace.json"
MOST_EVENTS = 200_000
"""A viewer in a browser takes about as many."""
_INSTANTS: dict[type[Event], str] = {
    Shaped: "link changes",
    Lost: "lost",
    Missed: "update missed",
    Resumed: "resumed",
}
_ROUNDS_TRACK = 1
_BYTES = 1
"""Place of bytes among a direction's counters."""

Json = dict[str, Any]


def write(folder: Path) -> None:
    """Make a run's trace.json of its events.jsonl.

    Raises:
        OSError: it cannot be written.
    """
    with files.opened(folder / EVENTS) as lines:
        found = trace(recovery.counted(lines))
    files.write(folder / NAME, msgspec.json.encode(found) + b"\n")


def trace(record: Iterator[Event], most: int = MOST_EVENTS) -> Json:
    """The whole document, its events as JSON already.

    Of more than ``most`` events only the first ones in time, and ``otherData`` says so.
    """
    timeline = Timeline()
    places = {SERVER: 0}
    moments: list[tuple[float, float, int, msgspec.Raw]] = []

    def keep(found: Iterable[Json]) -> None:
        for one in found:
            # Of two that begin together the longer one is around the other.
            order = (one["ts"], -one.get("dur", 0.0), len(moments))
            # As text an event takes less memory.
            moments.append((*order, msgspec.Raw(msgspec.json.encode(one))))

    rates = None
    whole = True
    for event in record:
        # Spans come from what was read.
        if len(moments) >= most:
            whole = False
            break
        timeline.take(event)
        if isinstance(event, Run):
            places |= {name: place for place, name in enumerate(timeline.clients, start=1)}
            rates = _Rates(list(places.values())) if known(event.programs) else None
        elif isinstance(event, Wire) and rates is not None:
            keep(rates.take(event))
        elif isinstance(event, Exited):
            keep([_program(event, places)])
        elif isinstance(event, Message):
            keep(_message(event, places, timeline.origin_ns or 0, len(moments)))
        elif isinstance(event, Reduced):
            keep(_reduction(event, places, timeline.origin_ns or 0, len(moments)))
        elif type(event) in _INSTANTS:
            keep([_instant(event, places)])
    keep(_spans(timeline, places))
    moments.sort()
    notes = {"wiretune": "times in microseconds since the command"}
    if not whole or len(moments) > most:
        notes["truncated"] = f"only the first {most} events of the run"
    kept = [text for *_, text in moments[:most]]
    return {"otherData": notes, "traceEvents": [*_names(places), *kept]}


def _names(places: dict[str, int]) -> Iterator[Json]:
    for name, place in places.items():
        own = {"ph": "M", "pid": place, "tid": _ROUNDS_TRACK}
        yield {"name": "process_name", **own, "args": {"name": name}}
        yield {"name": "process_sort_index", **own, "args": {"sort_index": place}}
        yield {"name": "thread_name", **own, "args": {"name": "rounds"}}


def _message(event: Message, places: dict[str, int], origin_ns: int, number: int) -> list[Json]:
    up = event.node == SERVER
    own = {
        "name": event.kind,
        "cat": "message",
        "id": number,
        "pid": places[event.peer if up else event.node],
        "tid": _ROUNDS_TRACK,
    }
    args = {key: getattr(event, key) for key in ("round", "payload_bytes", "message_bytes")}
    args |= {"from": event.peer, "to": event.node}
    begins, ends = (
        _microseconds(at_ns - origin_ns) for at_ns in (event.sent_ns, event.received_ns)
    )
    return [{**own, "ph": "b", "ts": begins, "args": args}, {**own, "ph": "e", "ts": ends}]


def _reduction(event: Reduced, places: dict[str, int], origin_ns: int, number: int) -> list[Json]:
    own = {"name": "allreduce", "cat": "message", "id": number, "pid": places[event.node]}
    own["tid"] = _ROUNDS_TRACK
    args = {key: getattr(event, key) for key in ("round", "members", "received", "reason")}
    begins, ends = _interval(event.began_ns, event.ended_ns, origin_ns)
    return [{**own, "ph": "b", "ts": begins, "args": args}, {**own, "ph": "e", "ts": ends}]


def _instant(event: Event, places: dict[str, int]) -> Json:
    told = {key: value for key, value in as_dict(event).items() if key not in ("t", "event")}
    return {
        "name": _INSTANTS[type(event)],
        "ph": "i",
        "s": "p",
        "ts": _microseconds(round(1e9 * event.t)),
        # What concerns the whole run stands with the server.
        "pid": places.get(getattr(event, "peer", event.node), 0),
        "tid": _ROUNDS_TRACK,
        "args": told,
    }


def _spans(timeline: Timeline, places: dict[str, int]) -> Iterator[Json]:
    origin_ns = timeline.origin_ns or 0
    for number, entry in timeline.rounds.items():
        for node, spans in entry.spans().items():
            own: Json = {"ph": "X", "pid": places[node], "tid": _ROUNDS_TRACK}
            if not spans:
                continue
            began_ns, ended_ns = spans[0].began_ns, spans[-1].ended_ns
            for name, begins, ends in ((f"round {number}", began_ns, ended_ns), *spans):
                yield {
                    "name": name,
                    **own,
                    "ts": _microseconds(begins - origin_ns),
                    "dur": _microseconds(ends - begins),
                }


def _program(event: Exited, places: dict[str, int]) -> Json:
    began_s = max(0.0, event.t - event.seconds)
    own = {"name": "program", "ph": "X", "pid": places[event.node], "tid": _ROUNDS_TRACK}
    args = {"code": event.code, "how": event.how, "stopped": event.stopped}
    return {**own, "ts": 1e6 * began_s, "dur": 1e6 * event.seconds, "args": args}


class _Rates:
    """Counters of a run of programs as kB a second since the reading before."""

    def __init__(self, places: list[int]) -> None:
        self._places = places
        self._before: Wire | None = None

    def take(self, event: Wire) -> Iterator[Json]:
        before, self._before = self._before, event
        if before is None or event.t <= before.t:
            return
        for place in self._places:
            ways = zip(WAYS, before.counters[place], event.counters[place], strict=True)
            rates = {
                way: round((now[_BYTES] - was[_BYTES]) / (event.t - before.t) / 1000, 3)
                for way, was, now in ways
            }
            yield {"name": "kB/s", "ph": "C", "pid": place, "ts": 1e6 * before.t, "args": rates}


def _interval(begins_ns: int, ends_ns: int, origin_ns: int) -> tuple[float, float]:
    return _microseconds(begins_ns - origin_ns), _microseconds(ends_ns - origin_ns)


def _microseconds(time_ns: int) -> float:
    return time_ns / 1000
