"""What is said of runs that were compared, against arithmetic on made summaries."""

from io import StringIO

import made_run
import pytest
from rich.console import Console

from experiments.compare import Group, figures, medians, shares, table
from experiments.plan import Bench, Paper, Row
from testbed.record.events import UpDown
from testbed.record.run_summary import Process, Summary


def summary(accuracies: list[float | None], seconds: float = 60.0) -> Summary:
    """Two clients, each sending 1 MB and receiving 2 MB of payload a round."""
    found = made_run.summary(made_run.events(clients=2, rounds=len(accuracies)))
    for entry, accuracy in zip(found.rounds, accuracies, strict=True):
        entry.seconds = seconds
        entry.metrics = {} if accuracy is None else {"accuracy": accuracy}
        entry.bytes.payload = UpDown(2_000_000, 4_000_000)
        entry.bytes.wire = UpDown(2_200_000, 4_400_000)
    for client, flops in zip(found.per_client, (2e9, 4e9), strict=True):
        client.round_flops = flops
    found.processes = [
        Process(node="server", private_mb=800.0, peak_private_mb=900.0),
        Process(node="client-1", private_mb=20.0, peak_private_mb=31.0),
        Process(node="client-2", private_mb=21.0, peak_private_mb=30.0),
    ]
    return found


def test_a_round_and_client() -> None:
    found = figures(summary([None, None]), None)
    assert found["accuracy"] is None
    assert found["one_way_mb"] == pytest.approx(1.5)
    assert found["client_round_mb"] == pytest.approx(3.0)
    assert found["up_gib"] == pytest.approx(2_000_000 / 2**30)
    assert found["client_round_gflop"] == pytest.approx(3.0)
    assert found["client_memory_mb"] == 31.0
    assert found["minutes_a_round"] == pytest.approx(1.0)
    assert found["payload_mb"] == pytest.approx(12.0)
    assert found["wire_mb"] == pytest.approx(13.2)
    assert "rounds_to_target" not in found


def test_until_the_target_is_reached_and_no_further() -> None:
    found = figures(summary([0.5, 0.91, 0.89]), 0.9)
    assert found["rounds_to_target"] == 2
    assert found["minutes_to_target"] == pytest.approx(2.0)
    assert found["payload_mb_to_target"] == pytest.approx(12.0)
    assert found["wire_mb_to_target"] == pytest.approx(13.2)
    assert found["accuracy"] == 0.91


def test_to_the_moment_of_the_target_on_a_straight_line_through_the_round() -> None:
    # 0.7 at its begin, 0.95 at its end: 0.9 after four fifths of the second round.
    found = figures(summary([0.7, 0.95]), 0.9)
    assert found["rounds_interpolated"] == pytest.approx(1.8)
    assert found["minutes_interpolated"] == pytest.approx(1.8)
    assert found["payload_mb_interpolated"] == pytest.approx(6.0 + 0.8 * 6.0)
    assert found["wire_mb_interpolated"] == pytest.approx(1.8 * 6.6)
    # The first round begins at the accuracy from before it: 0.1.
    assert figures(summary([0.6]), 0.35)["minutes_interpolated"] == pytest.approx(0.5)
    assert figures(summary([0.6]), 0.05)["minutes_interpolated"] == 0.0
    # At a round's end exactly, there is no difference.
    assert figures(summary([0.5, 0.9]), 0.9)["minutes_interpolated"] == pytest.approx(2.0)


def test_a_round_whose_begin_nobody_evaluated_has_no_moment() -> None:
    run = summary([None])
    run.rounds[0].metrics, run.metrics.initial = {"client_accuracy": 0.95}, {}
    found = figures(run, 0.9)
    assert found["rounds_to_target"] == 1 and found["minutes_to_target"] == pytest.approx(1.0)
    assert found["rounds_interpolated"] is found["wire_mb_interpolated"] is None


def test_a_target_that_is_never_reached_has_no_figures() -> None:
    found = figures(summary([0.5, 0.6]), 0.9)
    ends = ("to_target", "interpolated")
    assert [name for name in found if name.endswith(ends) and found[name] is not None] == []
    assert sum(name.endswith(ends) for name in found) == 8


def test_a_row_says_what_it_was_tuned_to_and_what_it_has_beside() -> None:
    bench = Bench(rows=[Row("a"), Row("b")], run={"target_accuracy": 0.9}, grid={"rate": [0.1, 1]})
    middle, spread = medians([figures(summary([0.95]), 0.9)])
    groups = [
        Group("4g", bench.rows[0], middle, spread, {"rate": 0.1}, ["rate"], ["400 images"]),
        Group("4g", bench.rows[1], middle, spread, {"rate": 0.5}, [], []),
    ]
    console = Console(file=StringIO(), width=300)
    console.print(table(bench, groups))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("also has", "400 images", "rate", "0.1 (edge)", "0.5", "minutes, interpolated"):
        assert part in text
    assert "0.5 (edge)" not in text


def test_clients_own_accuracy_where_no_model_is_global() -> None:
    run = summary([None])
    run.rounds[0].metrics = {"client_accuracy": 0.7}
    assert figures(run, 0.7)["rounds_to_target"] == 1


def test_clients_own_models_stand_beside_the_servers_of_the_same_round() -> None:
    run = summary([0.9, 0.95, 0.93])
    for entry, own in zip(run.rounds, (0.5, 0.6, 0.8), strict=True):
        entry.metrics = {**entry.metrics, "client_accuracy": own}
    found = figures(run, 0.9)
    assert (found["accuracy"], found["client_accuracy"]) == (0.95, 0.6)
    assert figures(summary([0.9]), 0.9)["client_accuracy"] is None
    for target in ({"target_accuracy": 0.9}, {}):
        bench = Bench(rows=[Row("distilled"), Row("averaged")], run=target)
        text = shown(bench, [[run], [summary([0.9])]])
        assert "clients' own" in text and "0.600" in text
    assert "clients' own" not in shown(Bench(rows=[Row("averaged")]), [[summary([0.9])]])


def test_a_round_that_did_not_finish_does_not_count() -> None:
    run = summary([0.5, 0.95])
    run.rounds[1].finished = False
    assert figures(run, 0.9)["rounds_to_target"] is None


def test_medians_and_spreads_and_a_missing_value_misses() -> None:
    runs = [{"a": 1.0, "b": 1.0}, {"a": 5.0, "b": None}, {"a": 2.0, "b": 2.0}]
    middle, spread = medians(runs)
    assert middle == {"a": 2.0, "b": None, "runs": 3}
    assert spread == {"a": (1.0, 5.0)}


def test_shares_of_the_baseline() -> None:
    own, whole = figures(summary([None], 30.0), None), figures(summary([None], 60.0), None)
    assert shares(own, whole) == {"payload_share": 1.0, "flops_share": 1.0, "minutes_share": 0.5}
    assert set(shares(own, None).values()) == {None}


def shown(bench: Bench, runs: list[list[Summary]]) -> str:
    """The table of each row's runs."""
    target = bench.run.get("target_accuracy")
    found = [medians(figures(run, target) for run in own) for own in runs]
    groups = [
        Group("4g", row, middle | shares(middle, found[0][0]), spread)
        for row, (middle, spread) in zip(bench.rows, found, strict=True)
    ]
    console = Console(file=StringIO(), width=300)
    console.print(table(bench, groups))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(text, str)
    return text


def test_what_paper_and_formula_say_stands_beside_the_measured() -> None:
    own = Row("own", formula_mb=1.25, paper=Paper(payload_share=0.47))
    bench = Bench(rows=[Row("full"), own], baseline="full", note="Mind this.")
    text = shown(bench, [[summary([None])], [summary([None])]])
    for part in ("formula: MB one way", "1.250", "1.500", "paper: payload share", "0.47"):
        assert part in text
    assert "Mind this." in text
    assert "accuracy" not in text


def test_a_table_to_a_target_says_never() -> None:
    bench = Bench(rows=[Row("a"), Row("b")], run={"target_accuracy": 0.9})
    text = shown(bench, [[summary([0.95])], [summary([0.5])]])
    assert "rounds to 0.9" in text
    assert "never" in text
    assert "runs" not in text and " to 0.95" not in text


def test_a_table_of_several_runs_has_their_spread() -> None:
    bench = Bench(rows=[Row("a"), Row("b")], run={"target_accuracy": 0.9})
    good = [summary([0.95]), summary([0.91]), summary([0.5, 0.93])]
    (head, row, other) = [
        [cell.strip() for cell in line.replace("┃", "│").split("│")[1:-1]]
        for line in shown(bench, [good, [summary([0.95]), summary([0.7])]]).splitlines()
        if "│" in line or "┃" in line
    ]
    assert head[1:5] == ["runs", "best accuracy", "rounds to 0.9", "minutes"]
    assert row[1:5] == ["3", "0.930 (0.910 to 0.950)", "1 (1 to 2)", "1.000 (1.000 to 2.000)"]
    assert head[5] == "minutes, interpolated" and row[5] == "0.988 (0.941 to 1.930)"
    # One of two never reached it: there is no median to tell.
    assert other[1:5] == ["2", "0.825 (0.700 to 0.950)", "1 of 2 runs", ""]
