"""FedAvgM: its server's steps by hand, and what of FedAvg stays as it is."""

import numpy as np
import pytest
import torch
from made_rounds import CLASSES, SAMPLES, Rounds, same
from torch import Tensor, nn

from methods import fedavg, fedavgm, fedpeft
from methods.shared.server_step import stepped
from nodes.program import FineTuning
from nodes.workload.models import ModelSpec, VisionTransformer
from testbed.config_error import ConfigError
from testbed.run.config import RunConfig

SPEC = ModelSpec(side=4, patch=2, width=16, depth=2, heads=2)
TRAINING = {"learning_rate": 0.05, "batch_size": 4}


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("lost", [{}, {"client-2": 1}])
def test_three_steps_of_the_server_by_hand(nesterov: bool, lost: dict[str, int]) -> None:
    """By the paper's signs: v = beta v + (w_t - mean), w = w_t - eta v."""
    beta, eta = 0.8, 0.6
    played = Rounds(
        fedavgm,
        dies_after=lost,
        server_momentum=beta,
        server_learning_rate=eta,
        nesterov=nesterov,
        **TRAINING,
    )
    expected = {name: each.double().numpy() for name, each in played.states[0].items()}
    v = {name: np.zeros_like(each) for name, each in expected.items()}
    for number in (1, 2, 3):
        mean = played.mean(number)
        for name, w in expected.items():
            slope = w - mean[name]
            v[name] = beta * v[name] + slope
            expected[name] = w - eta * (slope + beta * v[name] if nesterov else v[name])
            found = played.states[number][name].numpy()
            np.testing.assert_allclose(found, expected[name], rtol=1e-5, atol=1e-7)


def test_nesterovs_step_is_torchs() -> None:
    played = Rounds(fedavgm, nesterov=True, server_momentum=0.9, server_learning_rate=0.7)
    weights = [nn.Parameter(each.clone()) for each in played.states[0].values()]
    optimizer = torch.optim.SGD(weights, lr=0.7, momentum=0.9, nesterov=True)
    for number in (1, 2, 3):
        for weight, mean in zip(weights, played.mean(number).values(), strict=True):
            weight.grad = weight.detach() - torch.from_numpy(mean).float()
        optimizer.step()
        for weight, found in zip(weights, played.states[number].values(), strict=True):
            torch.testing.assert_close(found, weight.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{}, {"dp": "sample", "dp_noise": 1.0}, {"dp": "client", "dp_epsilon": 20.0, "dp_rounds": 3}],
)
def test_without_momentum_and_at_a_rate_of_one_it_is_fedavg(options: dict[str, object]) -> None:
    options = {**TRAINING, **options}
    plain = Rounds(fedavg, **options)
    without = Rounds(fedavgm, server_momentum=0.0, server_learning_rate=1.0, **options)
    assert same(without.states, plain.states)
    some = plain.parts["client-1"]
    metrics = [each.server.evaluate(some.inputs, some.targets) for each in (plain, without)]
    assert metrics[0] == metrics[1] and ("epsilon" in metrics[0]) == ("dp" in options)
    assert not same(Rounds(fedavgm, **options).states, plain.states)


def test_its_bytes_are_fedavgs_and_fedpefts() -> None:
    assert Rounds(fedavgm).network.payload() == Rounds(fedavg).network.payload()
    torch.manual_seed(0)
    model = VisionTransformer(SPEC, CLASSES)
    ours, theirs = (Rounds(each, rounds=2, model=model) for each in (fedavgm, fedpeft))
    assert ours.network.payload() == theirs.network.payload()


def test_a_round_without_updates_moves_nothing() -> None:
    played = Rounds(fedavgm, rounds=2, dies_after=dict.fromkeys(SAMPLES, 1))
    assert same(played.states[1:2], played.states[2:])
    velocity = played.server.velocity
    assert velocity and all(
        torch.allclose(each, played.states[1][name] - played.states[0][name], atol=1e-6)
        for name, each in velocity.items()
    )


def test_a_step_is_a_parameters_and_buffers_are_the_means() -> None:
    model = nn.BatchNorm1d(2)
    start: dict[str, Tensor] = {
        "weight": torch.tensor([1.0, 2.0]),
        "running_mean": torch.tensor([0.0, 1.0]),
        "num_batches_tracked": torch.tensor(4),
    }
    mean = {
        "weight": torch.tensor([2.0, 0.0]),
        "running_mean": torch.tensor([1.0, 3.0]),
        "num_batches_tracked": torch.tensor(6),
    }
    found = stepped(model, start, mean, lambda name, change: 10 * change)
    assert found["weight"].tolist() == [11.0, -18.0]
    assert found["running_mean"] is mean["running_mean"]
    assert found["num_batches_tracked"] is mean["num_batches_tracked"]


def test_a_step_by_the_whole_change_ends_at_the_mean_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    size = 10.0 ** torch.randint(-1, 2, (2, 10_000), generator=generator)
    start, mean = torch.randn(2, 10_000, generator=generator) * size
    model = nn.Linear(10_000, 1, bias=False)
    found = stepped(model, {"weight": start}, {"weight": mean}, lambda name, change: change)
    assert torch.equal(found["weight"].float(), mean)


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("server_momentum", 1.0, "server_momentum = 1.0: Expected `float` < 1"),
        ("server_momentum", -0.1, "server_momentum = -0.1: Expected `float` >= 0"),
        ("server_learning_rate", 0.0, "server_learning_rate = 0.0: Expected `float` > 0"),
        ("nesterov", "often", "nesterov = 'often': Expected `bool`"),
    ],
)
def test_bad_options_are_refused(option: str, value: object, reason: str) -> None:
    config = RunConfig(method="fedavgm", options={option: value})  # type: ignore[dict-item]
    with pytest.raises(ConfigError) as refused:
        FineTuning(config, 2)
    assert reason in str(refused.value)
