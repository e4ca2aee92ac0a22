"""FedProx: its clients' steps by hand, and what of FedAvg stays as it is."""

from typing import Any

import numpy as np
import pytest
import torch
from made_rounds import CLASSES, SAMPLES, Rounds, linear, same
from torch import nn
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
                logits = shard.inputs.double().flatten(1) @ w.T + b
                near = (w - weight).square().sum() + (b - bias).square().sum()
                loss = F.cross_entropy(logits, shard.targets) + mu / 2 * near
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


class Counted(nn.Module):
    """A linear model, and how many batches it has been trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = linear()
        self.spec = self.inner.spec
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.batches += 1
        found: torch.Tensor = self.inner(images)
        return found


def batches_by_client(rounds: int, **options: Any) -> list[dict[str, int]]:
    """Batches that each client trained on, round by round; one an epoch."""
    found: list[dict[str, int]] = []
    options = {"batch_size": 100, "local_epochs": 5, "variant": "full", **options}
    played = Rounds(fedprox, rounds=rounds, model=Counted(), **options)
    for number in range(1, rounds + 1):
        start = float(played.states[number - 1]["batches"])
        came = [message for message in played.network.of("up") if message.round == number]
        found.append({m.sender: round(float(m.tensors["batches"]) - start) for m in came})
    return found


@pytest.mark.thorough
def test_stragglers_do_from_one_to_all_but_one_of_their_epochs() -> None:
    everyone = [n for each in batches_by_client(12, straggler_share=1.0) for n in each.values()]
    assert len(everyone) == 36 and set(everyone) == {1, 2, 3, 4}
    nobody = [n for each in batches_by_client(2) for n in each.values()]
    assert nobody == [5] * 6
    some = [n for each in batches_by_client(20, straggler_share=0.5) for n in each.values()]
    assert 0.35 < sum(n < 5 for n in some) / len(some) < 0.65


def test_who_is_a_straggler_is_a_matter_of_seed_round_and_client() -> None:
    drawn = batches_by_client(6, straggler_share=0.9)
    assert drawn == batches_by_client(6, straggler_share=0.9)
    assert len({tuple(sorted(each.items())) for each in drawn}) > 3
    assert any(len(set(each.values())) > 1 for each in drawn)
    # Whoever else was there, and whatever it did before.
    alone = batches_by_client(6, straggler_share=0.9, dies_after={"client-1": 0, "client-3": 0})
    assert [each["client-2"] for each in alone] == [each["client-2"] for each in drawn]


def test_a_straggler_spends_less_privacy() -> None:
    options = {"dp": "sample", "dp_noise": 1.0, "batch_size": 4, "local_epochs": 4, "rounds": 2}
    spent = []
    for share in (0.0, 1.0):
        played = Rounds(fedprox, straggler_share=share, **options)
        spent.append(played.server.metrics()["epsilon"])
    assert 0 < spent[1] < spent[0]


def test_a_stragglers_operations_are_half_on_average() -> None:
    model, image = backbone(), torch.zeros(1, 1, 4, 4)
    config = fedprox.Config(straggler_share=0.5, local_epochs=4)
    every = fedprox.client_flops(fedprox.Config(local_epochs=4), model, image)
    assert fedprox.client_flops(config, model, image) == 0.75 * every > 0


def test_stragglers_need_the_rounds_number() -> None:
    fedprox.all_reduce(fedprox.Config())
    with pytest.raises(ValueError, match=r"straggler_share = 0.9: .*take transport=zmq"):
        fedprox.all_reduce(fedprox.Config(straggler_share=0.9))


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
        ("straggler_share", 1.5, "straggler_share = 1.5: Expected `float` <= 1"),
    ],
)
def test_bad_options_are_refused(option: str, value: object, reason: str) -> None:
    config = RunConfig(method="fedprox", options={option: value})  # type: ignore[dict-item]
    with pytest.raises(ConfigError) as refused:
        FineTuning(config, 2)
    assert reason in str(refused.value)


@pytest.mark.parametrize("options", [{"local_epochs": 1}, {"local_steps": 5}])
def test_stragglers_need_epochs_to_leave_out(options: dict[str, int]) -> None:
    given = {"straggler_share": 0.9, **options}
    with pytest.raises(ConfigError, match=r"straggler_share = 0.9: .*take local_epochs of 2 or"):
        FineTuning(RunConfig(method="fedprox", options=given), 2)  # type: ignore[arg-type]
