"""Methods on a checkpoint in bfloat16: what is trained and sent is in it, and nobody is missed."""

import math
from pathlib import Path
from typing import Any

import few
import made_causal
import msgspec
import pytest
import torch
from copied import copied
from in_process import play
from made_text import SAMPLES, language_model, nobody, text_shards
from torch import nn

import methods
from nodes.workload import models

SHARED = {"public_samples": 8, "public_batch": 4}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("fedavg", {}),
    *(("fedpeft", {"variant": variant}) for variant in ("lora", "ffalora", "ia3")),
    *(("fedpeft", {"variant": variant}) for variant in ("prompt", "adapter", "head", "full")),
    ("fedpeft", {"dp": "sample", "dp_noise": 1.0}),
    ("fedpeft", {"dp": "client", "dp_noise": 1.0}),
    ("fedprox", {}),
    ("fedavgm", {}),
    ("fedadam", {}),
    ("fedbuff", {"buffer_size": 2}),
    ("diloco", {"local_steps": 2}),
    ("feddf", {"public_samples": 8}),
    ("flora", {"ranks": "4,2"}),
    ("flexlora", {"ranks": "4,2"}),
    ("hetlora", {"ranks": "4,2"}),
    ("fedkseed", {"candidates": 64, "steps": 5}),
    *(("kdfft", {**SHARED, "top_k": top_k}) for top_k in (0, 5)),
    *(("fedmd", {**SHARED, "top_k": top_k, "depths": "1,2"}) for top_k in (0, 5)),
    ("fedkd", {"student_blocks": 1, "rank": 2, "attention_loss": False}),
    ("fedkd", {"student_blocks": "all", "attention_loss": False}),
    ("split", {}),
    ("split", {"labels": "private"}),
    *(("splitfed", {"variant": variant}) for variant in ("v1", "v2")),
    ("fedlite", {"centroids": 4, "subvectors": 8}),
    ("sfprompt", {"prompt_length": 3}),
    ("fedcompress", {"representations": "gram", "public_source": "held-out", "public_samples": 8}),
    ("salientgrads", {"density": 0.5}),
    ("dispfl", {"topology": "full"}),
    ("fedsp", {"prefix_length": 3, "align_steps": 2, "server_samples": 8}),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bf16")
    theirs = made_causal.theirs("llama", tie_word_embeddings=False)
    theirs.to(torch.bfloat16).save_pretrained(path)
    return path


def plays(name: str, options: dict[str, Any], model: nn.Module) -> None:
    """Two rounds in which nobody is missed, after which every model has a finite loss."""
    method = methods.load(name)
    config = few.config(name, options)
    method.check(config, model)
    torch.manual_seed(1)
    adapted = method.adapt(config, model)
    server = method.Server(config, copied(adapted), nobody(), 0)
    clients = {
        name: method.Client(config, copied(adapted), shard, shard.client)
        for name, shard in text_shards().items()
    }
    network = play(server, clients, SAMPLES, rounds=2)
    assert not network.missed() and (network.of("up") or network.of("among"))
    judged = [each for each in (server, *clients.values()) if hasattr(each, "evaluate")]
    found = [each.evaluate(*text_shards()["client-1"][:2]) for each in judged]
    assert any(found)
    assert all(math.isfinite(each["loss"]) for each in found if each)


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_a_method_plays_two_rounds(name: str, options: dict[str, Any], folder: Path) -> None:
    method = methods.load(name)
    method.check(msgspec.convert(options, method.Config), models.skeleton(str(folder), 1))
    plays(name, options, models.build(str(folder), 1, 0))


@pytest.mark.parametrize("structures", ["hidden", "heads", "both"])
def test_pruning_plays_on_a_model_of_our_own_in_bfloat16(structures: str) -> None:
    own = language_model(kv_heads=None).bfloat16()
    plays("fedpruning", {"structures": structures, "layers": "uniform"}, own)


@pytest.mark.parametrize("structures", ["hidden", "heads"])
def test_pruning_is_refused_on_a_checkpoint_by_what_its_blocks_lack(
    structures: str, folder: Path
) -> None:
    method = methods.load("fedpruning")
    config = msgspec.convert({"structures": structures}, method.Config)
    with pytest.raises(ValueError, match=r"block 0 of this model has no .*; take one that ships"):
        method.check(config, models.skeleton(str(folder), 1))


def test_every_method_of_text_is_among_them() -> None:
    of_images = {"feddm", "fedptr"}
    # By parts that a checkpoint's blocks do not have by those names.
    named = {"fedpruning"}
    assert {name for name, _ in CASES} == set(methods.names()) - of_images - named
