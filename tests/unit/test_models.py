"""The backbones: stages, shipped weights, the memory map, and what adapters find in them."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors import safe_open
from torch.nn import functional as F

from nodes import data, models, pretrain
from nodes.glyphs import DIGITS, glyphs

NAME = "vit-glyphs"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Torch's threads wait for each other, which costs seconds on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def images(count: int = 4) -> torch.Tensor:
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def train(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, rate: float) -> None:
    """One pass of AdamW in batches of 16 over what requires a gradient."""
    trainable = [each for each in model.parameters() if each.requires_grad]
    optimiser = torch.optim.AdamW(trainable, lr=rate)
    for xs, ys in zip(x.split(16), y.split(16), strict=True):
        optimiser.zero_grad()
        F.cross_entropy(model(xs), ys).backward()
        optimiser.step()


@torch.inference_mode()
def accuracy(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    return (model(x).argmax(1) == y).float().mean().item()


def add_lora(model: models.VisionTransformer) -> None:
    inject_adapter_in_model(LoraConfig(r=8, target_modules=["query", "value"]), model)
    model.head.classifier.requires_grad_(True)


def test_stages_have_the_documented_shapes() -> None:
    model = models.build(NAME, 10, 0)
    tokens = model.embed(images())
    assert tokens.shape == (4, 17, 96)
    assert model.spec.tokens == 17
    for block in model.blocks:
        tokens = block(tokens)
        assert tokens.shape == (4, 17, 96)
    assert model.head(tokens).shape == (4, 10)


@pytest.mark.parametrize("cut", range(5))
def test_a_model_cut_anywhere_equals_the_whole(cut: int) -> None:
    model = models.build(NAME, 10, 0)
    lower = torch.nn.Sequential(model.embed, *model.blocks[:cut])
    upper = torch.nn.Sequential(*model.blocks[cut:], model.head)
    assert torch.equal(upper(lower(images())), model(images()))


def test_the_class_token_sees_every_patch() -> None:
    model = models.build(NAME, 10, 0)
    image = images(1).requires_grad_(True)
    model(image).sum().backward()
    assert image.grad is not None
    patches = F.avg_pool2d(image.grad.abs(), 4)
    assert (patches > 0).all()


def test_the_shipped_weights_are_the_ones_in_the_model() -> None:
    state = models.build(NAME, 10, 0).state_dict()
    with safe_open(models.path_of(NAME), framework="pt") as file:
        keys = set(file.keys())
        for key in keys:
            assert torch.equal(state[key], file.get_tensor(key)), key
    assert state.keys() - keys == {"head.classifier.weight", "head.classifier.bias"}


def test_the_shipped_weights_know_glyphs() -> None:
    """The frozen features alone tell apart the digits of the data set; random ones do not."""
    x, y = (torch.from_numpy(each) for each in glyphs(1200, 7, characters=DIGITS))

    def probe(model: models.VisionTransformer) -> float:
        with torch.no_grad():
            tokens = model.embed(x)
            for block in model.blocks:
                tokens = block(tokens)
            features = F.pad(model.head.norm(tokens[:, 0]), (0, 1), value=1.0)
        wanted = F.one_hot(y[:800], 10).float()
        penalty = torch.eye(features.shape[1])
        weights = torch.linalg.solve(
            features[:800].T @ features[:800] + penalty, features[:800].T @ wanted
        )
        return ((features[800:] @ weights).argmax(1) == y[800:]).float().mean().item()

    torch.manual_seed(0)
    assert probe(models.build(NAME, 10, 0)) > 0.93
    assert probe(models.VisionTransformer(models.ModelSpec(), 10)) < 0.7


def test_fine_tuning_adapters_on_handwriting_works_and_starts_near_chance() -> None:
    digits = data.load("digits", seed=0)
    x, y = torch.from_numpy(digits.train_images), torch.from_numpy(digits.train_labels)
    held_out = torch.from_numpy(digits.test_images), torch.from_numpy(digits.test_labels)
    model = models.build(NAME, 10, 0)
    assert accuracy(model, *held_out) < 0.35
    torch.manual_seed(0)
    add_lora(model)
    train(model, x[:640], y[:640], 5e-3)
    assert accuracy(model, *held_out) > 0.85


def test_lora_and_a_new_head_train_13258_parameters() -> None:
    model = models.build(NAME, 10, 0)
    add_lora(model)
    sizes = {name: each.numel() for name, each in model.named_parameters() if each.requires_grad}
    lora = sum(size for name, size in sizes.items() if "lora_" in name)
    assert lora == 12_288
    assert sum(sizes.values()) == 13_258
    assert "blocks.0.attention.query.lora_A.default.weight" in sizes


def test_the_head_is_drawn_from_the_seed_alone() -> None:
    def heads(seed: int) -> torch.Tensor:
        return models.build(NAME, 10, seed).head.classifier.weight

    first = heads(3)
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    assert torch.equal(first, heads(3))
    assert torch.equal(before, torch.random.get_rng_state())
    assert not torch.equal(first, heads(4))
    assert models.build(NAME, 7, 3)(images()).shape == (4, 7)


def test_a_new_head_guesses() -> None:
    logits = models.build(NAME, 10, 0)(images(32))
    loss = F.cross_entropy(logits, torch.arange(32) % 10)
    assert abs(loss.item() - torch.log(torch.tensor(10.0)).item()) < 0.15


def test_every_parameter_trains_and_the_file_stays_as_it_was() -> None:
    path = models.path_of(NAME)
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    model, other = models.build(NAME, 10, 0), models.build(NAME, 10, 0)
    old = {name: each.detach().clone() for name, each in model.named_parameters()}
    train(model, images(16), torch.arange(16) % 10, 1e-2)
    for name, each in model.named_parameters():
        assert each.requires_grad
        # A key's bias shifts all scores of a query alike, so its gradient is rounding.
        assert name.endswith("key.bias") or not torch.equal(old[name], each), name
        assert torch.equal(old[name], other.get_parameter(name)), name
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_backbone_is_mapped_from_the_file() -> None:
    model = models.build(NAME, 10, 0)
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    spans = [
        tuple(int(end, 16) for end in line[0].split("-"))
        for line in maps
        if line[-1] == str(models.path_of(NAME)) and line[1].endswith("p")
    ]
    for name, each in model.named_parameters():
        inside = any(low <= each.data_ptr() < high for low, high in spans)
        assert inside == (not name.startswith("head.classifier.")), name


def test_building_and_drawing_import_nothing_slow() -> None:
    """torch imports its compiler, three seconds, for some operations on the meta device."""
    script = (
        "import sys; from nodes import glyphs, models; models.build('vit-glyphs', 10, 0); "
        "glyphs.glyphs(2, 0, characters='1'); "
        "sys.exit(bool({'torch._inductor', 'torch._dynamo', 'matplotlib'} & set(sys.modules)))"
    )
    root = Path(models.__file__).parent.parent
    subprocess.run([sys.executable, "-c", script], cwd=root, check=True)


def test_the_file_says_what_it_is() -> None:
    with safe_open(models.path_of(NAME), framework="pt") as file:
        facts = file.metadata()
    assert json.loads(facts["spec"])["width"] == 96
    assert float(facts["accuracy"]) > 0.9
    assert int(facts["steps"]) > 0 and int(facts["seed"]) >= 0
    assert models.read_spec(NAME) == models.ModelSpec()


def test_names_and_bad_arguments() -> None:
    assert NAME in models.names()
    with pytest.raises(ValueError, match=r"unknown model 'resnet'.*vit-glyphs"):
        models.build("resnet", 10, 0)
    with pytest.raises(ValueError, match="at least one class"):
        models.build(NAME, 0, 0)


def test_pretraining_writes_a_file_that_builds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "WEIGHTS", tmp_path)
    monkeypatch.setattr(pretrain, "CHARACTERS", "01")
    spec = models.ModelSpec(width=12, depth=1, heads=2)
    first, second = pretrain.train(spec, 2, seed=1), pretrain.train(spec, 2, seed=1)
    pretrain.save(first, tmp_path / "tiny.safetensors", {"seed": "1"})
    model = models.build("tiny", 10, 0)
    assert model.spec == spec
    for name, each in second.named_parameters():
        if not name.startswith("head.classifier."):
            assert torch.equal(each, model.get_parameter(name)), name
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.safetensors"]
