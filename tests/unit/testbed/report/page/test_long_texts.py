"""Long names and large figures on pages: none is cut, covers another, or is told many times."""

import itertools
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import made_programs
import pytest
from checked_page import check
from made_run import events, folder, lines

from testbed.record.reading import read
from testbed.report.compare import comparison, comparison_page
from testbed.report.compare.to_target import named
from testbed.report.page import run_page, svg
from testbed.report.page.svg import Curve
from testbed.report.read import gather

LETTER, AXIS_NAME = 7.6, 18.0
"""About how wide a letter is, and where an axis' own name ends."""


def texts(drawn: str, anchors: str = "start middle end") -> list[tuple[float, float, str]]:
    """Where each such text of a drawing that is not turned begins and ends, and what it says."""
    shares = {"start": 0.0, "middle": 0.5, "end": 1.0}
    found = []
    for each in ElementTree.fromstring(drawn).iter("text"):
        if "transform" not in each.attrib and each.attrib["text-anchor"] in anchors:
            said = each.text or ""
            wide = LETTER * len(said)
            begin = float(each.attrib["x"]) - shares[each.attrib["text-anchor"]] * wide
            found.append((begin, begin + wide, said))
    return found


def report(found: list[dict[str, Any]]) -> str:
    return run_page.page(gather(read(lines(found))), Path("results/RUN"))


@pytest.mark.parametrize("most", [0.9, 20.0, 125_000.0, 12_345_678.0, 1e300])
@pytest.mark.parametrize("wide", [0.01, 27_000_000.0])
def test_figures_at_the_axes_have_room(most: float, wide: float) -> None:
    points = [(0.0, most / 10), (wide / 2, most / 2), (wide, most)]
    drawn = svg.curves("title", "description", [Curve("name", points, 0)], "minutes", "rate")
    heights = texts(drawn, "end")
    assert len(heights) >= 2 and min(begin for begin, _, _ in heights) > AXIS_NAME
    *along, _ = texts(drawn, "middle")
    assert len(along) >= 2
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(along))


def test_gates_of_a_long_profile_are_told_apart() -> None:
    profile = "down 20mbit up 5mbit delay 20ms jitter 5ms loss 0.1%"
    rows = [(profile, gate, [(0.5, True)]) for gate in ("round trip", "rate up", "rate down")]
    names = [each for each in texts(svg.dots("t", "d", rows)) if "down 2" in each[2]]
    assert [each[2].rpartition(": ")[2] for each in names] == [gate for _, gate, _ in rows]
    assert min(begin for begin, _, _ in names) > 0
    short = texts(svg.dots("t", "d", [("4g", "rate up", [(0.5, True)])]))
    assert short[0][2] == "4g: rate up"


def test_a_bars_name_is_whole_or_shortened_within_the_drawing() -> None:
    rows = [(name, [(1.0, "red")], "1") for name in ("starlink, 20 clients", "a " * 40)]
    whole, _, short, *_ = texts(svg.bars("t", "d", rows, "MB"))
    assert whole[2] == rows[0][0] and short[2].endswith("…")
    assert whole[0] > 0 and short[0] > 0


def test_places_are_named_by_what_they_have_not_in_common() -> None:
    told = named(["4g with 20 clients, digits", "wifi with 20 clients, digits"])
    assert list(told.values()) == ["4g", "wifi"]
    told = named(["4g with 2 clients, digits", "4g with 20 clients, digits"])
    assert list(told.values()) == ["4g with 2", "4g with 20"]
    assert named(["4g with 2 clients"]) == {"4g with 2 clients": "4g with 2 clients"}
    assert named(["4g", "wifi 4g"]) == {"4g": "4g", "wifi 4g": "wifi 4g"}


def test_a_command_of_many_nodes_stands_once() -> None:
    command = "python3 train.py --server=server:8000"
    root = check(report(made_programs.events(clients=60, client=command)))
    (own,) = [
        each for each in root.iter("table") if (each.get("aria-label") or "").startswith("Commands")
    ]
    rows = [[cell.text for cell in row] for row in own.iter("tr")]
    assert rows == [["nodes", "command"], ["server", "serve"], ["clients 1-60", command]]
    ends = next(each for each in root.iter("table") if "last bytes at, s" in each.itertext())
    assert command not in list(ends.itertext())


def test_a_metric_that_has_left_all_bounds_is_told_with_an_exponent(tmp_path: Path) -> None:
    found = events()
    for each in found:
        if each["event"] in ("evaluated", "round"):
            each["metrics"] = {"perplexity": 1e300 / (1 + each.get("round", 0)), "loss": 700.0}
    run = folder(tmp_path / "run", found)
    rows, target = comparison.compare(comparison.runs([run]), None)
    for page in (report(found), comparison_page.page(rows, target)):
        check(page)
        assert "3.33e+299" in page and re.findall(r"[\d,]{13,}", page.partition("</h1>")[2]) == []


def test_one_of_anything_is_not_several(tmp_path: Path) -> None:
    found = events(clients=1, rounds=1)
    run = folder(tmp_path / "run", found)
    rows, _ = comparison.compare(comparison.runs([run]), None)
    told = comparison.sentence(rows[0], None)
    assert "0.1 min with 1 MB for 1 round;" in told
    assert re.findall(r"(?<!of )\b1 (?:client|round|run)s\b", report(found) + told) == []
