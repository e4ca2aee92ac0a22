"""Methods on language models of transformers: what they send, real and modelled."""

from pathlib import Path
from typing import Any

import few
import made_causal
import pytest
import torch
from copied import copied
from in_process import Network, play
from made_text import LENGTH, SAMPLES, nobody, text_shards
from torch import Tensor

import methods
from methods.shared.backbone import tied
from nodes.compute import Modelled, noise
from nodes.workload import models

V, D = made_causal.VOCABULARY, 32
KINDS = ["gpt2", "gemma2"]
"""Learnt places and fused projections; windows, grouped heads and norms on both sides."""
CASES: list[tuple[str, dict[str, Any]]] = [
    ("fedavg", {}),
    ("fedpeft", {"variant": "prompt", "prompt_length": 3}),
    ("fedpeft", {"variant": "adapter", "adapter_width": 2}),
    ("fedpeft", {"rank": 2, "dp": "sample", "dp_noise": 1.0}),
    ("kdfft", {"rank": 2, "public_samples": 8, "public_batch": 4, "top_k": 5}),
    ("split", {}),
    ("sfprompt", {"prompt_length": 3}),
    ("salientgrads", {"density": 0.5}),
]


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_causal.folder_of(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def some_noise() -> Tensor:
    return noise(0)


def played(
    folder: Path, name: str, options: dict[str, Any], device: str, **compute: Any
) -> tuple[Any, Network]:
    method = methods.load(name)
    config = few.config(name, options)
    method.check(config, models.skeleton(str(folder), 1))
    data, own = text_shards(), nobody()
    if device == "meta":
        model: Any = models.skeleton(str(folder), 1)
        data = {
            name: each._replace(inputs=each.inputs.to("meta"), public=each.public.to("meta"))
            for name, each in data.items()
        }
    else:
        model = models.build(str(folder), 1, 0)
    torch.manual_seed(1)
    adapted = method.adapt(config, model)
    server = method.Server(config, copied(adapted), own, 0)
    clients = {
        name: method.Client(config, copied(adapted), shard, shard.client)
        for name, shard in data.items()
    }
    return server, play(server, clients, SAMPLES, **compute)


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "options"), CASES)
def test_bytes_are_those_of_modelled_compute(
    folder: Path, name: str, options: dict[str, Any], some_noise: Tensor
) -> None:
    server, real = played(folder, name, options, "cpu")
    _, modelled = played(folder, name, options, "meta", compute=lambda: Modelled(1e18, some_noise))
    assert not real.missed() and not modelled.missed()
    assert real.payload() == modelled.payload() and real.of("up")
    if server.model is not None:
        assert 0 < server.evaluate(*text_shards()["client-1"][:2])["loss"] < 50
        assert tied(server.model) == (name not in ("split", "sfprompt"))


@pytest.mark.thorough
def test_bytes_by_formula(folder: Path) -> None:
    _, sent = played(folder, *CASES[1], "cpu")
    assert {each.payload_bytes for each in sent.of("up")} == {4 * made_causal.DEPTH * 3 * D}
    _, sent = played(folder, *CASES[2], "cpu")
    assert {each.payload_bytes for each in sent.of("up")} == {4 * (2 * D * 2 + 2 + D)}
    _, sent = played(folder, *CASES[4], "cpu")
    each = 4 * 5 + 4 + 5
    assert {message.payload_bytes for message in sent.of("up")} == {4 * LENGTH * each + 8}
    _, sent = played(folder, *CASES[6], "cpu")
    smashed = [message.payload_bytes for message in sent.of("up", "smashed")]
    assert sum(smashed) == sum(-(-n // 2) for n in SAMPLES.values()) * (LENGTH + 3) * D * 4
