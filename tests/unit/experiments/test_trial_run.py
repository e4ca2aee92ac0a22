"""What a trial round says of the dilation that a run needs, and what becomes of one that fails."""

from pathlib import Path
from typing import Any

import pytest
from made_host import CALM, made, real
from msgspec.structs import replace

from experiments import trial_run
from testbed.clock import MAX_DILATION
from testbed.links.loopback.backend import name as loopback
from testbed.network.profiles import LinkProfile
from testbed.network.topology import plan
from testbed.record.events import Check
from testbed.record.run_summary import Summary
from testbed.run.config import RunConfig


def told(summary: Summary, *checks: Check, late_ms: float = 0.3) -> Summary:
    fidelity = replace(summary.fidelity, checks=list(checks))
    return replace(summary, fidelity=fidelity, link_facts={**CALM, "lateness_p99_ms": late_ms})


def rate(measured: float | None, ok: bool = False) -> Check:
    return Check("rate", "client-1", "up", 8000.0, measured, "kbit/s", 160.0, ok)


def test_a_round_in_which_nothing_was_late_needs_none() -> None:
    found = trial_run.conclude(told(made(real("client-1", 1, 0.0), rounds=1)))
    assert found.dilation == 1
    assert found.how == (
        "a trial round of 2.00 s, in which client-1 was late by 0.00 s with what takes its device "
        "1.00 s"
    )


def test_a_node_that_waited_decides() -> None:
    rows = (real("client-1", 0.2, 0.0), real("client-2", 0.1, 0.9))
    found = trial_run.conclude(told(made(*rows, rounds=1)))
    assert 12 <= found.dilation <= 16
    assert "client-2 was late by 0.90 s" in found.how


def test_links_that_were_late_or_not_filled_decide_as_well() -> None:
    summary = made(real("client-1", 1, 0.0), rounds=1)
    assert trial_run.conclude(told(summary, late_ms=8.0)).dilation == 6.7
    assert trial_run.conclude(told(summary, rate(2000.0))).dilation == 6.7
    assert trial_run.conclude(told(summary, rate(8000.0, ok=True), rate(None))).dilation == 1


def test_there_is_an_end_to_it() -> None:
    summary = told(made(real("client-1", 1e-6, 1e5), rounds=1))
    assert trial_run.conclude(summary).dilation == MAX_DILATION


def test_a_round_that_fails_is_told_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[RunConfig] = []
    folders: list[Path] = []

    def failing(config: RunConfig, *others: Any) -> Summary:
        asked.append(config)
        folders.append(others[3].folder)
        return replace(made(rounds=0), reason="stopped by SIGINT")

    monkeypatch.setattr(trial_run, "run", failing)
    config = RunConfig(dilation="auto", rounds=7, strict=True, deadline_s=3.0, links=loopback)
    layout = plan([LinkProfile(name="x")])
    with pytest.raises(trial_run.TrialFailed, match=r"trial round .* stopped by SIGINT") as caught:
        trial_run.find(config, layout, None, {}, tmp_path)  # type: ignore[arg-type]
    assert caught.value.status == "interrupted"
    (one,) = asked
    assert (one.dilation, one.rounds, one.strict, one.deadline_s) == (1.0, 1, False, None)
    assert folders[0].parent == tmp_path and not folders[0].exists()
