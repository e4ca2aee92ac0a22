"""Curves, targets, fronts and timelines of made runs, against arithmetic by hand."""

import itertools

import pytest
from made_run import S, events, lines, message, summary

from testbed import metrics
from testbed.metrics import Target
from testbed.record.reading import read
from testbed.record.spans import Span
from testbed.report import curves
from testbed.report.curves import Point
from testbed.report.page.rounds_section import COLUMNS, MOST_ROWS, chosen
from testbed.report.page.svg import Strip, log_ticks, number, strips, thinned, ticks
from testbed.report.page.timeline import columns
from testbed.report.read import gather


def test_points_add_up_minutes_and_both_ways_of_all_clients() -> None:
    # Two clients, 0.5 MB each way a round: 2 MB; and 6 s are 0.1 min.
    assert curves.points(summary(events()), "accuracy") == [
        (0, 0.1, 0.0, 0.0),
        (1, 0.5, pytest.approx(0.1), pytest.approx(2.0)),
        (2, 0.75, pytest.approx(0.2), pytest.approx(4.0)),
    ]


def test_a_round_that_did_not_end_is_no_point() -> None:
    begun = [*events(closed=False)[:-2]]
    assert [point.round for point in curves.points(summary(begun), "accuracy")] == [0, 1]


def test_accuracy_may_be_the_clients_own() -> None:
    assert metrics.value({"client_accuracy": 0.7, "client_loss": 1.0}, "accuracy") == 0.7
    assert metrics.value({"loss": 1.0}, "accuracy") is None


def at(accuracy: float) -> Target:
    return Target("accuracy", accuracy)


def run(*found: tuple[float | None, float, float]) -> list[Point]:
    rounds = [Point(n, *each) for n, each in enumerate(found, start=1)]
    return [Point(0, 0.1, 0.0, 0.0), *rounds]


def test_the_target_is_what_all_reached_rounded_down() -> None:
    both = [run((0.29, 1, 1)), run((0.9, 1, 1), (0.4, 2, 2))]
    assert curves.common_target(both, "accuracy") == at(0.29)
    assert curves.common_target([run((0.9199, 1, 1)), run((None, 1, 1))], "accuracy") == at(0.91)
    assert curves.common_target([run((None, 1, 1))], "accuracy") is None
    # Of what less is better all have reached the greatest, rounded up.
    text = [run((30.0, 1, 1), (20.001, 2, 2)), run((12.0, 1, 1))]
    assert curves.common_target(text, "perplexity") == Target("perplexity", 20.01)


def test_a_target_is_reached_at_the_end_of_the_first_round_as_accurate() -> None:
    found = run((0.5, 1, 10), (0.8, 2, 20), (0.7, 3, 30), (0.9, 4, 40))
    assert curves.reached(found, at(0.7)) == (2, 0.8, 2, 20)
    assert curves.reached(found, at(0.91)) is None
    # What the model was worth before the run is no result of it.
    assert curves.reached(found, at(0.1)) == (1, 0.5, 1, 10)


def test_the_moment_of_a_target_is_on_the_line_from_the_round_before() -> None:
    found = run((0.5, 1, 10), (0.8, 2, 20), (0.7, 3, 30), (0.9, 4, 40))
    assert curves.moment(found, at(0.7)) == pytest.approx((1 + 2 / 3, 10 + 20 / 3))
    assert curves.moment(found, at(0.3)) == pytest.approx((0.5, 5))
    assert curves.moment(found, at(0.85)) == pytest.approx((3.75, 37.5))
    # Reached before the first round; never; and from nobody knows where.
    assert curves.moment(found, at(0.1)) == curves.moment(found, at(0.05)) == (0, 0)
    assert curves.moment(found, at(0.91)) is None
    assert curves.moment(run((None, 1, 10), (0.8, 2, 20)), at(0.7)) is None


def test_the_front_is_what_nothing_beats() -> None:
    fast = run((0.5, 1, 10), (0.8, 2, 20))
    small = run((0.5, 3, 1), (0.8, 6, 2))
    # As accurate as fast's second and slower and larger; and its equal in all three.
    beaten = run((0.8, 2.5, 21), (0.8, 2, 20))
    assert curves.front([fast, small, beaten], "accuracy") == [
        [False, True, True],
        [False, True, True],
        [False, False, True],
    ]


def test_the_front_is_as_the_definition_says() -> None:
    values = list(itertools.product((0.1, 0.2), (1, 2), (1, 2), (0.3,)))
    found = [run((a + b, minutes, mb)) for a, minutes, mb, b in values]
    points = [each[1] for each in found]

    def beats(one: Point, other: Point) -> bool:
        ours = (-one.value, one.minutes, one.wire_mb)
        theirs = (-other.value, other.minutes, other.wire_mb)
        return ours != theirs and all(a <= b for a, b in zip(ours, theirs, strict=True))

    wanted = [not any(beats(other, own) for other in points) for own in points]
    assert [each[1] for each in curves.front(found, "accuracy")] == wanted


def test_less_of_a_perplexity_is_better_everywhere() -> None:
    target = Target("perplexity", 30.0)
    found = [Point(0, 100.0, 0.0, 0.0), *run((60.0, 1, 10), (20.0, 2, 20), (40.0, 3, 30))[1:]]
    assert curves.best(found, "perplexity") == 20.0
    assert curves.reached(found, target) == (2, 20.0, 2, 20)
    assert curves.moment(found, target) == pytest.approx((1.75, 17.5))
    assert curves.moment(found, Target("perplexity", 100.0)) == (0, 0)
    assert curves.reached(found, Target("perplexity", 19.0)) is None
    assert curves.front([found], "perplexity") == [[False, True, True, False]]


def test_a_run_is_shown_by_its_targets_metric_or_the_one_that_leads() -> None:
    made = summary(events())
    assert curves.metric(made) == "accuracy"
    made.metrics.initial = {"accuracy": 0.1, "loss": 4.0, "perplexity": 55.0}
    assert curves.metric(made) == "perplexity"
    made.rounds[0].metrics = {"client_exact_match": 0.5, **made.metrics.initial}
    assert curves.metric(made) == "exact_match"
    made.target = "loss=1.5"
    assert curves.metric(made) == "loss"


def test_a_story_has_each_nodes_spans_and_who_came_last() -> None:
    found = events()
    late = message("client-2", "server", 2, 20.0, 21.5)
    first, second = gather(read(lines([*found[:-2], late, *found[-2:]]))).rounds
    assert first.spans["client-1"] == [
        Span("receive", 10 * S, 11 * S),
        Span("compute", 11 * S, 14 * S),
        Span("send", 14 * S, 15 * S),
        Span("wait", 15 * S, 16 * S),
    ]
    assert (first.number, first.began_ns, first.ended_ns, first.finished) == (
        *(1, 10 * S, 16 * S),
        True,
    )
    assert second.last == "client-2"


def test_a_killed_runs_last_round_goes_as_far_as_is_known() -> None:
    whole = lines(events(closed=False))
    torn = [*whole[:-7], whole[-7][:40]]
    story = gather(read(torn))
    assert story.torn_lines == 1
    last = story.rounds[-1]
    assert (last.number, last.finished) == (2, False)
    assert last.spans["client-1"][-1].ended_ns == last.ended_ns
    assert story.summary.status == "interrupted"


def test_columns_are_what_was_done_longest() -> None:
    found = [Span("receive", 0, 4), Span("compute", 4, 27), Span("wait", 27, 40)]
    # Of the first ten 4 are receiving; of the third ten 7 are computing.
    assert columns(found, 0, 40, 4) == [(0, 3, "compute"), (3, 4, "wait")]
    assert columns(found, 0, 40, 10)[0] == (0, 1, "receive")
    # Between two rounds nothing is known.
    assert columns([Span("send", 0, 10), Span("send", 30, 40)], 0, 40, 4) == [
        (0, 1, "send"),
        (3, 4, "send"),
    ]


def test_of_many_clients_some_are_shown_evenly() -> None:
    names = [f"client-{n}" for n in range(100)]
    means = {name: {"wait": float(n)} for n, name in enumerate(reversed(names))}
    shown = chosen(names, means)
    assert (len(shown), shown[0], shown[-1]) == (24, "client-99", "client-0")
    assert chosen(names[:24], {}) == names[:24]


def test_a_timeline_that_changes_at_every_column_stays_small() -> None:
    runs = [(n, n + 1, ("send", "receive")[n % 2]) for n in range(COLUMNS)]
    rows = [Strip(f"client-{n}", runs) for n in range(MOST_ROWS + 1)]
    # A page has two of them, and 1 MB.
    assert len(strips("a", "b", rows, COLUMNS, (0.0, 100.0))) < 300_000


def test_ticks_are_round_and_few() -> None:
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert ticks(0.07, 1.0) == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(0, 0.234) == [0, 0.05, 0.1, 0.15, 0.2]
    assert ticks(3, 3) == [3]
    assert log_ticks(0.03, 78)[0] == 0.1 and log_ticks(1, 60) == [1, 2, 5, 10, 20, 50]
    assert all(
        len(ticks(0, high)) <= 7 and len(log_ticks(1e-3, 1e-3 * high)) <= 8
        for high in (31, 99, 1e3, 1e6, 1e9, 1.5e20)
    )


def test_numbers_have_three_figures_and_no_exponent() -> None:
    shown = [number(value) for value in (0, 0.0123, 0.5, 1.234, 12.34, 999.6, 1234567, -0.04)]
    assert shown == ["0", "0.0123", "0.5", "1.23", "12.3", "1,000", "1,234,567", "-0.04"]


def test_thinning_keeps_both_ends() -> None:
    assert thinned(5, 9) == [0, 1, 2, 3, 4]
    kept = thinned(1000, 20)
    assert (len(kept), kept[0], kept[-1]) == (20, 0, 999)
