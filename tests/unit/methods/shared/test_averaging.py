"""Options of local training: a rate that falls over rounds, and batches in place of epochs."""

import threading
from typing import Any

import msgspec
import pytest
import torch
from in_process import play, shards
from torch import Tensor

import methods
from methods import Shard, fedavg, flexlora
from methods.shared import low_rank
from methods.shared.averaging import Training
from nodes.workload.models import ModelSpec, VisionTransformer

SPEC = ModelSpec(side=8, patch=4, width=8, depth=3, heads=2)
CLASSES = 3
SHAPE = (1, 8, 8)
COUNTS = {"client-1": 5, "client-2": 9}
SMALL: dict[str, dict[str, Any]] = {
    **{name: {"ranks": "4,2"} for name in ("flora", "flexlora", "hetlora")},
    "feddf": {"public_samples": 8},
    "fedptr": {"match_steps": 1},
}


def played(name: str, **options: Any) -> None:
    method = methods.load(name)
    config = msgspec.convert(SMALL.get(name, {}) | {"batch_size": 4} | options, method.Config)
    public = torch.rand(method.public_samples(config), *SHAPE)
    data = {
        name: shard._replace(public=public)
        for name, shard in shards(COUNTS, SHAPE, CLASSES).items()
    }
    nothing = Shard(torch.empty(0, *SHAPE), torch.empty(0, dtype=torch.int64), public, 0)
    torch.manual_seed(0)
    made = [method.adapt(config, VisionTransformer(SPEC, CLASSES)) for _ in range(1 + len(data))]
    server = method.Server(config, made[0], nothing, 0)
    clients = {
        name: method.Client(config, model, shard, 1)
        for (name, shard), model in zip(data.items(), made[1:], strict=True)
    }
    play(server, clients, COUNTS, rounds=2)


def by_the_round() -> list[str]:
    """Methods whose rate goes by the round: all that have the option, but for DiLoCo's own."""
    fields = {name: methods.load(name).Config.__struct_fields__ for name in methods.names()}
    return [name for name, own in fields.items() if "cosine_rounds" in own and name != "diloco"]


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Rates of the optimizers that are made."""
    found, made, lock = [], torch.optim.AdamW, threading.Lock()

    def new(parameters: Any, lr: float, **options: Any) -> torch.optim.Optimizer:
        with lock:
            found.append(lr)
        return made(parameters, lr=lr, **options)

    monkeypatch.setattr(torch.optim, "AdamW", new)
    return found


def test_the_rate_falls_by_a_cosine_to_the_last_one() -> None:
    config = Training(learning_rate=5e-5, cosine_rounds=200, final_learning_rate=1e-6)
    found = [config.round_rate(number) for number in (1, 101, 201, 900)]
    assert found == pytest.approx([5e-5, 2.55e-5, 1e-6, 1e-6])
    assert all(config.round_rate(n) > config.round_rate(n + 1) for n in range(1, 200))
    assert [Training(learning_rate=0.1).round_rate(number) for number in (1, 99)] == [0.1, 0.1]


@pytest.mark.thorough
@pytest.mark.parametrize("name", by_the_round())
def test_every_method_that_trains_locally_has_a_rounds_rate(name: str, rates: list[float]) -> None:
    played(name, learning_rate=0.01, cosine_rounds=2, final_learning_rate=0.002)
    assert {round(rate, 6) for rate in rates} == {0.01, 0.006}


def test_those_are_the_averaging_the_low_rank_and_the_split_ones() -> None:
    wanted = {"fedavg", "fedpeft", "fedbuff", "fedprox", "flora", "hetlora", "split", "splitfed"}
    assert wanted <= set(by_the_round())


@pytest.mark.parametrize("method", [fedavg, flexlora])
def test_an_end_of_the_rate_without_rounds_is_refused(method: Any) -> None:
    with pytest.raises(ValueError, match=r"final_learning_rate = 0\.001: .* over cosine_rounds"):
        method.Config(final_learning_rate=0.001)


def test_an_all_reduce_does_not_know_the_round() -> None:
    with pytest.raises(ValueError, match="cosine_rounds = 3: the rate goes by the round"):
        fedavg.all_reduce(fedavg.Config(cosine_rounds=3))


@pytest.mark.parametrize("name", ["flora", "flexlora", "hetlora"])
def test_low_rank_clients_train_as_many_batches_as_asked(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    forward = VisionTransformer.forward

    def counted(self: VisionTransformer, images: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            sizes.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(VisionTransformer, "forward", counted)
    played(name, local_steps=3)
    # Three full batches of each of two clients in two rounds, across the epochs' bounds.
    assert sizes == [4] * 3 * 2 * 2
    config = methods.load(name).Config(ranks="4,2", local_steps=3, batch_size=4)
    model = low_rank.adapt(config, VisionTransformer(SPEC, CLASSES))
    image = torch.rand(1, *SHAPE)
    a_sample = low_rank.a_sample(config, model, image)
    assert methods.load(name).client_flops(config, model, image) == 0.0
    assert methods.load(name).fixed_flops(config, model, image) == 12 * a_sample
