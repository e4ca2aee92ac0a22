"""FedProx: its clients' steps by hand, and what of FedAvg stays as it is."""

import numpy as np
import pytest
import torch
from made_rounds import CLASSES, SAMPLES, Rounds, same
from torch.nn import functional as F

from methods import fedavg, fedpeft, fedprox
from nodes.program import FineTuning
from nodes.workload.models import ModelSpec, VisionTransformer
from testbed.config_error import ConfigError
from testbed.run.config import RunConfig

SPEC = ModelSpec(side=4, patch=2, width=16, depth=2, heads=2)


def backbone() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(SPEC, CLASSES)


def test_rounds_against_gradients_of_the_whole_loss_by_hand() -> None:
    """Two rounds of three full batches each; SGD's Nesterov momentum begins anew in each."""
    mu, rate = 0.7, 0.3
    played = Rounds(
        fedprox,
        rounds=2,
        mu=mu,
        local_epochs=3,
        batch_size=12,
        optimizer="sgd",
        learning_rate=rate,
        weight_decay=0.0,
    )
    weight, bias = (each.double() for each in played.states[0].values())
    for number in (1, 2):
        ends = []
        for shard in played.parts.values():
            w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
            velocity = [torch.zeros_like(w), torch.zeros_like(b)]
            for _ in range(3):
                logits = shard.images.double().flatten(1) @ w.T + b
                near = (w - weight).square().sum() + (b - bias).square().sum()
                loss = F.cross_entropy(logits, shard.labels) + mu / 2 * near
                for k, (each, slope) in enumerate(
                    zip((w, b), torch.autograd.grad(loss, (w, b)), strict=True)
                ):
                    velocity[k] = 0.9 * velocity[k] + slope
                    each.data -= rate * (slope + 0.9 * velocity[k])
            ends.append((w.detach(), b.detach()))
        share = torch.tensor([*SAMPLES.values()], dtype=torch.float64) / sum(SAMPLES.values())
        weight, bias = (
            torch.tensordot(share, torch.stack(each), dims=1) for each in zip(*ends, strict=True)
        )
        for found, expected in zip(played.states[number].values(), (weight, bias), strict=True):
            np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"optimizer": "sgd"}, {"dp": "sample", "dp_noise": 1.0}])
def test_without_a_term_it_is_fedavg_to_the_bit(options: dict[str, object]) -> None:
    options = {"learning_rate": 0.05, "batch_size": 4, **options}
    without = Rounds(fedprox, mu=0.0, **options)
    assert same(without.states, Rounds(fedavg, **options).states)
    assert not same(without.states, Rounds(fedprox, mu=1.0, **options).states)


def test_without_a_term_it_is_fedpeft_to_the_bit() -> None:
    ours = Rounds(fedprox, model=backbone(), mu=0.0, batch_size=4)
    assert same(ours.states, Rounds(fedpeft, model=backbone(), batch_size=4).states)


def test_the_larger_the_term_the_nearer_clients_stay() -> None:
    options = {"learning_rate": 0.01, "batch_size": 4, "optimizer": "sgd"}
    lengths = []
    for mu in (0.0, 1.0, 10.0):
        start, end = Rounds(fedprox, rounds=1, mu=mu, **options).states
        lengths.append(float(sum((end[name] - start[name]).square().sum() for name in end)))
    assert lengths == sorted(lengths, reverse=True)


def test_its_bytes_are_fedavgs_and_fedpefts() -> None:
    ours, theirs = Rounds(fedprox), Rounds(fedavg)
    assert ours.network.payload() == theirs.network.payload()
    size = 3 * 3 * 4 * (16 * CLASSES + CLASSES)
    assert ours.network.payload() == {"up": {"model": size}, "down": {"model": size}}
    ours, theirs = (Rounds(each, model=backbone()) for each in (fedprox, fedpeft))
    assert ours.network.payload() == theirs.network.payload()
    assert fedprox.traffic(ours.config, ours.server.model) == fedpeft.traffic(
        theirs.config, theirs.server.model
    )


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("mu", -0.1, "mu = -0.1: Expected `float` >= 0"),
        ("mu", "much", "mu = 'much': Expected `float`"),
        ("mue", 1.0, "unknown field 'mue': did you mean mu?"),
        ("local_steps", 0, "local_steps = 0: Expected `int` >= 1"),
    ],
)
def test_bad_options_are_refused(option: str, value: object, reason: str) -> None:
    config = RunConfig(method="fedprox", options={option: value})  # type: ignore[dict-item]
    with pytest.raises(ConfigError) as refused:
        FineTuning(config, 2)
    assert reason in str(refused.value)
