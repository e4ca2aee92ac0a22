"""The backbones: stages, shipped weights, the memory map, and what adapters find in them."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F

from methods import fedpeft
from methods.peft import lora
from nodes.workload import data, models, pretrain
from nodes.workload.glyphs import DIGITS, glyphs

NAME = "vit-glyphs"


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
    lora.adapt(fedpeft.Config(rank=8), model)


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


@pytest.mark.thorough
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


@pytest.mark.thorough
def test_fine_tuning_adapters_on_handwriting_works_and_starts_near_chance() -> None:
    digits = data.load("digits", seed=0)
    x, y = torch.from_numpy(digits.train_inputs), torch.from_numpy(digits.train_targets)
    held_out = torch.from_numpy(digits.test_inputs), torch.from_numpy(digits.test_targets)
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
    assert sum(size for name, size in sizes.items() if "lora_" in name) == 12_288
    assert sum(sizes.values()) == 13_258
    assert "blocks.0.attention.query.lora_A" in sizes


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
    maps = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    spans = [
        tuple(int(end, 16) for end in line[0].split("-"))
        for line in maps
        if line[-1] == str(models.path_of(NAME)) and line[1].endswith("p")
    ]
    for name, each in model.named_parameters():
        inside = any(low <= each.data_ptr() < high for low, high in spans)
        assert inside == (not name.startswith("head.classifier.")), name


@pytest.mark.thorough
def test_building_and_drawing_import_nothing_slow() -> None:
    """torch imports its compiler, three seconds, for some operations on the meta device."""
    script = (
        "import sys; from nodes.workload import glyphs, models; models.build('vit-glyphs', 10, 0); "
        "models.skeleton('vit-b16', 100); models.skeleton('llama-docs', 1024); "
        "glyphs.glyphs(2, 0, characters='1'); "
        "sys.exit(bool({'torch._inductor', 'torch._dynamo', 'matplotlib'} & set(sys.modules)))"
    )
    root = Path(models.__file__).parents[2]
    subprocess.run([sys.executable, "-c", script], cwd=root, check=True)


@pytest.mark.parametrize(
    ("name", "classes", "parameters", "tokens"),
    [
        ("vit-b16", 100, 85_875_556, 197),
        ("vit-b16", 10, 85_806_346, 197),
        ("vit-l16", 10, 303_311_882, 197),
        (NAME, 10, 303_658, 17),
    ],
)
def test_a_skeleton_has_every_shape_and_no_values(
    name: str, classes: int, parameters: int, tokens: int
) -> None:
    model = models.skeleton(name, classes)
    assert sum(each.numel() for each in model.parameters()) == parameters
    assert all(each.is_meta for each in model.parameters())
    assert model.spec.tokens == tokens


@pytest.fixture
def small_paper(monkeypatch: pytest.MonkeyPatch) -> models.ModelSpec:
    """A model of a paper's, but small: colour, with random weights."""
    spec = models.ModelSpec(side=32, channels=3, patch=8, width=24, depth=2, heads=3, mlp_ratio=4)
    monkeypatch.setitem(models.PAPER_SIZE, "vit-tiny", spec)
    return spec


def test_random_weights_are_their_seed(small_paper: models.ModelSpec) -> None:
    before = torch.random.get_rng_state()
    model, same, other = (models.build("vit-tiny", 5, seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    for name, each in model.named_parameters():
        assert each.requires_grad
        assert torch.equal(each, same.get_parameter(name)), name
        drawn = each.dim() > 1 and not name.endswith("class_token")
        assert torch.equal(each, other.get_parameter(name)) != drawn, name
        if drawn and "classifier" not in name:
            assert 0.017 < each.std().item() < 0.023, name
    assert model.head.norm.weight.unique().tolist() == [1]
    assert model.head.norm.bias.unique().tolist() == [0]
    loss = F.cross_entropy(model(images(32)), torch.arange(32) % 5)
    assert abs(loss.item() - torch.log(torch.tensor(5.0)).item()) < 0.15


def test_images_are_made_to_fit_the_model(small_paper: models.ModelSpec) -> None:
    fitted = models.fit(images(), small_paper)
    assert fitted.shape == (4, 3, 32, 32)
    assert torch.equal(fitted[:, 0], fitted[:, 1]) and torch.equal(fitted[:, 0], fitted[:, 2])
    expected = F.interpolate(images(), (32, 32), mode="bilinear", align_corners=False)
    assert torch.allclose(fitted[:, :1], expected, atol=1e-6)
    model = models.build("vit-tiny", 5, 0)
    with torch.no_grad():
        assert torch.equal(model(images()), model(fitted))
    # What fits is not copied.
    assert models.fit(fitted, small_paper) is fitted


def test_colour_becomes_grey_and_large_images_small() -> None:
    spec = models.ModelSpec()
    colour = torch.rand(2, 3, 16, 16)
    assert torch.allclose(models.fit(colour, spec)[:, 0], colour.mean(dim=1))
    # Each pixel has a share of every one that it stands for: thin lines are not skipped.
    lines = (torch.arange(64) % 4 == 0).float().expand(1, 1, 64, 64)
    small = models.fit(lines, spec)
    assert small.shape == (1, 1, 16, 16)
    assert torch.allclose(small[..., 1:-1], torch.tensor(0.25), atol=1e-3)
    with pytest.raises(ValueError, match="images of 2 channels for a model of 3"):
        models.fit(torch.rand(1, 2, 16, 16), models.ModelSpec(channels=3))


def test_the_file_says_what_it_is() -> None:
    with safe_open(models.path_of(NAME), framework="pt") as file:
        facts = file.metadata()
    assert json.loads(facts["spec"])["width"] == 96
    assert float(facts["accuracy"]) > 0.9
    assert int(facts["steps"]) > 0 and int(facts["seed"]) >= 0
    assert models.read_spec(NAME) == models.ModelSpec()


def test_a_models_size_leaves_out_the_classifier_that_runs_start_anew() -> None:
    known = {NAME: 302_688, "vit-b16": 85_798_656, "llama-docs": 922_752}
    assert {name: models.parameters(name) for name in known} == known


def test_names_and_bad_arguments() -> None:
    assert models.names() == [
        *("llama-2-7b", "llama-docs", "mistral-7b", "vit-b16", NAME, "vit-l16")
    ]
    with pytest.raises(ValueError, match=r"unknown model 'resnet'.*vit-b16, vit-glyphs"):
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
