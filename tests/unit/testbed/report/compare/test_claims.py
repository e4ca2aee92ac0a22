"""Claims as they are shown, in a table and on a bench's page."""

from pathlib import Path

import msgspec
import pytest

from testbed.report.compare import claims, comparison_page
from testbed.report.compare.claims import Examined

ONE = Examined(
    links="wifi, 8 clients",
    row="full",
    paper="2.56 GiB: payload up",
    figure=2.56,
    recomputed=2.5594,
    unit="GiB",
    account="up / rounds / GiB",
    wire_mb=5841.57,
    minutes=3.594,
    verdict="confirmed",
    reason="0.0% below, tolerance 0.005",
)
OTHER = msgspec.structs.replace(
    ONE, recomputed=None, verdict="not reproducible here", reason="no such data <b>"
)


def test_four_columns_of_a_claim() -> None:
    (line, other) = claims.cells([ONE, OTHER])
    assert line == [
        "full",
        "2.56 GiB: payload up",
        "2.559 GiB = up / rounds / GiB",
        "5841.57 MB, 3.59 min",
        "confirmed: 0.0% below, tolerance 0.005",
    ]
    assert other[2] == "-" and other[4] == "not reproducible here: no such data <b>"
    doubted = msgspec.structs.replace(ONE, certificate="fail")
    assert claims.cells([doubted])[0][3] == "5841.57 MB, 3.59 min?"
    elsewhere = msgspec.structs.replace(ONE, links="4g, 20 clients")
    assert [row[0] for row in claims.cells([ONE, elsewhere])] == [
        "full, wifi, 8 clients",
        "full, 4g, 20 clients",
    ]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(490.23, "x", "490.2x"), (0.4700001, "", "0.47"), (94.89, "%", "94.89 %"), (None, "x", "-")],
)
def test_a_figure_with_its_unit(value: float | None, unit: str, text: str) -> None:
    assert claims.shown(value, unit) == text


def test_a_page_has_the_claims_and_nothing_of_them_is_markup() -> None:
    page = comparison_page.page([], None, (), [ONE, OTHER])
    assert 'id="claims"' in page and "2.559 GiB = up / rounds / GiB" in page
    assert "no such data &lt;b&gt;" in page
    assert 'id="claims"' not in comparison_page.page([], None)


def test_claims_are_read_from_a_benchs_folder(tmp_path: Path) -> None:
    good, bad, none = tmp_path / "good", tmp_path / "bad", tmp_path / "none"
    for folder in (good, bad, none):
        folder.mkdir()
    (good / claims.NAME).write_bytes(msgspec.json.encode({"title": "x", "claims": [ONE, OTHER]}))
    (bad / claims.NAME).write_text('{"claims": [{"row": 3}]}')
    assert claims.read([good, bad, none]) == [ONE, OTHER]
