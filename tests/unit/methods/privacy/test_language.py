"""Privacy of a language model: gradients by sample of tied weights, and whole rounds."""

from typing import Any

import heavy
import pytest
import torch
from in_process import play
from made_text import SAMPLES, language_model, nobody, text_shards
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from methods import fedpeft
from methods.shared.local_training import trainable_state
from nodes.workload.models import ModelSpec, VisionTransformer


def one_by_one(model: nn.Module, inputs: Tensor, targets: Tensor) -> list[dict[str, Tensor]]:
    found = []
    for each, truth in zip(inputs, targets, strict=True):
        model.zero_grad()
        with sdpa_kernel(SDPBackend.MATH):
            logits = model(each[None])
            F.cross_entropy(logits.view(-1, logits.shape[-1]), truth.flatten()).backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    return found


def assert_alike(model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
    found = heavy.dp_sample.gradients(model, inputs, targets)
    for number, expected in enumerate(one_by_one(model, inputs, targets)):
        assert expected.keys() == found.keys()
        for name, each in expected.items():
            assert torch.allclose(found[name][number], each, atol=1e-6), name


@pytest.mark.parametrize("variant", ["full", "lora", "ffalora", "adapter", "prompt", "ia3"])
@pytest.mark.parametrize("spec", [{}, {"tied": False}, {"kv_heads": 1}])
def test_gradients_by_sample_are_those_of_single_samples(
    variant: str, spec: dict[str, Any]
) -> None:
    config = fedpeft.Config(variant=variant, rank=2, dp="sample", dp_noise=1.0)  # type: ignore[arg-type]
    model = language_model(**spec)
    fedpeft.check(config, model)
    model = fedpeft.adapt(config, model)
    with torch.no_grad():
        for each in model.parameters():
            each.add_(0.1 * torch.randn_like(each))
    inputs, targets, *_ = text_shards()["client-1"]
    assert_alike(model, inputs[:3], targets[:3])


def test_a_parameter_of_two_layers_has_the_gradients_of_both() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(ModelSpec(side=4, patch=2, width=16, depth=2, heads=2), 3)
    model.blocks[0].contract.bias = model.head.norm.bias
    config = fedpeft.Config(variant="full", dp="sample", dp_noise=1.0)
    fedpeft.check(config, model)
    assert_alike(fedpeft.adapt(config, model), torch.rand(3, 1, 4, 4), torch.arange(3))


@pytest.mark.parametrize("dp", ["sample", "client"])
def test_a_round_with_privacy(dp: str) -> None:
    config = fedpeft.Config(variant="full", dp=dp, dp_noise=1.0, dp_delta=0.05)  # type: ignore[arg-type]
    models = [fedpeft.adapt(config, language_model()) for _ in range(4)]
    server = fedpeft.Server(config, models[0], nobody(), 0)
    clients = {
        name: fedpeft.Client(config, model, shard, shard.client)
        for (name, shard), model in zip(text_shards().items(), models[1:], strict=True)
    }
    before = trainable_state(models[0])
    network = play(server, clients, SAMPLES, rounds=2)
    assert not network.missed()
    size = 4 * sum(each.numel() for each in before.values())
    assert network.payload() == {"up": {"model": 6 * size}, "down": {"model": 6 * size}}
    assert server.evaluate(*text_shards()["client-1"][:2])["epsilon"] > 0
    assert models[0].head.classifier.weight is models[0].embed.weight
    assert not torch.equal(models[0].embed.weight, before["embed.weight"])
