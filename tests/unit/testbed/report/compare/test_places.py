"""Places of compared runs: what is no part of a summary tells them apart too."""

from pathlib import Path
from typing import Any

import pytest
import tomli_w
from made_run import events, folder

from testbed.report.compare import comparison

PLACE = "4g with 2 clients, digits"


def run(path: Path, device: str | None = None, model: str = "vit", **config: Any) -> Path:
    """A run; ``config``: of its config.toml."""
    found = events()
    found[0]["model"] = model
    found[0]["device_class"] = device
    place = folder(path, found)
    (place / "config.toml").write_text(tomli_w.dumps({"method": "fedpeft", **config}))
    return place


def told(*paths: Path) -> tuple[list[str], list[str]]:
    rows, _ = comparison.compare(comparison.runs(paths), None)
    return [row.name for row in rows], [row.where.removeprefix(PLACE) for row in rows]


@pytest.mark.parametrize(
    ("one", "other", "where"),
    [
        ({"partition": "iid"}, {"partition": "dirichlet", "alpha": 0.5},
         [", partition iid", ", partition dirichlet, alpha 0.5"]),
        ({"partition": "dirichlet", "alpha": 0.1}, {"partition": "dirichlet", "alpha": 100.0},
         [", alpha 0.1", ", alpha 100.0"]),
        ({"train_samples": 400}, {}, [", training samples 400", ""]),
        ({"data_path": "/x/y/a b"}, {"data_path": "/x/z/a b"}, [", data y/a b", ", data z/a b"]),
        ({"availability": "on:9,off:1"}, {}, [", availability on:9,off:1", ""]),
    ],
)  # fmt: skip
def test_runs_of_other_tasks_or_networks_are_no_rivals(
    one: dict[str, Any], other: dict[str, Any], where: list[str], tmp_path: Path
) -> None:
    names, found = told(run(tmp_path / "a", **one), run(tmp_path / "b", **other))
    assert found == where and names == ["fedpeft", "fedpeft"]


def test_what_does_not_count_tells_nothing(tmp_path: Path) -> None:
    paths = run(tmp_path / "a", partition="iid", alpha=0.1), run(tmp_path / "b", partition="iid")
    assert told(*paths) == (["fedpeft #1", "fedpeft #2"], ["", ""])


def test_real_devices_of_another_class_are_no_rivals(tmp_path: Path) -> None:
    paths = run(tmp_path / "a", device="pi"), run(tmp_path / "b")
    assert told(*paths)[1] == [", on pi", ", on cores of this machine"]


def test_a_model_is_named_by_its_folder(tmp_path: Path) -> None:
    there = ["vit-glyphs", "/own/my models/large", "/tmp/large"]
    paths = [run(tmp_path / str(n), model=model) for n, model in enumerate(there)]
    names, where = told(*paths)
    assert names == [f"fedpeft model={n}" for n in ("vit-glyphs", "my models/large", "tmp/large")]
    assert set(where) == {""}


def test_how_rounds_go_is_a_part_of_the_name(tmp_path: Path) -> None:
    paths = run(tmp_path / "a", clients_per_round=1), run(tmp_path / "b")
    assert told(*paths)[0] == ["fedpeft clients_per_round=1", "fedpeft clients_per_round=none"]


def test_a_bench_cells_run_that_cannot_be_read_stands_back_for_one_that_can(tmp_path: Path) -> None:
    good = run(tmp_path / "cell" / "1")
    torn = run(tmp_path / "cell" / "2")
    (torn / "summary.json").write_text("{")
    assert [each.folder for each in comparison.runs([tmp_path])] == [good]
