"""Summaries of runs whose nodes computed so and so."""

from collections.abc import Mapping
from typing import Any

from made_events import RUN, at, finished, typed

from testbed.record.run_summary import Summary
from testbed.record.summary import SummaryBuilder

ROUND_S = 2.0
CALM = {"lateness_p99_ms": 0.3}


def made(
    *rows: dict[str, Any],
    mode: str = "real",
    device: str | None = None,
    dilation: float = 1.0,
    rounds: int = 2,
    stopped: Mapping[str, float] = {},
) -> Summary:
    """The summary of a run whose nodes computed so; ``stopped``: who stood still for how long."""
    tally = SummaryBuilder()
    facts = {"compute": mode, "device_class": device, "dilation": dilation}
    tally.take(typed({"t": 0.0, "node": "supervisor", **RUN, **facts}))
    for number in range(1, rounds + 1):
        tally.take(typed(at(number, "server", "round_started", round=number)))
        tally.take(typed(finished(number, number, ROUND_S)))
    for row in rows:
        tally.take(typed({"t": 9, "event": "computed", "round": 1, **row}))
    for node, seconds in stopped.items():
        for _ in range(2):
            event = {"event": "stopped", "peer": node, "seconds": seconds / 2}
            tally.take(typed({"t": 9, "node": "supervisor", **event}))
    return tally.summary()


def real(node: str, cpu_s: float, late_s: float | None, ratio: float = 1.0) -> dict[str, Any]:
    return {"node": node, "cpu_s": cpu_s, "device_s": ratio * cpu_s, "late_s": late_s}
