"""Checkpoints of transformers in our stages: the same features, from the same file."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import heavy
import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from nodes.program import FineTuning
from nodes.workload import models
from testbed.config_error import ConfigError
from testbed.run.config import RunConfig

CONFIG = {
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"intermediate_size": 96, "image_size": 24, "patch_size": 8},
    # Large enough to be seen in the features.
    "layer_norm_eps": 0.01,
}
SPEC = models.ModelSpec(
    side=24, channels=3, patch=8, width=32, depth=2, heads=4, mlp_ratio=3, norm_eps=0.01
)
Change = Callable[[dict[str, Any]], object]


def theirs(kind: str = "ViTModel") -> Any:
    """A model of theirs in which every parameter is random, biases and norms too."""
    config = heavy.transformers.ViTConfig(**CONFIG)
    model = getattr(heavy.transformers, kind)(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for each in model.parameters():
            each.add_(torch.randn(each.shape, generator=generator) * 0.1)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    theirs().save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def images() -> torch.Tensor:
    return torch.rand(5, 3, 24, 24, generator=torch.Generator().manual_seed(1))


def edit(path: Path, change: Change) -> None:
    found = json.loads(path.read_text()) if path.exists() else {}
    change(found)
    path.write_text(json.dumps(found))


def edit_weights(folder: Path, change: Change) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


@torch.inference_mode()
def difference(folder: Path, model: Any, pixels: torch.Tensor) -> float:
    """Largest between our tokens after every stage and theirs, which see ``pixels``."""
    ours = models.build(str(folder), 10, 0)
    found = model(pixels, output_hidden_states=True)
    tokens = ours.embed(images())
    stages = [tokens]
    for block in ours.blocks:
        tokens = block(tokens)
        stages.append(tokens)
    worst = max(
        (one - other).abs().max().item()
        for one, other in zip(stages, found.hidden_states, strict=True)
    )
    features = ours.head.norm(tokens[:, 0]) - found.last_hidden_state[:, 0]
    logits = ours(images())
    assert torch.equal(logits, ours.head(tokens)) and logits.shape == (5, 10)
    return max(worst, features.abs().max().item())


def test_features_are_those_of_transformers(folder: Path) -> None:
    assert models.read_spec(str(folder)) == SPEC
    model = heavy.transformers.ViTModel.from_pretrained(folder)
    # Without a file that says otherwise, 0.5 and 0.5 for every channel.
    assert difference(folder, model, images() * 2 - 1) < 1e-5
    assert difference(folder, model, images()) > 0.1


def test_images_are_normalised_as_the_checkpoint_says(folder: Path) -> None:
    mean, deviation = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    path = folder / "preprocessor_config.json"
    path.write_text(
        json.dumps({"image_mean": mean, "image_std": deviation, "rescale_factor": 1 / 255})
    )
    pixels = (images() - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[:, None, None]
    model = heavy.transformers.ViTModel.from_pretrained(folder)
    assert difference(folder, model, pixels) < 1e-5
    edit(path, lambda found: found.update(do_normalize=False))
    assert difference(folder, model, images()) < 1e-5


def test_a_classifiers_backbone_is_taken_and_its_classifier_left(tmp_path: Path) -> None:
    model = theirs("ViTForImageClassification")
    model.save_pretrained(tmp_path)
    assert difference(tmp_path, model.vit, images() * 2 - 1) < 1e-5
    first, again, other = (models.build(str(tmp_path), 2, seed) for seed in (0, 0, 1))
    weight = first.head.classifier.weight
    assert not torch.equal(weight, model.classifier.weight)
    assert torch.equal(weight, again.head.classifier.weight)
    assert not torch.equal(weight, other.head.classifier.weight)


def test_half_precision_becomes_float32(folder: Path) -> None:
    edit_weights(
        folder, lambda state: state.update({key: each.half() for key, each in state.items()})
    )
    model = models.build(str(folder), 10, 0)
    assert {each.dtype for each in model.parameters()} == {torch.float32}
    whole = heavy.transformers.ViTModel.from_pretrained(folder, dtype=torch.float32)
    assert difference(folder, whole, images() * 2 - 1) < 1e-5


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_weights_are_mapped_from_the_file(folder: Path) -> None:
    model = models.build(str(folder), 10, 0)
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    spans = [
        tuple(int(end, 16) for end in line[0].split("-"))
        for line in maps
        if line[-1] == str(folder / "model.safetensors") and line[1].endswith("p")
    ]
    for name, each in model.named_parameters():
        inside = any(low <= each.data_ptr() < high for low, high in spans)
        own = name.startswith(("head.classifier.", "embed.patches."))
        assert inside == (not own), name


def test_a_skeleton_needs_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    skeleton = models.skeleton(str(folder), 10)
    assert skeleton.spec == SPEC and all(each.is_meta for each in skeleton.parameters())
    models.check(str(folder), weights=False)
    with pytest.raises(ConfigError, match=r"vit': has no model.safetensors; take"):
        models.check(str(folder), weights=True)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"model_type": "dinov2"}, "model_type = 'dinov2' in its config.json; only 'vit'"),
        ({"hidden_act": "gelu_new"}, "hidden_act = 'gelu_new' in its config.json; only 'gelu'"),
        ({"qkv_bias": False}, "qkv_bias = False in its config.json; only True"),
        ({"hidden_size": 0}, "hidden_size = 0 in its config.json; must be a whole number"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers = '2'"),
        ({"image_size": [24, 16]}, r"image_size = \[24, 16\]"),
        ({"image_size": 25}, "image_size of patch_size: 25 is no multiple of 8"),
        ({"num_attention_heads": 5}, "hidden_size of num_attention_heads: 32 is no multiple of 5"),
        ({"intermediate_size": 80}, "intermediate_size of hidden_size: 80 is no multiple of 32"),
        ({"layer_norm_eps": 0}, "layer_norm_eps = 0 in its config.json; must be above 0"),
    ],
)
def test_other_architectures_are_refused(folder: Path, change: dict[str, Any], why: str) -> None:
    edit(folder / "config.json", lambda found: found.update(change))
    with pytest.raises(ConfigError, match=f"model = '.*vit': {why}"):
        models.check(str(folder), weights=False)


def test_sizes_may_be_pairs_and_defaults_left_out(folder: Path) -> None:
    def change(found: dict[str, Any]) -> None:
        found |= {"image_size": [24, 24], "patch_size": [8, 8]}
        for field in ("hidden_act", "qkv_bias", "num_channels", "layer_norm_eps"):
            del found[field]

    edit(folder / "config.json", change)
    assert models.read_spec(str(folder)).norm_eps == 1e-12
    assert models.read_spec(str(folder)).tokens == 10


def test_weights_that_are_not_the_configs_are_refused(folder: Path) -> None:
    original = (folder / "model.safetensors").read_bytes()

    def refused(why: str) -> None:
        with pytest.raises(ConfigError, match=f"model = '.*vit': {why}"):
            models.check(str(folder), weights=True)
        (folder / "model.safetensors").write_bytes(original)

    edit_weights(folder, lambda state: state.pop("layernorm.bias"))
    refused("its model.safetensors has no layernorm.bias")
    query = "encoder.layer.1.attention.attention.query.weight"
    edit_weights(folder, lambda state: state.update({query: torch.zeros(4, 32)}))
    refused(rf"{query} is \(4, 32\), and by its config.json \(32, 32\)")
    edit_weights(folder, lambda state: state[query][2].fill_(float("inf")))
    refused(f"its model.safetensors has {query}, which holds values that are not finite; take")
    (folder / "model.safetensors").write_bytes(b"pickled")
    refused("model.safetensors is no safetensors file")
    models.check(str(folder), weights=True)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"image_mean": [0.5]}, r"image_mean = \[0.5\] .*; must be a list of 3 numbers"),
        ({"image_std": 0.5}, "image_std = 0.5 .*; must be a list of 3 numbers"),
        ({"image_std": [1, 0, 1]}, "image_std in its preprocessor_config.json must be above 0"),
        ({"rescale_factor": 1 / 127.5}, "wants pixels times 0.007843; only 1/255"),
        ({"do_rescale": False}, "wants pixels times 1; only 1/255"),
    ],
)
def test_odd_normalisations_are_refused(folder: Path, change: dict[str, Any], why: str) -> None:
    edit(folder / "preprocessor_config.json", lambda found: found.update(change))
    with pytest.raises(ConfigError, match=f"model = '.*vit': .*{why}"):
        models.check(str(folder), weights=True)


@pytest.mark.parametrize("change", [{"do_normalize": False}, {}])
def test_a_scale_is_checked_however_images_are_normalised(
    folder: Path, change: dict[str, Any]
) -> None:
    path = folder / "preprocessor_config.json"
    for scale, told in ((None, "None"), (1.0, "1"), ("a", "'a'"), (float("nan"), "nan")):
        edit(path, lambda found, scale=scale: found.update({"rescale_factor": scale, **change}))
        with pytest.raises(ConfigError, match=f"wants pixels times {told}; only 1/255"):
            models.check(str(folder), weights=True)
    edit(path, lambda found: found.update({"rescale_factor": 1 / 255, "do_rescale": None}))
    with pytest.raises(ConfigError, match=r"do_rescale = None in its .*; must be true or false"):
        models.check(str(folder), weights=True)


def test_a_processor_file_says_how_images_are_normalised_before_the_older_one(folder: Path) -> None:
    odd = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}
    edit(folder / "preprocessor_config.json", lambda found: found.update(odd))
    alone = models.build(str(folder), 10, 0).embed.patches.bias
    both = folder / "processor_config.json"
    edit(both, lambda found: found.update({"processor_class": "ViTProcessor"}))
    assert torch.equal(models.build(str(folder), 10, 0).embed.patches.bias, alone)
    (folder / "preprocessor_config.json").unlink()
    edit(both, lambda found: found.update({"image_processor": odd}))
    assert torch.equal(models.build(str(folder), 10, 0).embed.patches.bias, alone)
    edit(both, lambda found: found.update({"image_processor": {"image_std": [0, 1, 1]}}))
    with pytest.raises(ConfigError, match=r"image_std in its processor_config\.json must be above"):
        models.check(str(folder), weights=True)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.int32])
def test_weights_that_are_no_plain_numbers_are_refused(folder: Path, dtype: torch.dtype) -> None:
    name = "encoder.layer.1.attention.attention.query.weight"
    edit_weights(folder, lambda state: state.update({name: state[name].to(dtype)}))
    with pytest.raises(ConfigError, match=f"{name} is [IUF].*before it was quantised"):
        models.check(str(folder), weights=True)


@pytest.mark.parametrize("extra", ["weight_scale", "weight.absmax", "SCB", "qweight"])
def test_scales_beside_weights_are_refused(folder: Path, extra: str) -> None:
    name = f"encoder.layer.1.output.dense.{extra}"
    edit_weights(folder, lambda state: state.update({name: torch.ones(1)}))
    with pytest.raises(ConfigError, match=f"has {name}, which plain weights do not"):
        models.check(str(folder), weights=True)


def test_a_quantised_checkpoint_says_so_in_its_configuration(folder: Path) -> None:
    edit(folder / "config.json", lambda found: found.update(quantization_config=None))
    models.check(str(folder), weights=True)
    edit(folder / "config.json", lambda found: found.update(quantization_config={"bits": 4}))
    for weights in (False, True):
        with pytest.raises(ConfigError, match=r"quantization_config in its config\.json"):
            models.check(str(folder), weights=weights)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_what_git_has_in_place_of_a_file_is_told(folder: Path, file: str) -> None:
    (folder / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ConfigError, match=f"its {file} is a Git LFS pointer.*git lfs pull"):
        models.check(str(folder), weights=True)
    (folder / file).write_bytes(b"")
    with pytest.raises(ConfigError, match=f"its {file} is empty"):
        models.check(str(folder), weights=True)


@pytest.mark.parametrize("name", ["~nobody/vit", "x" * 300, f"a/{'x' * 300}", "a\0b"])
def test_a_name_that_no_folder_can_have_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^(model = |unknown model )"):
        models.check(name, weights=True)


def test_images_that_a_model_cannot_take_are_refused_before_anything_starts(folder: Path) -> None:
    edit(folder / "config.json", lambda found: found.update(num_channels=4))
    config = RunConfig(
        model=str(folder), dataset="cifar10", compute="modelled", device_class="phone"
    )
    with pytest.raises(ConfigError, match=r"does not fit .*images of 3 channels for a model of 4"):
        FineTuning(config, clients=2)
    # Greyscale is repeated.
    FineTuning(msgspec.structs.replace(config, dataset="digits"), clients=2)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"model = './vit': there is no such folder, and no rep"):
        models.check("./vit", weights=True)
    with pytest.raises(ConfigError, match=r"unknown model 'vit-b17': did you mean vit-b16"):
        models.check("vit-b17", weights=True)
    (tmp_path / "own").mkdir()
    with pytest.raises(ConfigError, match=r"model = 'own': has no config.json"):
        models.check("own", weights=True)
    for text in ("not JSON", "[]"):
        (tmp_path / "own" / "config.json").write_text(text)
        with pytest.raises(ConfigError, match=r"model = 'own': config.json (cannot|must)"):
            models.check("own", weights=True)
    # A folder hides no model that has a name.
    (tmp_path / "vit-b16").mkdir()
    assert models.read_spec("vit-b16") == models.PAPER_SIZE["vit-b16"]


def test_a_run_names_its_checkpoint_wherever_it_is_repeated(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    for name in ("./vit", "vit"):
        assert FineTuning(RunConfig(method="fedavg", model=name), clients=2).model == str(folder)
    assert models.absolute("someone/vit") == "someone/vit"
    assert models.absolute("vit-b16") == "vit-b16"
    (folder / "model.safetensors").unlink()
    config = RunConfig(method="fedavg", model="./vit")
    with pytest.raises(ConfigError, match=r"model = './vit': has no model.safetensors"):
        FineTuning(config, clients=2)
    FineTuning(msgspec.structs.replace(config, compute="modelled"), clients=2)


def test_a_name_on_the_hub_is_looked_up_in_its_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"'someone/vit': the hub cannot be reached.*--model"):
        models.check("someone/vit", weights=True)
    cached = tmp_path / "hub" / "models--someone--vit"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, cached / "snapshots" / ("0" * 40))
    assert models.skeleton("someone/vit", 10).spec == SPEC
    model, same = models.build("someone/vit", 10, 0), models.build(str(folder), 10, 0)
    for name, each in model.named_parameters():
        assert torch.equal(each, same.get_parameter(name)), name


def test_a_cache_that_has_only_a_part_is_told_from_a_repository_that_has_no_more(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    cached = tmp_path / "hub" / "models--someone--part"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    (cached / "snapshots" / ("0" * 40)).mkdir(parents=True)
    shutil.copy(folder / "config.json", cached / "snapshots" / ("0" * 40))
    assert models.skeleton("someone/part", 10).spec == SPEC
    why = r"cannot be reached, and what is cached of it has no model\.safetensors: take --model"
    with pytest.raises(ConfigError, match=why):
        models.check("someone/part", weights=True)
