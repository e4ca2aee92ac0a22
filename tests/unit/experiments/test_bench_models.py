"""Models of a bench: one folder however it is typed, short in tables."""

from pathlib import Path

import pytest

from experiments import bench_models
from experiments.plan import Bench, Row, cells
from nodes.workload import models, pretrain
from testbed.config_error import ConfigError

ROWS = [Row("one"), Row("other", {"model": "./my models/large"})]


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, seen from beside it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my models" / "large"
    spec = models.ModelSpec(width=8, depth=1, heads=2)
    pretrain.save_folder(models.VisionTransformer(spec, 2), folder, {})
    return folder


@pytest.mark.parametrize(
    "typed", ["my models/large", "./my models/large/", "my models/../my models/large"]
)
def test_a_folder_is_one_model_however_it_is_typed(typed: str, large: Path) -> None:
    asked = Bench(rows=ROWS, run={"model": typed}, vary={"model": ["vit-glyphs", typed]})
    found = bench_models.located(asked)
    assert found == bench_models.located(found)
    assert found.run == {"model": str(large)} and found.vary["model"] == ["vit-glyphs", str(large)]
    assert [row.run for row in found.rows] == [{}, {"model": str(large)}]


def test_what_is_no_folder_stays_as_it_is(large: Path) -> None:
    (large.parent.parent / "vit-b16").mkdir()
    names = ["vit-b16", "google/vit", "", "no/such"]
    asked = Bench(rows=ROWS[:1], vary={"model": names, "rounds": [2]})
    assert bench_models.located(asked) == asked


def test_the_same_folder_twice_is_refused(large: Path) -> None:
    asked = Bench(rows=ROWS[:1], vary={"model": ["my models/large", str(large)]})
    with pytest.raises(ConfigError, match=r"vary model: '.*large' is there twice"):
        cells(bench_models.located(asked))


def test_a_model_is_told_by_its_folders_name_and_its_size(large: Path) -> None:
    vary = {"model": ["vit-glyphs", "my models/large"]}
    found = cells(bench_models.located(Bench(rows=ROWS[:1], profiles=["4g"], vary=vary)))
    assert [cell.where for cell in found] == ["4g, vit-glyphs", "4g, large"]
    assert [cell.id for cell in found] == ["one-4g-vit-glyphs-seed0", "one-4g-large-seed0"]
    assert found[1].config.model == found[1].varied["model"] == str(large)
    width = 8
    block = 8 * width**2 + 11 * width
    assert bench_models.told(found) == {
        "vit-glyphs": {"model": "vit-glyphs", "parameters": 302_688},
        str(large): {"model": "large", "parameters": block + (16 + 1 + 1 + 17 + 2) * width},
    }
