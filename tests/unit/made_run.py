"""A run's events made up, with times and bytes that can be added up by hand."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from made_events import typed

from testbed.record.run_summary import Summary
from testbed.record.summary import SummaryBuilder

S = 1_000_000_000
HOSTILE = "<script>alert(1)</script>"
ROUND_S = 6.0
"""Each round: a second down, three of computing, one up, one of evaluation."""
PAYLOAD, WIRE = 400_000, 500_000
"""Bytes of a client's message, and on the wire, one way."""

Event = dict[str, Any]


def events(
    clients: int = 2,
    rounds: int = 2,
    *,
    method: str = "fedpeft",
    profile: str = "4g",
    accuracies: Iterable[float] | None = None,
    round_s: float = ROUND_S,
    wire: int = WIRE,
    options: dict[str, Any] | None = None,
    seed: int = 0,
    closed: bool = True,
) -> list[Event]:
    """Rounds follow each other without a gap; accuracy is 0.1 first, and then ``accuracies``."""
    names = [f"client-{n}" for n in range(1, clients + 1)]
    config = {"profile": profile, "method": method, "rounds": rounds, "options": options or {}}
    reached = list(accuracies or [1 - 0.5**n for n in range(1, rounds + 1)])
    found = [
        _at(
            0,
            "supervisor",
            "run",
            run_id="20261121-100000-made",
            command=f"cli.py launch --profile={profile}",
            method=method,
            model="vit-glyphs",
            dataset="digits",
            profile=profile,
            server_profile=None,
            seed=seed,
            compute="real",
            device_class=None,
            server_device_class=None,
            client_names=names,
            client_profiles=[profile] * clients,
            config=config,
            environment={"cores": 2, "memory_mb": 8000, "kernel": "Linux", "python": "3.11"},
        ),
        _at(0.1, "supervisor", "links", facts={"backend": "userspace"}),
        _certified(names),
        _at(1, "server", "ready", trainable_parameters=100, total_parameters=1000),
        _at(1, "server", "evaluated", metrics={"accuracy": 0.1, "loss": 2.3}),
    ]
    for number in range(1, rounds + 1):
        began = 10 + (number - 1) * round_s
        found.append(_at(began, "server", "round_started", round=number))
        for name in names:
            found.append(message("server", name, number, began, began + 1))
            found.append(message(name, "server", number, began + 4, began + 5))
            usage = {"pid": 7, "private_mb": 20.0, "cpu_s": 3.0 * number, "run_delay_s": number}
            found.append(_at(began + 5, name, "usage", **usage))
        told = {"metrics": {"accuracy": reached[number - 1], "loss": 1.0}}
        told |= {"clients_ok": clients, "clients_failed": 0, "seconds": round_s}
        found.append(_at(began + round_s, "server", "round", round=number, **told))
        link = [[number, wire * number, 0, 0]] * 2
        counters = [[[0, 0, 0, 0]] * 2, *[link] * clients]
        found.append(_at(began + round_s, "supervisor", "wire", round=number, counters=counters))
    if closed:
        found.append(_at(99, "supervisor", "closed", status="ok", reason=None, links={}))
    return found


def _certified(names: list[str]) -> Event:
    def check(name: str, measured: float, ok: bool) -> Event:
        asked = {"expected": 6300.0, "unit": "kbit/s", "tolerance": 126.0}
        return {"name": "rate", "link": name, "direction": "up", "measured": measured, **asked} | {
            "ok": ok
        }

    checks = [check(names[0], 6000.0, False), *(check(name, 6300.0, True) for name in names[1:])]
    fidelity = {"verdict": "fail", "reason": "1 check does not hold", "checks": checks}
    nothing = [[[0, 0, 0, 0]] * 2] * (len(names) + 1)
    return _at(0.9, "supervisor", "certified", seconds=0.5, fidelity=fidelity, counters=nothing)


def message(
    sender: str, receiver: str, number: int, sent_s: float, received_s: float, kind: str = "adapter"
) -> Event:
    sizes = {"payload_bytes": PAYLOAD, "message_bytes": PAYLOAD + 200}
    times = {"sent_ns": int(sent_s * S), "received_ns": int(received_s * S)}
    return (
        _at(received_s, receiver, "message", peer=sender, kind=kind, round=number) | sizes | times
    )


def _at(t: float, node: str, event: str, **fields: Any) -> Event:
    return {"t": t, "node": node, "event": event, **fields}


def lines(found: Iterable[Event]) -> list[bytes]:
    return [json.dumps(event).encode() + b"\n" for event in found]


def summary(found: Iterable[Event]) -> Summary:
    tally = SummaryBuilder()
    for event in found:
        tally.take(typed(event))
    return tally.summary()


def folder(place: Path, found: list[Event]) -> Path:
    """Write a run's folder as the recorder leaves it."""
    place.mkdir(parents=True)
    found = [each | {"run_id": place.name} if "run_id" in each else each for each in found]
    (place / "events.jsonl").write_bytes(b"".join(lines(found)))
    (place / "summary.json").write_bytes(msgspec.json.encode(summary(found)))
    options = found[0]["config"].get("options", {})
    table = "".join(f"{name} = {json.dumps(value)}\n" for name, value in options.items())
    (place / "config.toml").write_text(f'method = "{found[0]["method"]}"\n[options]\n{table}')
    return place
