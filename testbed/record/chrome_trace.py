"""trace.json: a run on one time axis, for Perfetto (ui.perfetto.dev) and chrome://tracing.

Chrome's trace event format. A process is a node: its rounds with its spans in them, on one track;
each message as an asynchronous event of the client that sent or received it; changes of its link,
and what it lost, as instants. Times are microseconds since the command.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from testbed import files
from testbed.record import recovery
from testbed.record.events import EVENTS
from testbed.record.spans import SERVER, Timeline

NAME = "trace.json"
MOST_EVENTS = 200_000
"""A viewer in a browser takes about as many."""
_INSTANTS = {
    "shaped": "link changes",
    "lost": "lost",
    "missed": "update missed",
    "resumed": "resumed",
}
_ROUNDS_TRACK = 1

Json = dict[str, Any]


def write(folder: Path) -> None:
    """Make a run's trace.json of its events.jsonl.

    Raises:
        OSError: it cannot be written.
    """
    with files.opened(folder / EVENTS) as lines:
        found = trace(recovery.events(lines))
    files.write(folder / NAME, msgspec.json.encode(found) + b"\n")


def trace(events: Iterator[Json], most: int = MOST_EVENTS) -> Json:
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

    whole = True
    for event in events:
        # Spans come from what was read.
        if len(moments) >= most:
            whole = False
            break
        timeline.take(event)
        if event["event"] == "run":
            places |= {name: place for place, name in enumerate(timeline.clients, start=1)}
        elif event["event"] == "message":
            keep(_message(event, places, timeline.origin_ns or 0, len(moments)))
        elif event["event"] == "reduced":
            keep(_reduction(event, places, timeline.origin_ns or 0, len(moments)))
        elif event["event"] in _INSTANTS:
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


def _message(event: Json, places: dict[str, int], origin_ns: int, number: int) -> list[Json]:
    up = event["node"] == SERVER
    own = {
        "name": event["kind"],
        "cat": "message",
        "id": number,
        "pid": places[event["peer"] if up else event["node"]],
        "tid": _ROUNDS_TRACK,
    }
    args = {key: event[key] for key in ("round", "payload_bytes", "message_bytes")}
    args |= {"from": event["peer"], "to": event["node"]}
    begins, ends = (_microseconds(event[key] - origin_ns) for key in ("sent_ns", "received_ns"))
    return [{**own, "ph": "b", "ts": begins, "args": args}, {**own, "ph": "e", "ts": ends}]


def _reduction(event: Json, places: dict[str, int], origin_ns: int, number: int) -> list[Json]:
    own = {"name": "allreduce", "cat": "message", "id": number, "pid": places[event["node"]]}
    own["tid"] = _ROUNDS_TRACK
    args = {key: event[key] for key in ("round", "members", "received", "reason")}
    begins, ends = (_microseconds(event[key] - origin_ns) for key in ("began_ns", "ended_ns"))
    return [{**own, "ph": "b", "ts": begins, "args": args}, {**own, "ph": "e", "ts": ends}]


def _instant(event: Json, places: dict[str, int]) -> Json:
    return {
        "name": _INSTANTS[event["event"]],
        "ph": "i",
        "s": "p",
        "ts": _microseconds(round(1e9 * event["t"])),
        # What concerns the whole run stands with the server.
        "pid": places.get(event["peer" if "peer" in event else "node"], 0),
        "tid": _ROUNDS_TRACK,
        "args": {key: value for key, value in event.items() if key not in ("t", "event")},
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


def _microseconds(time_ns: int) -> float:
    return time_ns / 1000
