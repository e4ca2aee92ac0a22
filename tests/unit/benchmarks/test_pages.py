"""Pages that a bench's runs make: on runs made up, and in the places where they go."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "benchmarks"))

import pages  # noqa: E402
import readme  # noqa: E402

from experiments import plan  # noqa: E402
from testbed.report.compare import claims  # noqa: E402


def row(name: str, profile: str, device: str, minutes: float | None, mb: float | None) -> pages.Row:
    at = {"profile": profile, "clients": 20, "model": "/far/away/vit", "device_class": device}
    figures = {"minutes_to_target": minutes, "wire_mb_to_target": mb, "certificate": "pass"}
    return {
        "row": name,
        "at": at,
        "model": "vit",
        "parameters": 2_396_736,
        "has": ["images", f"a {name}"] if name == "b" else ["images"],
    } | figures


ROWS = [
    row("a", "4g", "pi", 2.0, 5.0),
    row("b", "4g", "pi", 1.0, 6.0),
    row("c", "4g", "pi", 3.0, 7.0),
    row("a", "4g", "phone", None, None),
    row("b", "4g", "phone", 0.00412, 8.0) | {"certificate": "fail"},
    row("a", "2g", "pi", None, None),
]


def folder(path: Path, **comparison: Any) -> Path:
    whole = {"rows": ROWS, "claims": [], "without_result": {}} | comparison
    (path / claims.NAME).write_text(json.dumps(whole))
    (path / "bench.json").write_text(json.dumps({"run": {"target_accuracy": 0.9}}))
    return path


def test_a_grid_has_the_best_of_each_link_and_device(tmp_path: Path) -> None:
    found = pages.which_method(folder(tmp_path, without_result={"x": "late"})).split("\n\n")
    assert found[0] == "### Accuracy 0.9 with vit (2.4 M parameters), 20 clients"
    first, fewest = found[1].splitlines(), found[2].splitlines()
    assert first[0] == "| the first to reach it, minutes | pi | phone |"
    assert first[2:] == [
        "| 4g | b 1 (a 2) | b 0.00412? |",
        "| 2g | none of 1 | not run |",
    ]
    assert fewest[2] == "| 4g | a 5 (b 6) | b 8? |"
    assert found[3].splitlines() == [
        "| minutes, MB on the wire | 4g, pi | 4g, phone | 2g, pi |",
        "|---|---|---|---|",
        "| a | 2, 5 | not reached | not reached |",
        "| b | 1, 6 | 0.00412?, 8 | not run |",
        "| c | 3, 7 | not run | not run |",
    ]
    assert found[5] == "- b: a b" and found[6].endswith("in no cell: 1 runs.")


def test_models_have_grids_of_their_own(tmp_path: Path) -> None:
    at = ROWS[0]["at"] | {"model": "/far/away/large"}
    other = ROWS[0] | {"at": at, "model": "large"}
    found = pages.which_method(folder(tmp_path, rows=[*ROWS, other]))
    assert found.index("0.9 with vit (2.4") < found.index("0.9 with large (2.4")
    assert found.count("| 4g |") == 4 and "/far" not in found


def test_a_model_that_no_axis_has_is_named_too(tmp_path: Path) -> None:
    at = {"profile": "4g", "clients": 20}
    own = ROWS[0] | {"at": at, "model": "vit-glyphs", "parameters": 302_688}
    found = pages.which_method(folder(tmp_path, rows=[own]))
    assert found.startswith("### Accuracy 0.9 with vit-glyphs (303 K parameters), 20 clients\n")


@pytest.mark.parametrize(
    ("count", "text"),
    [(970, "970"), (85_798_656, "85.8 M"), (7_241_732_096, "7.24 B")],
)
def test_sizes_are_read_at_a_glance(count: int, text: str) -> None:
    assert pages.size(count) == text


def test_a_table_of_claims_counts_its_verdicts(tmp_path: Path) -> None:
    claim = dict(links="4g", row="a", paper="2x: up", figure=2.0, recomputed=2.0, unit="x")
    claim |= dict(account="up / base.up", wire_mb=1.0, minutes=2.0, reason="the same")
    both = [claim | {"verdict": each} for each in ("confirmed", "not confirmed")]
    found = pages.examined(folder(tmp_path, claims=both)).splitlines()
    assert found[0] == "2 claims: 1 confirmed, 1 not confirmed, 0 not reproducible here."
    assert found[2].startswith("| | the paper | recomputed")
    assert (
        found[4] == "| a | 2x: up | 2x = up / base.up | 1.00 MB, 2.00 min | confirmed: the same |"
    )


@pytest.mark.parametrize("page", pages.PAGES)
def test_a_page_has_its_place_and_its_preset(page: str) -> None:
    text = (ROOT / pages.PAGES[page][0]).read_text()
    begin, end = readme.marks(page, "pages")
    block = text.split(begin)[1].split(end)[0].strip("\n")
    assert not block or readme.put(text, page, block, "pages") == text
    assert not block or block.startswith("`python cli.py bench --")
    assert page in plan.presets()


def test_a_page_says_its_command() -> None:
    assert pages.told("atlas", ("--budget=9",)) == (
        "`python cli.py bench --preset=atlas --budget=9`:"
    )
    own = ("--methods=fedavg:a=1,kdfft", "--vary=device_class=pi")
    assert pages.told("atlas", own) == f"`python cli.py bench {' '.join(own)}`:"
