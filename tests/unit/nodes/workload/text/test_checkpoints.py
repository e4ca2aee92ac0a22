"""Causal language models of transformers in our stages: the same logits, from the same files."""

import copy
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import heavy
import made_causal
import pytest
import torch
from made_causal import ids
from safetensors.torch import load_file, save_file
from torch import nn

from methods import Shard, fedpeft
from methods.shared import backbone
from methods.shared.local_training import learnt, load_trainable, train
from methods.shared.objective import scores
from methods.split_model import cut
from nodes.workload import models
from nodes.workload.text import checkpoints
from nodes.workload.text.layouts import LAYOUTS
from nodes.workload.text.stages import CausalSpec
from testbed.config_error import ConfigError

Change = Callable[[dict[str, Any]], object]
PEFTS_OWN = pytest.mark.filterwarnings(
    "ignore:fan_in_fan_out is set to False", "ignore:`is_gradient_checkpointing` is deprecated"
)


def edit(path: Path, change: Change) -> None:
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


@torch.inference_mode()
def logits(model: Any, tokens: int = 20) -> torch.Tensor:
    found = model(ids(tokens))
    return getattr(found, "logits", found)


@pytest.mark.thorough
@pytest.mark.parametrize("model_type", LAYOUTS)
def test_logits_are_those_of_transformers(model_type: str, tmp_path: Path) -> None:
    theirs = made_causal.theirs(model_type)
    theirs.save_pretrained(tmp_path)
    ours = models.build(str(tmp_path), 1, 0)
    for tokens in (1, 4, 20, made_causal.CONTEXT):
        expected = logits(theirs, tokens)
        assert (logits(ours, tokens) - expected).abs().max() <= 1e-6 * expected.abs().max()
    spec = models.read_spec(str(tmp_path))
    assert spec == CausalSpec(
        model_type=model_type,
        width=32,
        depth=made_causal.DEPTH,
        heads=4,
        vocabulary=made_causal.VOCABULARY,
        context=made_causal.CONTEXT,
        tied=theirs.config.tie_word_embeddings,
    )
    assert ours.spec == spec and spec.causal
    # As many, each once: what is tied is one parameter.
    counts = [sum(each.numel() for each in model.parameters()) for model in (ours, theirs)]
    assert counts[0] == counts[1]
    assert all(each.requires_grad for each in ours.parameters())
    with pytest.raises(ValueError, match="a sequence of 65 tokens: the model takes at most 64"):
        logits(ours, made_causal.CONTEXT + 1)


@pytest.mark.thorough
@pytest.mark.parametrize("model_type", LAYOUTS)
def test_a_skeleton_has_the_shapes_without_weights(model_type: str, tmp_path: Path) -> None:
    ours = models.build(str(made_causal.folder_of(model_type, tmp_path)), 1, 0)
    (tmp_path / "model.safetensors").unlink()
    skeleton = models.skeleton(str(tmp_path), 1)
    assert all(each.is_meta for each in [*skeleton.parameters(), *skeleton.buffers()])
    shapes = [
        {name: (each.shape, each.dtype) for name, each in model.named_parameters()}
        for model in (skeleton, ours)
    ]
    assert shapes[0] == shapes[1]
    assert skeleton(ids().to("meta")).shape == (2, 20, made_causal.VOCABULARY)
    models.check(str(tmp_path), weights=False)


@pytest.mark.thorough
@pytest.mark.parametrize("model_type", LAYOUTS)
def test_stages_can_be_cut_at_each_block(model_type: str, tmp_path: Path) -> None:
    model = models.build(str(made_causal.folder_of(model_type, tmp_path)), 1, 0)
    expected = logits(model)
    for head_blocks in range(made_causal.DEPTH + 1):
        parts = cut(model, head_blocks=head_blocks, tail_blocks=0, private=False)
        assert torch.equal(logits(nn.Sequential(parts.head, parts.server)), expected)
    # A copy's modules are its own, down to the angles.
    assert torch.equal(logits(copy.deepcopy(model)), expected)
    assert {id(each) for each in learnt(model).values()} == {
        id(each) for each in model.parameters()
    }


def adapted(variant: str, folder: Path) -> Any:
    config = fedpeft.Config(variant=variant, rank=2)  # type: ignore[arg-type]
    model = models.build(str(folder), 1, 0)
    fedpeft.check(config, models.skeleton(str(folder), 1))
    return fedpeft.adapt(config, model)


def layers(names: Iterable[str], kind: str) -> set[str]:
    """Layers by number and path, of parameters such as blocks.0.layer.mlp.fc1.lora_A."""
    found = (re.search(rf"\.(\d+)\.(?:layer\.)?([\w.]+)\.{kind}", name) for name in names)
    return {f"{each[1]} {each[2]}" for each in found if each}


def sent(model: Any) -> dict[str, nn.Parameter]:
    return {name: each for name, each in model.named_parameters() if each.requires_grad}


LISTED = (
    *("gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "llama", "mistral", "phi", "qwen2"),
    "qwen3",
)
"""Layouts of which peft says itself where its adapters go."""


def test_all_that_peft_lists_are_held_against_it() -> None:
    constants = heavy.peft_constants
    listed = {*LAYOUTS} & {*constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING}
    listed &= {*constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING}
    assert sorted(listed) == [*LISTED]


@pytest.mark.thorough
@PEFTS_OWN
@pytest.mark.parametrize("model_type", LISTED)
def test_lora_is_on_pefts_own_layers_and_gives_the_same(model_type: str, tmp_path: Path) -> None:
    theirs = made_causal.theirs(model_type)
    theirs.save_pretrained(tmp_path)
    ours = adapted("lora", tmp_path)
    config = heavy.peft.LoraConfig(
        r=2, lora_alpha=fedpeft.Config().lora_alpha, init_lora_weights=False
    )
    wrapped = heavy.peft.get_peft_model(theirs, config)
    assert layers(sent(ours), "lora_A") == layers(sent(wrapped), "lora_A") != set()
    assert len(sent(ours)) == len(sent(wrapped))
    values = {}
    for name, each in sent(wrapped).items():
        found = re.search(r"\.(\d+)\.([\w.]+)\.(lora_[AB])\.", name)
        assert found is not None
        values[f"blocks.{found[1]}.layer.{found[2]}.{found[3]}"] = each.detach()
    load_trainable(ours, values)
    expected = logits(wrapped.eval())
    assert (logits(ours) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.thorough
@PEFTS_OWN
@pytest.mark.parametrize("model_type", LISTED)
def test_ia3_is_on_pefts_own_layers(model_type: str, tmp_path: Path) -> None:
    theirs = made_causal.theirs(model_type)
    theirs.save_pretrained(tmp_path)
    wrapped = heavy.peft.get_peft_model(theirs, heavy.peft.IA3Config())
    names = [name for name, _ in adapted("ia3", tmp_path).named_parameters()]
    assert layers(names, "ia3_l") == layers(sent(wrapped), "ia3_l") != set()


@pytest.mark.thorough
@pytest.mark.parametrize("model_type", LAYOUTS)
def test_every_layout_learns_by_its_adapters_alone(model_type: str, tmp_path: Path) -> None:
    model = adapted("lora", made_causal.folder_of(model_type, tmp_path))
    assert layers(sent(model), "lora_A")
    assert all(re.search(r"\.lora_[AB]$", name) for name in sent(model))
    frozen = {n: each.clone() for n, each in model.named_parameters() if not each.requires_grad}
    shard = Shard(ids(), ids().roll(-1, dims=1), ids()[:0], 1)
    before = scores(model, shard.inputs, shard.targets)["loss"]
    optimizer = torch.optim.AdamW(sent(model).values(), lr=1e-2)
    train(model, shard, optimizer, epochs=8, batch_size=2, generator=torch.Generator())
    assert scores(model, shard.inputs, shard.targets)["loss"] < before
    assert all(torch.equal(model.get_parameter(n), each) for n, each in frozen.items())


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_are_one_parameter(model_type: str, tied: bool, tmp_path: Path) -> None:
    theirs = made_causal.theirs(model_type, tie_word_embeddings=tied)
    theirs.save_pretrained(tmp_path)
    for model in (models.build(str(tmp_path), 1, 0), models.skeleton(str(tmp_path), 1)):
        assert model.spec.tied == backbone.tied(model) == tied
        names = [name for name, _ in model.named_parameters()]
        assert ("head.classifier.weight" in names) == (not tied)
        assert sum(each.numel() for each in learnt(model).values()) == theirs.num_parameters()
    model = models.build(str(tmp_path), 1, 0)
    assert torch.equal(logits(model), logits(theirs))
    assert backbone.tied(copy.deepcopy(model)) == tied


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gpt_neox"])
def test_what_is_tied_stands_in_a_file_under_either_name(model_type: str, tmp_path: Path) -> None:
    theirs = made_causal.theirs(model_type, tie_word_embeddings=True)
    theirs.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    (embedding,) = (name for name in state if re.search(r"(embed_tokens|wte|embed_in)\.", name))
    state[f"{LAYOUTS[model_type].head}.weight"] = state.pop(embedding)
    save_file(state, tmp_path / "model.safetensors")
    models.check(str(tmp_path), weights=True)
    model = models.build(str(tmp_path), 1, 0)
    assert torch.equal(logits(model), logits(theirs)) and backbone.tied(model)


@pytest.mark.parametrize(("model_type", "usual"), [("llama", 2048), ("qwen3", 32_768)])
def test_a_context_that_nobody_states_is_the_familys(
    model_type: str, usual: int, tmp_path: Path
) -> None:
    theirs = made_causal.theirs(model_type)
    theirs.save_pretrained(tmp_path)
    edit(tmp_path / "config.json", lambda found: found.pop("max_position_embeddings"))
    assert checkpoints.architecture(str(tmp_path), tmp_path).context == usual
    assert torch.equal(logits(models.build(str(tmp_path), 1, 0)), logits(theirs))


@pytest.mark.thorough
@pytest.mark.parametrize("model_type", LAYOUTS)
def test_bf16_stays_bf16_and_shards_are_one_model(model_type: str, tmp_path: Path) -> None:
    theirs = made_causal.theirs(model_type).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    models.check(str(tmp_path), weights=True)
    ours = models.build(str(tmp_path), 1, 0)
    assert {each.dtype for each in ours.parameters()} == {torch.bfloat16}
    kinds = {each.dtype for each in models.skeleton(str(tmp_path), 1).parameters()}
    assert kinds == {torch.bfloat16}
    whole = type(theirs).from_pretrained(
        tmp_path, attn_implementation=theirs.config._attn_implementation
    )
    expected = logits(whole)
    assert (logits(ours) - expected).abs().max() <= 0.01 * expected.abs().max()
    wide = checkpoints.build(str(tmp_path), tmp_path, torch.float32)
    assert {each.dtype for each in wide.parameters()} == {torch.float32}


def test_a_dtype_is_the_configurations_or_the_files_and_no_float16(tmp_path: Path) -> None:
    made_causal.theirs("llama").half().save_pretrained(tmp_path)

    def dtypes() -> set[torch.dtype]:
        built = models.build(str(tmp_path), 1, 0)
        return {each.dtype for each in built.parameters()}

    assert dtypes() == {torch.float32}
    edit(tmp_path / "config.json", lambda found: found.update(dtype="bfloat16"))
    assert dtypes() == {torch.bfloat16}
    edit(tmp_path / "config.json", lambda found: found.pop("dtype"))
    edit(tmp_path / "config.json", lambda found: found.update(torch_dtype="bfloat16"))
    assert dtypes() == {torch.bfloat16}
    edit(tmp_path / "config.json", lambda found: found.pop("torch_dtype"))
    assert dtypes() == {torch.float32}
    made_causal.theirs("llama").bfloat16().save_pretrained(tmp_path)
    edit(tmp_path / "config.json", lambda found: found.pop("dtype"))
    assert dtypes() == {torch.bfloat16}
    edit(tmp_path / "config.json", lambda found: found.update(dtype="int8"))
    with pytest.raises(ConfigError, match=r"dtype = 'int8' in its config\.json; must be one of"):
        dtypes()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_weights_are_mapped_and_a_forward_pass_copies_none(model_type: str, tmp_path: Path) -> None:
    made_causal.folder_of(model_type, tmp_path)
    model = models.build(str(tmp_path), 1, 0)
    logits(model)
    spans, copied, inside = [], 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(tmp_path / "model.safetensors"))
            if inside:
                assert line.split()[1].endswith("p")
                spans.append([int(end, 16) for end in line.split()[0].split("-")])
        elif inside and line.startswith("Anonymous"):
            copied += int(line.split()[1])
    assert spans and copied == 0
    for name, each in model.named_parameters():
        mapped = any(low <= each.data_ptr() < high for low, high in spans)
        # What GPT-2 has as x W is kept as its transposition, which is a copy.
        turned = model_type == "gpt2" and re.search(r"\.c_\w+\.weight$", name)
        assert mapped == (not turned), name


def test_nothing_is_dropped_in_training(tmp_path: Path) -> None:
    made_causal.folder_of("gpt2", tmp_path, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    model = models.build(str(tmp_path), 1, 0)
    assert torch.equal(logits(model.train()), logits(model.eval()))


def test_the_docs_name_every_layout() -> None:
    page = (Path(__file__).parents[5] / "docs" / "data.md").read_text()
    assert [each for each in LAYOUTS if f"`{each}`" not in page] == []
