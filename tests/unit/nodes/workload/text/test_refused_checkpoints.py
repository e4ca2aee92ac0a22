"""Checkpoints of language models that are refused, with what is wrong and what would be right."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_causal
import pytest
import torch
from safetensors.torch import load_file, save_file

from nodes.workload import models
from nodes.workload.text import checkpoints
from testbed.config_error import ConfigError

INDEX = "model.safetensors.index.json"
QUERY = "model.layers.1.self_attn.q_proj.weight"
VALUE = "model.layers.1.self_attn.v_proj.weight"
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return made_causal.folder_of("llama", tmp_path / "llama")


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    made_causal.theirs("llama").save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    return tmp_path / "shards"


def edit(path: Path, change: Change) -> None:
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def edit_weights(folder: Path, change: Change) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def refused(folder: Path, why: str, *, weights: bool = True) -> None:
    with pytest.raises(ConfigError, match=f"^model = '{folder}': {why}"):
        models.check(str(folder), weights=weights)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"model_type": "bloom"}, "model_type = 'bloom' in its config.json; known .* are .*llama"),
        ({"auto_map": {}}, "auto_map in its config.json: it asks for code .* never run"),
        ({"quantization_config": {"bits": 4}}, "quantization_config in its config.json"),
        ({"hidden_size": "32"}, "hidden_size = '32' in its config.json; must be a whole number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0 in its config.json; must be a whole"),
        ({"vocab_size": None}, "vocab_size = None in its config.json; must be a whole number"),
        ({"max_position_embeddings": True}, "max_position_embeddings = True in its config.json"),
        ({"dtype": "auto"}, "dtype = 'auto' in its config.json; must be one of float64, float32"),
        (
            {"torch_dtype": "int8", "dtype": "int8"},
            "dtype = 'int8' in its config.json; must be one",
        ),
        (
            {"dtype": ["float32"]},
            r"dtype = \['float32'\] in its config.json; must be one of float64",
        ),
        ({"model_type": {}}, "model_type = {} in its config.json; known .* are .*llama"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings = 'no' .*; must be true or false"),
    ],
)
def test_configurations_of_other_models_are(folder: Path, change: dict[str, Any], why: str) -> None:
    edit(folder / "config.json", lambda found: found.update(change))
    refused(folder, why, weights=False)


ANGLES = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"rope_theta": math.nan}, "rope_theta = nan in its config.json; no number there may be"),
        (
            {"rope_theta": -1e4},
            "rope_theta = -10000.0 in its config.json; must be a number above 1",
        ),
        ({"rope_theta": "1e4"}, "rope_theta = '1e4' in its config.json; must be a number above 1"),
        ({"rope_scaling": "linear"}, "rope_scaling = 'linear' .*; must be an object, or null"),
        ({"rope_scaling": ANGLES | {"factor": 0}}, r"rope_scaling\.factor = 0 .* number above 0"),
        (
            {"rope_parameters": ANGLES | {"rope_theta": None}},
            r"rope_parameters\.rope_theta = None .*; must be numbers, or left out",
        ),
        (
            {"rope_parameters": {**ANGLES, "factor": None}},
            r"rope_parameters\.factor = None .* linear",
        ),
        (
            {"rope_parameters": {**ANGLES, "rope_theta": 1e-200}},
            r"rope_parameters\.rope_theta = 1e-200 .*; must be a number above 1",
        ),
        ({"rope_parameters": {**ANGLES, "rope_type": "odd"}}, ".* rope_type = 'odd': it knows no"),
        (
            {
                "rope_parameters": {
                    "rope_type": "longrope",
                    "short_factor": [1.0] * 4,
                    "long_factor": [1e-38] * 4,
                    "original_max_position_embeddings": 8,
                    "attention_factor": 3e38,
                }
            },
            "rope_parameters = .* in its config.json: the angles of places up to 63 are not finite",
        ),
        (
            {
                "rope_parameters": {
                    "rope_type": "longrope",
                    "short_factor": [1.0] * 3,
                    "long_factor": [1.0] * 3,
                    "original_max_position_embeddings": 8,
                }
            },
            "transformers refuses its config.json: .*",
        ),
        (
            {"rope_parameters": None, "rope_scaling": {"type": "su", "factor": 2.0}},
            "transformers refuses its config.json: type = 'su': it knows no 'su'",
        ),
        (
            {"rope_parameters": None, "rope_scaling": {"rope_type": "llama3", "factor": 2.0}},
            "transformers refuses its config.json: .Missing required keys",
        ),
        ({"head_dim": 7}, ".*head_dim.*7"),
        ({"head_dim": 3}, ".*head_dim = 3 .* places turn 4 features, and a head has 3"),
        (
            {"num_key_value_heads": 3},
            "num_key_value_heads = 3 .* divisor of num_attention_heads = 4",
        ),
        (
            {"num_key_value_heads": 0},
            "num_key_value_heads = 0 .*; must be a whole number, at least 1",
        ),
        (
            {"rms_norm_eps": -1e-6},
            "rms_norm_eps = -1e-06 in its config.json; must be a number above 0",
        ),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000 .* at most 1,000"),
        ({"vocab_size": 10**30}, "vocab_size = 1000000000000000000000000000000 in its config.json"),
        (
            {"pad_token_id": 97},
            "pad_token_id = 97 in its config.json; must be null, or below vocab",
        ),
        ({"layer_types": 3}, "layer_types = 3 in its config.json; must be a list, or null"),
        ({"initializer_range": math.inf}, "initializer_range = inf in its config.json; no number"),
    ],
)
def test_numbers_that_no_sequence_passes_are_without_weights(
    folder: Path, change: dict[str, Any], why: str
) -> None:
    edit(folder / "config.json", lambda found: found.update(change))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=f"^model = '{folder}': {why}"):
        models.skeleton(str(folder), 1)


def test_labels_without_number_are_never_named(folder: Path) -> None:
    edit(folder / "config.json", lambda found: found.update(num_labels=10**12))
    models.check(str(folder), weights=True)
    models.build(str(folder), 1, 0)


@pytest.mark.parametrize(
    "change",
    [{"return_dict": False}, {"output_hidden_states": "all"}, {"output_attentions": True}],
)
def test_what_a_pass_gives_beside_logits_is_no_matter(folder: Path, change: dict[str, Any]) -> None:
    edit(folder / "config.json", lambda found: found.update(change))
    models.check(str(folder), weights=True)
    models.build(str(folder), 1, 0)


def test_what_transformers_refuses_is(folder: Path) -> None:
    edit(folder / "config.json", lambda found: found.update(num_attention_heads=6))
    refused(folder, "transformers refuses its config.json")
    edit(folder / "config.json", lambda found: found.update(num_attention_heads=4))
    edit(folder / "config.json", lambda found: found.update(hidden_act="no such"))
    refused(folder, "transformers refuses its config.json: hidden_act = 'no such': it knows no")
    edit(folder / "config.json", lambda found: found.update(hidden_act="silu", mlp_bias="1"))
    refused(folder, "transformers refuses its config.json: [^\n]*mlp_bias[^\n]*'1'[^\n]*$")


def test_a_byte_order_mark_is_no_reason(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text(), encoding="utf-8-sig")
    models.check(str(folder), weights=True)
    models.build(str(folder), 1, 0)


def test_weights_that_are_not_the_configurations_are(folder: Path) -> None:
    original = (folder / "model.safetensors").read_bytes()

    def changed(change: Change, why: str) -> None:
        edit_weights(folder, change)
        refused(folder, why)
        with pytest.raises(ConfigError, match=why):
            models.build(str(folder), 1, 0)
        (folder / "model.safetensors").write_bytes(original)

    changed(lambda state: state.pop(QUERY), f"its model.safetensors has no {QUERY}")
    changed(
        lambda state: state.update({QUERY: torch.zeros(4, 32)}),
        rf"{QUERY} is \(4, 32\), and by its config.json \(32, 32\)",
    )
    changed(
        lambda state: state.update({QUERY: state[QUERY].to(torch.float8_e4m3fn)}),
        f"{QUERY} is F8_E4M3; take the checkpoint from before it was quantised",
    )
    changed(
        lambda state: state.update({f"{QUERY}_scale": torch.ones(1)}),
        f"its model.safetensors has {QUERY}_scale, which plain weights do not",
    )
    changed(
        lambda state: state.update({"model.layers.3.mlp.up_proj.weight": torch.ones(1)}),
        r"its model.safetensors has model.layers.3.mlp.up_proj.weight, which by its config.json",
    )
    changed(lambda state: state.clear(), "its model.safetensors has no ")
    (folder / "model.safetensors").write_bytes(original[:-10])
    refused(folder, "model.safetensors is no safetensors file")
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    refused(folder, "its model.safetensors is a Git LFS pointer")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    why = "but pytorch_model.bin, a pickle, which could run code and is not read; take"
    refused(folder, f"has no model.safetensors, {why}")
    (folder / "pytorch_model.bin").unlink()
    refused(folder, "has no model.safetensors; take .*other formats of weights are not read")
    # What an older release saved beside the weights is none.
    (folder / "model.safetensors").write_bytes(original)
    angles = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_weights(folder, lambda state: state.update({angles: torch.ones(4)}))
    models.check(str(folder), weights=True)


def test_a_classifier_beside_a_tied_embedding_has_to_be_the_same(tmp_path: Path) -> None:
    folder = made_causal.folder_of("llama", tmp_path, tie_word_embeddings=True)
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    edit_weights(folder, lambda state: state.update({head: state[embedding].clone()}))
    models.build(str(folder), 1, 0)
    edit_weights(folder, lambda state: state.update({head: state[embedding] + 1}))
    refused(folder, f"its {head} is another than its {embedding}.* set tie_word_embeddings to fal")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("wrong", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are(folder: Path, wrong: float, dtype: torch.dtype) -> None:
    def change(state: dict[str, Any]) -> None:
        state |= {name: each.to(dtype) for name, each in state.items()}
        state[VALUE][3, 2] = wrong

    edit_weights(folder, change)
    refused(folder, f"its model.safetensors has {VALUE}, which holds values that are not finite")


def test_weights_beyond_the_float32_that_they_become_are(folder: Path) -> None:
    edit_weights(folder, lambda state: state.update({VALUE: state[VALUE].double() + 1e39}))
    refused(folder, f"its model.safetensors has {VALUE}, which holds values that are not finite")


def test_weights_whose_logits_are_not_finite_are_once_they_are_loaded(folder: Path) -> None:
    edit_weights(folder, lambda state: state.update({VALUE: state[VALUE] * 1e38}))
    with pytest.raises(ConfigError, match="its weights give logits that are not finite"):
        models.build(str(folder), 1, 0)


def test_an_adapter_alone_is_no_model(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")
    refused(folder, "has no config.json, but adapter_config.json: it is an adapter, to be merged")


def test_shards_that_are_not_the_indexs_are(shards: Path) -> None:
    index = (shards / INDEX).read_text()
    file = json.loads(index)["weight_map"][QUERY]

    def changed(change: Change, why: str) -> None:
        edit(shards / INDEX, change)
        refused(shards, why)
        (shards / INDEX).write_text(index)

    models.check(str(shards), weights=True)
    for outside in ("../x.safetensors", "/x.safetensors", "x/y.safetensors", "x.bin", 1):
        changed(
            lambda found, outside=outside: found["weight_map"].update({QUERY: outside}),
            rf"{QUERY} is in .* by its {INDEX}; must be the name of a safetensors file of the same",
        )
    for empty in ({}, [], None):
        changed(
            lambda found, empty=empty: found.update(weight_map=empty),
            f"weight_map in its {INDEX} must have a file for each weight",
        )
    changed(
        lambda found: found["weight_map"].update({"model.other": file}),
        f"its {file} has no model.other, which is there by its {INDEX}",
    )
    (shards / INDEX).write_text("{")
    refused(shards, f"{INDEX} cannot be read")
    (shards / INDEX).write_text(index)
    (shards / INDEX).rename(shards / "other")
    refused(shards, f"has no model.safetensors, but model-00001-of-.*, and no {INDEX}, which says")
    (shards / "other").rename(shards / INDEX)
    whole = (shards / file).read_bytes()
    (shards / file).write_bytes(whole[:-4])
    refused(shards, f"{file} is no safetensors file")
    (shards / file).unlink()
    refused(shards, f"has no {file}")
    with pytest.raises(ConfigError, match=f"has no {file}"):
        models.fingerprint(str(shards))


def test_a_fingerprint_is_of_every_shard(shards: Path, folder: Path) -> None:
    first = models.fingerprint(str(shards))
    assert first == models.fingerprint(str(shards)) != models.fingerprint(str(folder))
    last = sorted(shards.glob("model-*.safetensors"))[-1]
    changed = bytearray(last.read_bytes())
    changed[-1] ^= 1
    last.write_bytes(bytes(changed))
    assert models.fingerprint(str(shards)) != first


def test_tokens_that_see_later_ones_are_refused_before_anything_starts(tmp_path: Path) -> None:
    made_causal.folder_of("gemma3_text", tmp_path)
    edit(tmp_path / "config.json", lambda found: found.update(use_bidirectional_attention=True))
    refused(tmp_path, "use_bidirectional_attention = True in its config.json; must be false")


def test_stages_that_are_not_the_model_are_refused_once_they_are_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = checkpoints._staged

    def capped(theirs: Any, spec: Any) -> Any:
        model = staged(theirs, spec)
        model.head.cap = 0.5
        return model

    monkeypatch.setattr(checkpoints, "_staged", capped)
    with pytest.raises(ValueError, match="model_type = 'llama': cut between its blocks"):
        models.build(str(folder), 1, 0)


def test_gpt2_as_its_first_release_has_it_is_read(tmp_path: Path) -> None:
    theirs = made_causal.theirs("gpt2")
    theirs.save_pretrained(tmp_path)

    def older(state: dict[str, torch.Tensor]) -> None:
        whole = dict(state)
        state.clear()
        state |= {key.removeprefix("transformer."): each for key, each in whole.items()}
        state["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)

    edit_weights(tmp_path, older)
    with torch.inference_mode():
        expected = theirs(made_causal.ids()).logits
        assert torch.equal(models.build(str(tmp_path), 1, 0)(made_causal.ids()), expected)


def test_a_name_on_the_hub_is_looked_up_in_its_cache(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"'someone/llama': the hub cannot be reached.*--model"):
        models.check("someone/llama", weights=False)
    cached = tmp_path / "hub" / "models--someone--whole"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    there = cached / "snapshots" / ("0" * 40)
    shutil.copytree(shards, there)
    models.check("someone/whole", weights=True)
    assert models.read_spec("someone/whole") == models.read_spec(str(shards))
    assert models.fingerprint("someone/whole") == models.fingerprint(str(shards))
    last = sorted(there.glob("model-*.safetensors"))[-1]
    last.unlink()
    with pytest.raises(ConfigError, match=f"what is cached of it has no {last.name}"):
        models.check("someone/whole", weights=True)


def test_other_models_are_told_from_language_models(folder: Path) -> None:
    assert models.is_language(str(folder))
    edit(folder / "config.json", lambda found: found.update(model_type="dinov2", architectures=[]))
    refused(folder, "model_type = 'dinov2' .*; only 'vit' is known, and causal language models")
