"""Metrics that are no finite numbers: what nodes make of them, and everybody who reads a record."""

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import made_run
import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from made_events import typed
from rich.console import Console

import cli
from experiments.compare import Group, figures, medians, table
from experiments.plan import Bench, Row
from nodes.metrics import mean, numbers
from nodes.server import Resumed, check_alike, reaches
from testbed.metrics import Target
from testbed.record.summary import SummaryBuilder
from testbed.report import tables
from testbed.report.progress import RoundLines, closing_table


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (0.5, 0.5),
        (True, 1.0),
        (Fraction(1, 2), 0.5),
        (np.float32(0.5), 0.5),
        (np.array([[0.5]]), 0.5),
        (torch.tensor(0.5, requires_grad=True), 0.5),
        (torch.tensor([3]), 3.0),
    ],
)
def test_whatever_is_one_number_is_a_float(value: Any, number: float) -> None:
    assert numbers({"accuracy": value}) == {"accuracy": number}
    assert type(numbers({"accuracy": value})["accuracy"]) is float


@pytest.mark.parametrize(
    "value",
    [
        *(math.nan, math.inf, -math.inf, 1e305, -1e305, None, "0.5", b"1", 10**400, 1j, [0.5], {}),
        *(np.float64("nan"), np.zeros(2), torch.tensor(math.nan), torch.zeros(2)),
        torch.zeros(1, device="meta"),
    ],
)
def test_whatever_is_none_is_kept_as_such(value: Any) -> None:
    found = numbers({"accuracy": value, 2: 1})
    assert math.isnan(found["accuracy"]) and found["2"] == 1.0
    assert msgspec.json.encode(found) == b'{"accuracy":null,"2":1.0}'


def test_no_metrics_and_what_holds_none_by_name() -> None:
    assert numbers(None) == {}
    for found in (0.5, "text", math.nan, (1, 2)):
        with pytest.raises(TypeError, match="evaluate must return metrics by name, not"):
            numbers(found)


def test_a_mean_over_clients_hides_none_that_has_no_number() -> None:
    assert mean([1.0, 2.0]) == 1.5
    assert math.isnan(mean([1.0, math.nan]))
    assert math.isnan(mean([1e308, 1e308, 1e308]))


def test_a_metric_without_a_number_is_like_itself_alone_and_reaches_no_target() -> None:
    past = Resumed(3, {}, {"loss": math.nan}, over=False)
    check_alike({"loss": math.nan}, past)
    for found in ({"loss": 0.5}, {}):
        with pytest.raises(RuntimeError, match="loss after round 3 was nan"):
            check_alike(found, past)
    with pytest.raises(RuntimeError, match=r"was 0\.5 and is nan"):
        check_alike({"loss": math.nan}, Resumed(3, {}, {"loss": 0.5}, over=False))
    assert not reaches({"accuracy": math.nan, "client_accuracy": 1.0}, Target("accuracy", 0.5))


@pytest.fixture
def events() -> list[dict[str, Any]]:
    """A run that diverged in its second round."""
    found = made_run.events(accuracies=[0.5, None])  # type: ignore[list-item]
    found[-3]["metrics"]["loss"] = None
    evaluated = next(event for event in found if event["event"] == "evaluated")
    evaluated["metrics"]["loss"] = None
    return found


def test_who_watches_the_run_sees_that_there_is_no_number(events: list[dict[str, Any]]) -> None:
    console, tally = Console(width=200, record=True), SummaryBuilder()
    lines = RoundLines(console, 2, 2)
    for event in events:
        tally.take(typed(event))
        lines.take(typed(event), tally)
    console.print(closing_table(tally.summary()))
    said = " ".join(console.export_text().split())
    assert "before training: accuracy 0.100 loss no number" in said
    assert "round 2/2 accuracy no number loss no number" in said
    assert "0.100 -> no number" in said


def test_whoever_reads_the_record_gets_through(
    tmp_path: Path, events: list[dict[str, Any]]
) -> None:
    runs = [made_run.folder(tmp_path / name, events) for name in ("run-1", "run-2")]
    for arguments in (
        ("report", runs[0]),
        ("compare", *runs, "--json"),
        ("results", "--out", tmp_path, "--json"),
        ("export", runs[0], "--csv"),
    ):
        result = CliRunner().invoke(cli.main, [str(each) for each in arguments])
        assert result.exit_code == 0, result.output
        if "--json" in arguments:
            found = json.loads(result.stdout)
            rows = found["runs"] if isinstance(found, dict) else found
            assert [row["accuracy"] for row in rows] == [0.5, 0.5]
    assert "no finite number" in (runs[0] / "report.html").read_text()
    tags = [tag for tag, _, number, _ in tables.scalars(made_run.summary(events)) if number == 2]
    assert "seconds/seconds" in tags and "metrics/accuracy" not in tags


def test_a_bench_keeps_its_row(events: list[dict[str, Any]]) -> None:
    found, spread = medians([figures(made_run.summary(events), None)])
    own = Bench(rows=[Row("one")])
    console = Console(width=200, record=True)
    console.print(table(own, [Group("4g", own.rows[0], found, spread)]))
    assert "0.500" in console.export_text()
