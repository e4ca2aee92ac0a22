"""DP-FedAvg: clipping on both sides, the noisy mean by hand, and whole rounds."""

import asyncio
from collections.abc import Mapping
from typing import Any

import heavy
import numpy as np
import pytest
import torch
from copied import copied
from in_process import Network, play, shards
from torch import Tensor, nn

import methods
from methods import fedavg
from methods.shared.local_training import trainable_state
from nodes.fleet import Fleet
from nodes.program import FineTuning
from testbed.config_error import ConfigError
from testbed.run.config import RunConfig

CLASSES = 3
SAMPLES = {"client-1": 12, "client-2": 20, "client-3": 8}


def length(tensors: Mapping[str, Tensor]) -> float:
    return float(torch.cat([each.double().flatten() for each in tensors.values()]).norm())


def test_a_change_is_clipped_over_all_tensors_together() -> None:
    start = {"w": torch.zeros(2, 2), "b": torch.ones(1)}
    end = {"w": torch.tensor([[2.0, 0.0], [0.0, 1.0]]), "b": torch.tensor([3.0])}
    # Its length is sqrt(4 + 1 + 4).
    found = heavy.dp_client.clipped_change(start, end, 1.5)
    assert found["w"].tolist() == [[1.0, 0.0], [0.0, 0.5]] and found["b"].tolist() == [1.0]
    whole = heavy.dp_client.clipped_change(start, end, 3.5)
    assert whole["w"].tolist() == end["w"].tolist() and whole["b"].tolist() == [2.0]
    still = heavy.dp_client.clipped_change(start, start, 1.0)
    assert not any(each.any() for each in still.values())


def noisy_mean(start: dict[str, Tensor], **options: Any) -> Any:
    chosen = {"clip": 1e6, "noise": 0.0, "expected": 2, **options}
    return heavy.dp_client.NoisyMean(start, generator=torch.Generator().manual_seed(0), **chosen)


def test_without_noise_and_clipping_it_is_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    start, *ends = ({"w": torch.randn(3, 4, generator=generator)} for _ in range(4))
    mean = noisy_mean(start, expected=3)
    for weight, end in enumerate(ends, start=1):
        mean.add(end, weight)
    expected = np.mean([end["w"].numpy() for end in ends], axis=0)
    assert mean.result()["w"].dtype == torch.float32
    np.testing.assert_allclose(mean.result()["w"].numpy(), expected, rtol=1e-6, atol=1e-6)


def test_who_does_not_answer_counts_as_no_change() -> None:
    mean = noisy_mean({"w": torch.tensor([1.0])}, expected=4)
    mean.add({"w": torch.tensor([3.0])}, 1)
    assert mean.result()["w"].tolist() == [1.5]


@pytest.mark.parametrize("size", [10.0, 1e20, 3e38])
def test_the_server_clips_what_a_client_did_not(size: float) -> None:
    start = {"w": torch.full((50,), -size), "b": torch.zeros(3)}
    mean = noisy_mean(start, clip=0.5)
    mean.add({"w": torch.full((50,), size), "b": torch.full((3,), size)}, 1)
    change = {name: each.double() for name, each in mean._sums.items()}
    assert length(change) == pytest.approx(0.5)
    assert all(torch.isfinite(each).all() for each in mean.result().values())


def test_the_noise_has_the_deviation_that_was_asked_for() -> None:
    start = {"w": torch.zeros(100, 100), "b": torch.zeros(100)}
    mean = noisy_mean(start, clip=0.5, noise=3.0, expected=10)
    found = torch.cat([each.flatten() for each in mean.result().values()])
    expected = 3.0 * 0.5 / 10
    # Four standard errors.
    assert found.std().item() == pytest.approx(expected, rel=4 / (2 * len(found)) ** 0.5)
    assert abs(found.mean().item()) < 4 * expected / len(found) ** 0.5
    again = noisy_mean(start, clip=0.5, noise=3.0, expected=10).result()
    assert torch.equal(torch.cat([each.flatten() for each in again.values()]), found)


def test_what_a_client_sends_is_clipped() -> None:
    side = heavy.dp_client.ClientSide(fedavg.Config(dp="client", dp_noise=1.0, dp_clip=0.25), 10)
    start, end = {"w": torch.ones(40)}, {"w": torch.full((40,), 3.0)}
    sent = side.outgoing(start, end)
    assert sent["w"].dtype == torch.float32
    assert length({"w": sent["w"] - start["w"]}) == pytest.approx(0.25, rel=1e-5)


# Rounds


class Rounds:
    def __init__(self, rounds: int = 1, **options: Any) -> None:
        config = fedavg.Config(dp="client", learning_rate=0.1, batch_size=4, **options)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES))
        parts = shards(SAMPLES, (1, 4, 4), CLASSES)
        some = parts["client-1"]
        server = fedavg.Server(config, copied(model), some, 7)
        self.epsilons = [server.evaluate(some.inputs, some.targets)["epsilon"]]
        self.states = [trainable_state(model)]

        def note(number: int) -> None:
            self.epsilons.append(server.evaluate(some.inputs, some.targets)["epsilon"])
            self.states.append(trainable_state(server.model))

        clients = {
            name: fedavg.Client(config, copied(model), shard, number)
            for number, (name, shard) in enumerate(parts.items())
        }
        self.network: Network = play(server, clients, SAMPLES, rounds, after_round=note)


def test_a_round_is_the_noisy_mean_of_what_was_sent() -> None:
    played = Rounds(dp_noise=2.0, dp_clip=0.3)
    before, after = played.states
    updates = [message.tensors for message in played.network.of("up")]
    for update in updates:
        assert length({n: update[n] - before[n] for n in before}) == pytest.approx(0.3, rel=1e-5)
    generator = torch.Generator().manual_seed(7)
    for name, start in before.items():
        noise = torch.randn(start.shape, generator=generator, dtype=torch.float64).numpy()
        changes = sum((update[name] - start).double().numpy() for update in updates)
        expected = start.numpy() + (changes + 2.0 * 0.3 * noise) / 3
        np.testing.assert_allclose(after[name].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_epsilon_round_by_round_and_the_end_of_the_budget() -> None:
    played = Rounds(rounds=3, dp_epsilon=5.0, dp_rounds=2)
    zero, first, second, third = played.epsilons
    assert zero == 0 and 0 < first < second <= 5.0 and third == second
    assert 5.0 - second < 0.02
    moved = [
        not torch.equal(before["1.weight"], after["1.weight"])
        for before, after in zip(played.states, played.states[1:], strict=False)
    ]
    assert moved == [True, True, False]
    # Nobody is asked for what may not be used.
    assert len(played.network.of("down")) == len(played.network.of("up")) == 6


class SomeOf:
    """A fleet of 20 clients, 4 of them in the round, none of whom answers."""

    sampling_rate = 4 / 20

    clients = tuple(f"client-{number}" for number in range(1, 5))

    async def broadcast(self, kind: str, tensors: Mapping[str, Tensor], base: Any) -> Any:
        return tensors

    async def gather(self, kind: str, like: Mapping[str, Tensor], base: Any) -> Any:
        for none in ():
            yield none


def test_the_rate_is_the_share_of_clients_that_a_round_takes() -> None:
    model = nn.Linear(4, CLASSES)
    config = fedavg.Config(dp="client", dp_noise=1.2)
    nothing = shards({"a": 2}, (4,), CLASSES)["a"]
    server = fedavg.Server(config, model, nothing, 0)
    before = model.weight.detach().clone()
    for _ in range(10):
        asyncio.run(server.round(SomeOf()))  # type: ignore[arg-type]
    accountant = heavy.accountants.RDPAccountant()
    accountant.history = [(1.2, 4 / 20, 10)]
    found = server.evaluate(nothing.inputs, nothing.targets)["epsilon"]
    assert found == pytest.approx(accountant.get_epsilon(1e-3), rel=0.01)
    # That nobody answered does not show: the noise is there all the same.
    assert not torch.equal(model.weight, before)


def costs(clients: int, away: int, per_round: int | None, rounds: int = 4) -> float:
    """Epsilon of a run whose rounds draw ``per_round`` of those clients who are there."""
    names = [f"client-{number}" for number in range(1, clients + 1)]
    fleet = Fleet(None, dict.fromkeys(names, 10), lambda event: None, 60.0, per_round)  # type: ignore[arg-type]
    for name in names:
        fleet.members.join(name)
    for name in names[:away]:
        fleet.members.leave(name, "the start")
    config = fedavg.Config(dp="client", dp_noise=1.0)
    side = heavy.dp_client.ServerSide(config, 0)
    for number in range(1, rounds + 1):
        fleet.begin(number)
        assert side.mean({"w": torch.zeros(1)}, fleet) is not None
    return side.metrics()["epsilon"]


@pytest.mark.parametrize(
    ("clients", "away", "per_round", "rate"),
    [
        (6, 0, None, 1.0),
        (6, 3, None, 1.0),
        (6, 3, 3, 1.0),
        (6, 5, 3, 1.0),
        (8, 4, 2, 0.5),
        (20, 0, 4, 0.2),
    ],
)
def test_the_rate_is_of_those_who_were_there_to_be_drawn(
    clients: int, away: int, per_round: int | None, rate: float
) -> None:
    accountant = heavy.accountants.RDPAccountant()
    accountant.history = [(1.0, rate, 4)]
    right = accountant.get_epsilon(1e-3)
    assert costs(clients, away, per_round) == pytest.approx(right, rel=0.02)
    if rate == 1:
        # Four Gaussian mechanisms are one of half the noise, whose epsilon is known exactly.
        assert costs(clients, away, per_round) > 7.58


def test_one_drawn_who_left_at_once_does_not_make_the_round_cheaper() -> None:
    names = ["client-1", "client-2", "client-3", "client-4"]
    fleet = Fleet(None, dict.fromkeys(names, 10), lambda event: None, 60.0, 2)  # type: ignore[arg-type]
    for name in names:
        fleet.members.join(name)
    fleet.begin(1)
    fleet.lose(fleet.clients[0], "killed")
    assert len(fleet.clients) == 1 and fleet.sampling_rate == 0.5


@pytest.mark.parametrize(
    ("options", "samples", "text"),
    [
        ({"dp": "client", "dp_delta": 0.05}, [9] * 20, r"less than 1 / 20, one in the clients"),
        ({"dp": "client"}, [9] * 1000, r"dp_delta = 0.001: must be less than 1 / 1000"),
        ({"dp": "sample", "dp_delta": 0.01}, [9, 200], r"less than 1 / 200, one in the samples"),
        ({"dp": "client", "dp_delta": 0.049}, [9] * 20, None),
        ({"dp": "sample", "dp_delta": 0.01}, [9, 99], None),
        ({"dp": "none"}, [5000], None),
    ],
)
def test_delta_is_less_than_one_in_those_protected(
    options: dict[str, Any], samples: list[int], text: str | None
) -> None:
    noise = {} if options["dp"] == "none" else {"dp_noise": 1.0}
    config = fedavg.Config(**options, **noise)
    for name in ("fedavg", "fedpeft", "fedbuff"):
        check = methods.load(name).check_samples
        if text is None:
            check(config, samples)
            continue
        with pytest.raises(ValueError, match=text):
            check(config, samples)


def test_too_great_a_delta_is_refused_before_a_node_starts() -> None:
    options = {"dp": "client", "dp_noise": 1.0, "dp_delta": 0.5}
    run = RunConfig(method="fedavg", options=options)
    with pytest.raises(ConfigError, match=r"options of method fedavg: dp_delta = 0.5: .* 1 / 2,"):
        FineTuning(run, clients=2)
    options = {"dp": "sample", "dp_noise": 1.0, "dp_delta": 0.01}
    run = RunConfig(method="fedavg", options=options, train_samples=300, partition="iid")
    task = FineTuning(run, clients=2)
    with pytest.raises(ConfigError, match=r"dp_delta = 0.01: .* 1 / 150, .* samples"):
        task.prepare()
