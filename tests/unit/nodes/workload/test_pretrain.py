"""Pretraining of a backbone of another size, as anybody can ask for it."""

from pathlib import Path

import heavy
import pytest
import torch
from click.testing import CliRunner, Result

from nodes.workload import models, pretrain

SMALL = ("--width=12", "--depth=2", "--heads=3", "--steps=2", "--batch=8", "--threads=1")


def ran(*flags: str) -> Result:
    threads = torch.get_num_threads()
    try:
        return CliRunner().invoke(pretrain.main, flags)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.thorough
def test_a_folder_is_a_model_here_and_for_transformers(tmp_path: Path) -> None:
    folder = tmp_path / "my models" / "small"
    done = ran(f"--out={folder}", *SMALL)
    assert done.exit_code == 0, done.output
    ours = models.build(str(folder), 2, seed=0)
    assert ours.spec == models.ModelSpec(width=12, depth=2, heads=3)
    count = models.parameters(str(folder))
    assert done.output.endswith(f"wrote {folder}, {count:,} parameters\n")
    theirs = heavy.transformers.ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()
    images = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        tokens = ours.embed(images)
        for block in ours.blocks:
            tokens = block(tokens)
        found = ours.head.norm(tokens)
        # Images in 0..1 are what the model was trained on.
        assert torch.allclose(found, theirs(images).last_hidden_state, atol=1e-5)
    # Once more it is the same model, in the same place.
    weights = (folder / "model.safetensors").read_bytes()
    assert ran(f"--out={folder}", *SMALL).exit_code == 0
    assert (folder / "model.safetensors").read_bytes() == weights
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--width=100", "--heads=3", "--out=x"], "--width 100 is no multiple of --heads 3"),
        (["--depth=8"], "the shipped backbone has a size of its own; give another an --out"),
        (["--depth=0", "--out=x"], "0 is not in the range"),
        (["--out=."], "--out .: holds other things; name a new folder"),
        (["--out=file"], "is a file"),
    ],
)
def test_what_cannot_be_made_is_refused_before_training(
    flags: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("kept")
    monkeypatch.setattr(pretrain, "train", lambda *asked: pytest.fail("trains"))
    done = ran(*flags)
    assert done.exit_code == 2 and words in " ".join(done.output.split()), done.output
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
