"""Events of a small run, one by one."""

from typing import Any

import msgspec

from testbed.record import events
from testbed.record.events import Event

RUN = {
    "event": "run",
    "run_id": "20251121-4g-2",
    "command": "cli.py launch",
    "method": "fedpeft",
    "model": "vit-glyphs",
    "dataset": "digits",
    "profile": "4g",
    "seed": 7,
    "client_names": ["client-1", "client-2"],
    "client_profiles": ["4g", "3g"],
    "config": {"rounds": 2},
    "environment": {"cores": 2},
}


def at(t: float, node: str, event: str, **fields: Any) -> dict[str, Any]:
    return {"t": t, "node": node, "event": event, **fields}


def finished(number: int, t: float, seconds: float, **fields: Any) -> dict[str, Any]:
    facts = {"metrics": {}, "clients_ok": 2, "clients_failed": 0} | fields
    return at(t, "server", "round", round=number, seconds=seconds, **facts)


NOTHING: dict[str, Any] = {
    **{level: {"up": 0, "down": 0} for level in ("payload", "message")},
    "seconds": 0.0,
}
"""What a resumed run has lost."""
KINDS = {str(kind.__struct_config__.tag) for kind in events.KINDS}


def typed(event: dict[str, Any]) -> Event:
    """An event that is written as its line would be."""
    if event["event"] == "run":
        event = {"config": {}, **event}
    if event["event"] not in KINDS:
        return Event(t=event["t"], node=event["node"])
    found: Event = msgspec.convert(event, events.Known)
    return found


def told(event: Event) -> dict[str, Any]:
    """What a node says in an event."""
    return {key: value for key, value in events.as_dict(event).items() if key not in ("t", "node")}


class Reported(list[dict[str, Any]]):
    """Takes what a node has to tell, and keeps it as its lines would have it."""

    def __call__(self, event: Event) -> None:
        self.append(told(event))
