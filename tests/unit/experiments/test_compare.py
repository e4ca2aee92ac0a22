"""What is said of runs that were compared, against arithmetic on made summaries."""

import math
from io import StringIO
from typing import Any

import made_run
import pytest
from rich.console import Console

from experiments.compare import Group, examined, figures, medians, shares, table
from experiments.plan import Bench, Claim, Row, aim
from testbed.metrics import Target
from testbed.record.events import UpDown
from testbed.record.run_summary import Busiest, Process, Spans, SpansOverClients, Summary


def at(accuracy: float) -> Target:
    return Target("accuracy", accuracy)


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
    assert found["client_round_gflop"] == pytest.approx(3.0)
    assert found["client_memory_mb"] == 31.0
    assert found["minutes_a_round"] == pytest.approx(1.0)
    assert found["payload_mb"] == pytest.approx(12.0)
    assert found["wire_mb"] == pytest.approx(13.2)
    assert "rounds_to_target" not in found


def test_what_a_client_computes_is_of_the_median_one_in_the_median_round() -> None:
    def spans(compute_s: float) -> Spans:
        return Spans(receive_s=0.0, compute_s=compute_s, send_s=0.0, wait_s=9.0)

    found = summary([0.5, 0.6, 0.7, 0.8])
    for entry, own in zip(found.rounds, ((50, 60, 70), (1, 2, 9), (3, 4, 5), ()), strict=True):
        entry.compute_s, entry.spans = 0.1, [spans(each) for each in own]
    assert figures(found, None)["client_round_s"] == 4.0
    most = SpansOverClients(min=spans(0.0), median=spans(3.0), max=spans(60.0))
    found.rounds[3].spans_over_clients = most
    assert figures(found, None)["client_round_s"] == 3.5
    for entry in found.rounds:
        entry.compute_s = None
    assert figures(found, None)["client_round_s"] is None


def test_memory_of_a_client_whose_computing_is_modelled_is_nobodys() -> None:
    found = summary([None])
    found.compute.mode = "modelled"
    assert figures(found, None)["client_memory_mb"] is None
    groups = [Group("4g", Row("one"), *medians([figures(found, None)]))]
    heads = {str(column.header) for column in table(Bench(rows=[Row("one")]), groups).columns}
    assert "client s a round" in heads and "client peak memory MB" not in heads


def test_what_a_client_takes_has_columns() -> None:
    heads = ("client GFLOP a round", "client s a round", "client peak memory MB")
    found = [Group("4g", Row("one"), *medians([figures(summary([0.5]), None)]))]
    shown = [column.header for column in table(Bench(rows=[Row("one")]), found).columns]
    assert [head for head in shown if head in heads] == list(heads)
    target = Target("accuracy", 0.9)
    found = [Group("4g", Row("one"), *medians([figures(summary([0.5]), target)]))]
    bench = Bench(rows=[Row("one")], run={"target": "accuracy=0.9"})
    assert set(heads) < {str(column.header) for column in table(bench, found).columns}


def test_the_busiest_node_has_a_column_where_it_is_a_client() -> None:
    def printed(node: str) -> str:
        found = summary([0.5])
        found.busiest = Busiest(node, 3_000_000, 1_250_000)
        groups = [Group("4g", Row("one"), *medians([figures(found, None)]))]
        console = Console(file=StringIO(), width=200)
        console.print(table(Bench(rows=[Row("one")]), groups))
        return str(console.file.getvalue())  # type: ignore[attr-defined]

    assert "busiest" not in printed("server")
    assert "busiest node" in printed("client-2") and "4.25" in printed("client-2")


def test_until_the_target_is_reached_and_no_further() -> None:
    found = figures(summary([0.5, 0.91, 0.89]), at(0.9))
    assert found["rounds_to_target"] == 2
    assert found["minutes_to_target"] == pytest.approx(2.0)
    assert found["payload_mb_to_target"] == pytest.approx(12.0)
    assert found["wire_mb_to_target"] == pytest.approx(13.2)
    assert found["accuracy"] == 0.91


def test_to_the_moment_of_the_target_on_a_straight_line_through_the_round() -> None:
    # 0.7 at its begin, 0.95 at its end: 0.9 after four fifths of the second round.
    found = figures(summary([0.7, 0.95]), at(0.9))
    assert found["rounds_interpolated"] == pytest.approx(1.8)
    assert found["minutes_interpolated"] == pytest.approx(1.8)
    assert found["payload_mb_interpolated"] == pytest.approx(6.0 + 0.8 * 6.0)
    assert found["wire_mb_interpolated"] == pytest.approx(1.8 * 6.6)
    # The first round begins at the accuracy from before it: 0.1.
    assert figures(summary([0.6]), at(0.35))["minutes_interpolated"] == pytest.approx(0.5)
    assert figures(summary([0.6]), at(0.05))["minutes_interpolated"] == 0.0
    # At a round's end exactly, there is no difference.
    assert figures(summary([0.5, 0.9]), at(0.9))["minutes_interpolated"] == pytest.approx(2.0)


def test_a_round_whose_begin_nobody_evaluated_has_no_moment() -> None:
    run = summary([None])
    run.rounds[0].metrics, run.metrics.initial = {"client_accuracy": 0.95}, {}
    found = figures(run, at(0.9))
    assert found["rounds_to_target"] == 1 and found["minutes_to_target"] == pytest.approx(1.0)
    assert found["rounds_interpolated"] is found["wire_mb_interpolated"] is None


def test_a_target_that_is_never_reached_has_no_figures() -> None:
    found = figures(summary([0.5, 0.6]), at(0.9))
    ends = ("to_target", "interpolated")
    assert [name for name in found if name.endswith(ends) and found[name] is not None] == []
    assert sum(name.endswith(ends) for name in found) == 8


def test_a_row_says_what_it_was_tuned_to_and_what_it_has_beside() -> None:
    bench = Bench(rows=[Row("a"), Row("b")], run={"target_accuracy": 0.9}, grid={"rate": [0.1, 1]})
    middle, spread = medians([figures(summary([0.95]), at(0.9))])
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
    assert figures(run, at(0.7))["rounds_to_target"] == 1


def test_clients_own_models_stand_beside_the_servers_of_the_same_round() -> None:
    run = summary([0.9, 0.95, 0.93])
    for entry, own in zip(run.rounds, (0.5, 0.6, 0.8), strict=True):
        entry.metrics = {**entry.metrics, "client_accuracy": own}
    found = figures(run, at(0.9))
    assert (found["accuracy"], found["client_accuracy"]) == (0.95, 0.6)
    assert figures(summary([0.9]), at(0.9))["client_accuracy"] is None
    for target in ({"target_accuracy": 0.9}, {}):
        bench = Bench(rows=[Row("distilled"), Row("averaged")], run=target)
        text = shown(bench, [[run], [summary([0.9])]])
        assert "clients' own" in text and "0.600" in text
    assert "clients' own" not in shown(Bench(rows=[Row("averaged")]), [[summary([0.9])]])


def test_a_budget_has_columns_of_what_was_used_and_how_many_rounds_it_allows() -> None:
    run = summary([None, None])
    bench = Bench(rows=[Row("one")])
    assert "budget" not in shown(bench, [[run]])
    run.budget_mb = 48.0
    # 6 MB a round.
    found = figures(run, None)
    assert (found["budget_share"], found["rounds_in_budget"]) == (0.25, 8.0)
    text = shown(bench, [[run]])
    assert "of its budget" in text and "25.00%" in text and "rounds in budget" in text


def of_text(*perplexities: float) -> Summary:
    run = summary([None] * len(perplexities))
    run.metrics.initial = {"accuracy": 0.1, "perplexity": 100.0}
    for entry, perplexity in zip(run.rounds, perplexities, strict=True):
        entry.metrics = {"accuracy": 0.1, "perplexity": perplexity, "client_perplexity": 9.0}
    return run


def test_text_is_compared_by_its_perplexity_of_which_less_is_better() -> None:
    found = figures(of_text(60.0, 20.0, 30.0), None)
    assert (found["perplexity"], found["client_perplexity"]) == (20.0, 9.0)
    assert "accuracy" not in found
    # From 60 at its begin to 20: at 30 after three quarters of the second round.
    found = figures(of_text(60.0, 20.0, 30.0), Target("perplexity", 30.0))
    assert (found["rounds_to_target"], found["rounds_interpolated"]) == (2, 1.75)
    assert figures(of_text(60.0), Target("perplexity", 30.0))["rounds_to_target"] is None
    assert figures(of_text(60.0), Target("perplexity", 200.0))["rounds_interpolated"] == 0.0


def test_a_table_of_text_and_images_has_a_column_of_each_ones_metric() -> None:
    groups = [
        Group("4g", Row("images"), *medians([figures(summary([0.9]), None)])),
        Group("4g", Row("text"), *medians([figures(of_text(20.0), None)]), metric="perplexity"),
    ]
    drawn = table(Bench(rows=[Row("images"), Row("text")]), groups)
    columns = {str(column.header): list(column.cells) for column in drawn.columns}
    assert columns["best accuracy"] == ["0.900", "-"]
    assert columns["best perplexity"] == ["-", "20.000"]


def test_a_table_to_a_target_of_text_names_its_metric() -> None:
    bench = Bench(rows=[Row("text")], run={"target": "perplexity=30"})
    text = shown(bench, [[of_text(60.0, 20.0)]])
    assert "best perplexity" in text and "rounds to perplexity 30" in text


def test_a_round_that_did_not_finish_does_not_count() -> None:
    run = summary([0.5, 0.95])
    run.rounds[1].finished = False
    assert figures(run, at(0.9))["rounds_to_target"] is None


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
    target = aim(bench)
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


def test_what_a_formula_says_stands_beside_the_measured() -> None:
    bench = Bench(rows=[Row("full"), Row("own", formula_mb=1.25)], baseline="full", note="Mind.")
    text = shown(bench, [[summary([None])], [summary([None])]])
    for part in ("formula: MB one way", "1.250", "1.500", "payload share", "Mind."):
        assert part in text
    assert "accuracy" not in text


def verdict(own: float, base: float = 10.0, **claim: Any) -> tuple[str, float | None, str]:
    """Of a claim of a share of 0.5, within 0.02."""
    stated = Claim(**{"counts": "up", "figure": 0.5, "tolerance": 0.02} | claim)
    figures = {"wire_mb": 2.0, "minutes": 3.0}
    group = Group("4g", Row("a"), figures, {}, accounts={"up": own}, certificate="fail")
    found = examined(group, stated, {"up": base})
    assert found.certificate == "fail"
    assert (found.wire_mb, found.minutes, found.row, found.links) == (2.0, 3.0, "a", "4g")
    return found.verdict, found.recomputed, found.reason


@pytest.mark.parametrize(
    ("holds", "own", "right"),
    [
        ("about", 5.1, True),
        ("about", 5.11, False),
        ("about", 4.89, False),
        ("at least", 4.9, True),
        ("at least", 4.89, False),
        ("at least", 9.0, True),
        ("at most", 5.11, False),
        ("at most", 1.0, True),
    ],
)
def test_a_claim_is_confirmed_within_its_tolerance(holds: str, own: float, right: bool) -> None:
    found = verdict(own, holds=holds, account="up / base.up")
    assert found[:2] == ("confirmed" if right else "not confirmed", own / 10)
    assert "tolerance 0.02" in found[2]


def test_a_verdict_has_its_reason() -> None:
    account = "up / base.up"
    assert verdict(6.0, account=account, because="on a ViT")[2] == (
        "20.0% above, tolerance 0.02; on a ViT"
    )
    assert verdict(5.0, account=account)[2] == "the same, tolerance 0.02"
    missing = ("not reproducible here", None)
    assert verdict(5.0, because="no such data") == (*missing, "no such data")
    assert verdict(5.0, account="up.codes / up") == (*missing, "no run has the figure 'up.codes'")
    assert verdict(0.0, 0.0, account=account) == (*missing, "the runs come to no number")
    # One that never reached its target took for ever; two that did not cannot be told apart.
    assert verdict(math.inf, account=account, holds="at most")[0] == "not confirmed"
    assert verdict(5.0, math.inf, account=account, holds="at most")[0] == "confirmed"
    assert verdict(math.inf, math.inf, account=account)[:2] == missing


def test_time_of_a_run_whose_certificate_failed_says_nothing() -> None:
    claim = Claim(counts="time", figure=0.5, tolerance=0.1, account="minutes / base.minutes")
    figures = {"wire_mb": 2.0, "minutes": 3.0}
    group = Group("4g", Row("a"), figures, {}, accounts={"minutes": 5.0})
    assert examined(group, claim, {"minutes": 10.0}).verdict == "confirmed"
    found = examined(group._replace(certificate="fail"), claim, {"minutes": 10.0})
    assert found.verdict == "not reproducible here" and "certificate failed" in found.reason


def test_a_claim_says_what_the_paper_counts() -> None:
    group = Group("4g", Row("a"), {"wire_mb": None, "minutes": None}, {}, accounts={"up": 1.0})
    claim = Claim(counts="up, of all", figure=490.2, unit="x", holds="at least", because="so")
    assert examined(group, claim, None).paper == "at least 490.2x: up, of all"
    assert examined(group, Claim(counts="it learns", because="so"), None).paper == "it learns"


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


def test_minutes_of_a_failed_certificate_are_doubted_and_bytes_are_not() -> None:
    for run, doubted in (({"target": "accuracy=0.9"}, ["1.000?", "0.941?"]), ({}, ["1.00?"])):
        runs = [figures(summary([0.95]), at(0.9) if run else None)]
        groups = [
            Group("4g", Row("unsure"), *medians(runs), certificate="fail"),
            Group("4g", Row("right"), *medians(runs)),
        ]
        console = Console(file=StringIO(), width=200)
        console.print(table(Bench(run=run), groups))
        text = str(console.file.getvalue())  # type: ignore[attr-defined]
        unsure, right = (
            next(n for n in text.splitlines() if name in n) for name in ("unsure", "right")
        )
        assert unsure.replace("?", "").split()[2:] == right.split()[2:]
        assert [each for each in unsure.split() if "?" in each] == doubted and "?" not in right
        assert "?: the certificate of one of the runs failed" in text
