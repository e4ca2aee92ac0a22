"""The trial round of ``--dilation=auto``: the same run at this machine's pace."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from nodes.program import FineTuning
from testbed.clock import MAX_DILATION
from testbed.links.interface import Backend
from testbed.network.topology import Plan
from testbed.record import host_load
from testbed.record.events import Event
from testbed.record.recorder import Recorder
from testbed.record.run_summary import Summary
from testbed.record.summary import SummaryBuilder
from testbed.run.config import RunConfig
from testbed.run.supervisor import run


class Found(NamedTuple):
    """The dilation that a trial round asks for."""

    dilation: float
    how: str


class TrialFailed(RuntimeError):
    """There was no round; the text is the run's reason, ``status`` as in summary.json."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(f"the trial round of --dilation=auto: {reason}")
        self.status = status


class _Silent:
    def take(self, event: Event, tally: SummaryBuilder) -> None:
        pass


def find(
    config: RunConfig, layout: Plan, backend: Backend, facts: dict[str, Any], within: Path
) -> Found:
    """Carry out a round and work out the dilation; ``within``: the run's own folder.

    A round has no deadline here, for its clients are to finish; a device may be faster than a
    core.

    Raises:
        TrialFailed: the round did not come to its end.
    """
    trial = msgspec.structs.replace(
        config,
        **{"dilation": 1.0, "rounds": 1, "target": None, "budget_mb": None, "deadline_s": None},
        **{"pcap": False, "strict": False, "checkpoints": False},
    )
    program = FineTuning(trial, len(layout.clients), any_device=True)
    # In the run's own folder: one that is killed leaves nothing elsewhere.
    with tempfile.TemporaryDirectory(prefix="trial-", dir=within) as folder:
        recorder = Recorder(Path(folder), time.monotonic())
        try:
            told = {**facts, "dilation": 1.0}
            summary = run(trial, layout, backend, program, recorder, told, _Silent())
        finally:
            recorder.close()
    if summary.rounds_done == 0 or summary.status != "ok":
        raise TrialFailed(summary.status, summary.reason or "it was not finished")
    return conclude(summary)


def conclude(summary: Summary) -> Found:
    """The conclusion from the summary of a trial round."""
    links = summary.link_facts
    needed = max(host_load.enough(summary, links), _for_links(summary))
    (entry,) = summary.rounds
    how = f"a trial round of {entry.seconds:.2f} s"
    rows = host_load.rows_with_lateness(summary)
    if rows:
        latest = max(rows, key=host_load.late_s)
        how += (
            f", in which {latest.node} was late by {host_load.late_s(latest):.2f} s with what "
            f"takes its device {host_load.device_s(latest):.2f} s"
        )
    return Found(min(needed, MAX_DILATION), how)


def _for_links(summary: Summary) -> float:
    """Lines that this machine could not fill are to be as much slower."""
    short = [
        check.expected / check.measured / host_load.SPARE
        for check in summary.fidelity.checks
        if check.unit == "kbit/s" and not check.ok and check.measured
    ]
    return host_load.rounded_up(max([1.0, *short]))
