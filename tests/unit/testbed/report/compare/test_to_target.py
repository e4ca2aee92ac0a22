"""The chart of minutes and MB to the target, by link and run."""

import re

from checked_page import check

from testbed.metrics import Target
from testbed.report.compare import comparison_page
from testbed.report.compare.comparison import Row
from testbed.report.curves import Point

TARGET = Target("accuracy", 0.9)


def row(name: str, where: str, minutes: float | None, mb: float | None) -> Row:
    whole = (None, None, None) if minutes is None or mb is None else (2, 2 * minutes, 2 * mb)
    points = [Point(0, 0.1, 0, 0), Point(2, 0.95, 9, 9)]
    return Row(name, name, where, "ok", points, [True] * 2, 0.95, *whole, minutes, mb)


ROWS = [
    row("fedavg", "4g with 10 clients", 0.064, 30.99),
    row("fedavg", "wifi with 10 clients", 0.03, 31.0),
    row("fedavg <int8>", "4g with 10 clients", 0.04, 19.39),
    row("fedavg <int8>", "wifi with 10 clients", None, None),
]


def bars(page: str) -> list[tuple[float, str]]:
    """Length of each bar, and what stands behind it."""
    own = page.partition('id="target"')[2].partition("</section>")[0]
    found = re.findall(r'd="M[\d.]+ \d+h([\d.]+)v[^>]*>(?:</path>)?<text[^>]*>([^<]*)<', own)
    return [(float(length), said) for length, said in found]


def test_each_links_runs_stand_below_one_another_at_the_moment_of_the_target() -> None:
    page = comparison_page.page(ROWS, TARGET)
    check(page)
    found = bars(page)
    assert [said for _, said in found] == [
        *("0.064 min", "0.04 min", "0.03 min", "never"),
        *("31 MB", "19.4 MB", "31 MB", "never"),
    ]
    lengths = [length for length, _ in found]
    assert abs(lengths[1] / lengths[0] - 0.625) < 1e-3 and lengths[3] == 0
    assert abs(lengths[5] / lengths[4] - 19.39 / 30.99) < 1e-3
    assert "wifi with 10 clients, fedavg &lt;int8&gt;: never" in page


def test_without_a_round_before_it_whole_rounds_count() -> None:
    alone = ROWS[0]._replace(minutes_interpolated=None, wire_mb_interpolated=None)
    assert [said for _, said in bars(comparison_page.page([alone], TARGET))] == [
        "0.128 min",
        "62 MB",
    ]


def test_where_no_run_reached_it_there_is_no_chart() -> None:
    for rows, target in ((ROWS[3:], TARGET), (ROWS, None), ([], TARGET)):
        assert 'id="target"' not in comparison_page.page(rows, target)


def test_of_many_runs_some_are_drawn_and_the_others_counted() -> None:
    many = [ROWS[0]._replace(name=f"run {n}") for n in range(100)]
    page = comparison_page.page(many, TARGET)
    assert len(bars(page)) == 2 * 60 and "40 more runs are in the table" in page
