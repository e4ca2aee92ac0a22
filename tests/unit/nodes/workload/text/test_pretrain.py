"""Texts out of wheels, and pretraining on them."""

import json
import lzma
import zipfile
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

from nodes.workload import models
from nodes.workload.text import freeze_docs, pretrain
from nodes.workload.text.model import LanguageSpec
from nodes.workload.text.tokens import ShippedEncoder


def documented(name: str, count: int = 12) -> str:
    words = " ".join(f"{name} adds word {number} to the others." for number in range(20))
    return "".join(f'def f{n}():\n    """{n} {words}"""\n' for n in range(count))


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "package-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("package/one.py", documented("one"))
        archive.writestr("package/two/__init__.py", documented("two") + documented("two"))
        archive.writestr("package/tests/test_one.py", documented("tested"))
        archive.writestr("package/broken.py", "def (:\n")
        archive.writestr("package/odd.py", 'def f():\n    """' + "ä" * 400 + '"""\n')
        archive.writestr("package/short.py", '"""Too short."""\n')
    return path


def test_texts_are_docstrings_by_sub_package_each_once(wheel: Path) -> None:
    found = freeze_docs.of_wheel(wheel)
    assert sorted(found) == ["package.one", "package.two"]
    assert [len(texts) for texts in found.values()] == [12, 12]
    assert found["package.one"][3].startswith("3 one adds word 0 to")


def test_groups_are_frozen_up_to_their_size(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freeze_docs, "GROUP", 3_000)
    out = tmp_path / "docs.jsonl.xz"
    told = CliRunner().invoke(freeze_docs.main, [str(wheel), f"--out={out}"])
    assert told.exit_code == 0, told.output
    lines = [json.loads(line) for line in lzma.decompress(out.read_bytes()).splitlines()]
    size = {
        group: sum(len(line["text"]) for line in lines if line["group"] == group)
        for group in ("package.one", "package.two")
    }
    assert all(2_000 < each <= 3_000 for each in size.values())
    before = out.read_bytes()
    CliRunner().invoke(freeze_docs.main, [str(wheel), f"--out={out}"])
    assert out.read_bytes() == before


def test_pretraining_writes_a_model_that_builds_and_its_tokenizer(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "library"
    library.mkdir()
    (library / "module.py").write_text(documented("library"))
    monkeypatch.setattr(pretrain.sysconfig, "get_paths", lambda: {"stdlib": str(library)})
    small = partial(LanguageSpec, vocabulary=300, width=16, depth=1, heads=2, context=32)
    monkeypatch.setattr(pretrain, "LanguageSpec", small)
    for name, value in (("BATCH", 4), ("OF_INSTRUCTIONS", 1), ("HELD", 3), ("EXAMPLES", 5)):
        monkeypatch.setattr(pretrain, name, value)
    monkeypatch.setattr(models, "WEIGHTS", tmp_path)
    out = tmp_path / "llama-own.safetensors"
    asked = [str(wheel), f"--out={out}", "--steps=3", "--threads=1"]
    told = CliRunner().invoke(pretrain.main, asked, catch_exceptions=False)
    assert "step 3/3  loss" in told.output and "perplexity of 3 held-out texts" in told.output
    model = models.build("llama-own", 1, seed=0)
    assert model.spec == small()
    encoder = ShippedEncoder(tmp_path / "llama-own.tokenizer.json")
    assert encoder._tokenizer.decode(encoder.encode("one adds word 3")) == "one adds word 3"
    assert encoder.end == 2
