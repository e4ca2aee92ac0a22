"""Events of a small run, one by one."""

from typing import Any

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
