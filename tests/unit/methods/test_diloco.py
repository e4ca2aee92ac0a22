"""DiLoCo: both its loops by hand, steps instead of epochs, and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from in_process import play, shards
from made_rounds import CLASSES, SAMPLES, SHAPE, Rounds, linear, same
from torch import nn

from methods import diloco, fedavg
from methods.shared import flops
from methods.shared.local_training import train
from nodes.program import FineTuning
from testbed.config_error import ConfigError
from testbed.run.config import RunConfig


def slopes(x: np.ndarray, y: np.ndarray, w: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
    """Gradients of a linear model's cross-entropy."""
    scores = np.exp(x @ w.T + b)
    errors = (scores / scores.sum(axis=1, keepdims=True) - np.eye(CLASSES)[y]) / len(x)
    return [errors.T @ x, errors.sum(axis=0)]


@pytest.mark.parametrize("lost", [{}, {"client-2": 1}])
def test_three_rounds_against_both_loops_by_hand(lost: dict[str, int]) -> None:
    """Batches of twelve have all samples of a client equally often, so that no draw shows."""
    steps, rate, decay = 4, 0.02, 0.1
    played = Rounds(
        diloco,
        dies_after=lost,
        local_steps=steps,
        batch_size=12,
        learning_rate=rate,
        weight_decay=decay,
    )
    outer = [each.double().numpy() for each in played.states[0].values()]
    momentum = [np.zeros_like(each) for each in outer]
    inner = {name: [[np.zeros_like(each) for each in outer] for _ in "mv"] for name in SAMPLES}
    for number in (1, 2, 3):
        present = [name for name in SAMPLES if number == 1 or name not in lost]
        ends = []
        for name in present:
            x = played.parts[name].inputs.flatten(1).double().numpy()
            w, (m, v) = [each.copy() for each in outer], inner[name]
            for step in range(steps * (number - 1) + 1, steps * number + 1):
                for k, g in enumerate(slopes(x, played.parts[name].targets.numpy(), *w)):
                    w[k] -= rate * decay * w[k]
                    m[k] = 0.9 * m[k] + 0.1 * g
                    v[k] = 0.999 * v[k] + 0.001 * g**2
                    m_hat, v_hat = m[k] / (1 - 0.9**step), v[k] / (1 - 0.999**step)
                    w[k] -= rate * m_hat / (np.sqrt(v_hat) + 1e-8)
            ends.append(w)
        for k, found in enumerate(played.states[number].values()):
            share = [SAMPLES[name] for name in present]
            d = outer[k] - np.average([end[k] for end in ends], axis=0, weights=share)
            momentum[k] = 0.9 * momentum[k] + d
            outer[k] = outer[k] - 0.7 * (d + 0.9 * momentum[k])
            np.testing.assert_allclose(found.numpy(), outer[k], rtol=1e-3, atol=1e-5)


def test_the_inner_rate_rises_and_falls_over_the_whole_run() -> None:
    config = diloco.Config(
        local_steps=4, cosine_rounds=3, warmup_steps=4, learning_rate=0.8, variant="head"
    )
    found = [config.rate(step) for step in range(1, 15)]
    rising = [0.2, 0.4, 0.6, 0.8]
    falling = [0.4 * (1 + np.cos(np.pi * done / 8)) for done in range(8)]
    np.testing.assert_allclose(found, [*rising, *falling, 0.0, 0.0], atol=1e-12)
    flat = diloco.Config(warmup_steps=2, learning_rate=0.8)
    assert [flat.rate(step) for step in (1, 2, 3, 10**6)] == [0.4, 0.8, 0.8, 0.8]
    assert diloco.Config(learning_rate=0.8).rate(1) == 0.8


def test_a_client_that_was_not_there_has_the_others_rate() -> None:
    """The rates of AdamW's steps, by client and round; two in three are drawn."""
    rates: dict[int, list[float]] = {}

    class Client(diloco.Client):
        def _pace(self, *_: Any) -> None:
            super()._pace()
            rates.setdefault(self.shard.client, []).append(self.inner.param_groups[0]["lr"])

    config = diloco.Config(
        variant="full", local_steps=2, cosine_rounds=4, warmup_steps=2, learning_rate=0.1
    )
    found = shards(SAMPLES, SHAPE, CLASSES)
    server = diloco.Server(config, linear(), found["client-1"], 0)
    clients = {n: Client(config, linear(), d, d.client) for n, d in found.items()}
    network = play(server, clients, SAMPLES, 5, per_round=2)
    for name, shard in found.items():
        rounds = [m.round for m in network.of("up") if m.sender == name]
        expected = [config.rate(2 * (number - 1) + k) for number in rounds for k in (1, 2)]
        assert rates[shard.client] == expected
    assert any(len(own) < 10 for own in rates.values())


def test_steps_are_full_batches_of_every_sample_equally_often() -> None:
    seen: list[torch.Tensor] = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = linear()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images[:, 0, 0, 0])
            found: torch.Tensor = self.inner(images)
            return found

    model, shard = Watched(), shards({"one": 10}, SHAPE, CLASSES)["one"]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(0)
    train(model, shard, optimizer, epochs=1, batch_size=4, generator=generator, steps=7)
    assert [len(batch) for batch in seen] == [4] * 7
    _, counts = torch.cat(seen).unique(return_counts=True)
    assert len(counts) == 10 and set(counts.tolist()) == {2, 3}
    # Two epochs are over before the third begins.
    assert len(torch.cat(seen)[:10].unique()) == len(torch.cat(seen)[10:20].unique()) == 10


@pytest.mark.parametrize("dp", [{}, {"dp": "sample", "dp_noise": 1.0}])
def test_fedavg_takes_steps_too(dp: dict[str, object]) -> None:
    """A whole number of epochs of them, where batches divide the samples, is those epochs."""
    options = {"batch_size": 2, "learning_rate": 0.05, **dp}
    steps = Rounds(
        fedavg, rounds=1, dies_after={"client-1": 0, "client-3": 0}, local_steps=9, **options
    )
    epochs = Rounds(
        fedavg, rounds=1, dies_after={"client-1": 0, "client-3": 0}, local_epochs=3, **options
    )
    assert same(steps.states, epochs.states)


def test_operations_of_steps_do_not_depend_on_the_samples() -> None:
    model, image = linear(), torch.zeros(1, *SHAPE)
    a_step = flops.step(model, image, model)
    config = fedavg.Config(local_steps=5, batch_size=8)
    assert fedavg.client_flops(config, model, image) == 0
    assert fedavg.fixed_flops(config, model, image) == 5 * 8 * a_step > 0
    config = fedavg.Config(local_epochs=3)
    assert fedavg.client_flops(config, model, image) == 3 * a_step
    assert fedavg.fixed_flops(config, model, image) == 0


def test_its_bytes_are_fedavgs_whatever_the_steps() -> None:
    theirs = Rounds(fedavg).network.payload()
    for steps in (1, 9):
        assert Rounds(diloco, local_steps=steps).network.payload() == theirs


def test_the_defaults_are_the_papers_but_for_the_steps() -> None:
    config = diloco.Config()
    assert (config.server_learning_rate, config.server_momentum) == (0.7, 0.9)
    assert config.nesterov and config.optimizer == "adamw"
    assert config.local_steps == 20


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("local_steps", 0, "local_steps = 0: Expected `int` >= 1"),
        ("local_steps", 2.5, "local_steps = 2.5: Expected `int`"),
        ("cosine_rounds", 0, "cosine_rounds = 0: Expected `int` >= 1"),
        ("server_momentum", 1.0, "server_momentum = 1.0: Expected `float` < 1"),
    ],
)
def test_bad_options_are_refused(option: str, value: object, reason: str) -> None:
    config = RunConfig(method="diloco", options={option: value})  # type: ignore[dict-item]
    with pytest.raises(ConfigError) as refused:
        FineTuning(config, 2)
    assert reason in str(refused.value)


def test_a_warm_up_as_long_as_the_run_is_refused() -> None:
    options = {"cosine_rounds": 2, "local_steps": 5, "warmup_steps": 10}
    with pytest.raises(ConfigError, match="warmup_steps = 10: must be fewer than the 10 steps"):
        FineTuning(RunConfig(method="diloco", options=options), 2)  # type: ignore[arg-type]
