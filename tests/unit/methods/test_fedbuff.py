"""FedBuff: steps of the server by hand, answers that come late, and what is refused."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
import torch
from copied import copied
from in_process import play, shards
from torch import Tensor, nn

from methods import fedbuff
from methods.shared.local_training import trainable_state
from nodes.workload.models import ModelSpec, VisionTransformer
from testbed.transport.wire import Header, Message

CLASSES = 3
SPEC = ModelSpec(side=4, patch=2, width=16, depth=2, heads=2)
SAMPLES = {"client-1": 12, "client-2": 20, "client-3": 8}


def a_model() -> nn.Module:
    torch.manual_seed(0)
    return fedbuff.adapt(fedbuff.Config(variant="head"), VisionTransformer(SPEC, CLASSES))


class Scripted:
    """A fleet whose clients answer as they are told to: (client, round answered, change)."""

    def __init__(self, number: int, joined: int, *answers: tuple[str, int, float]) -> None:
        self.round = number
        self.joined = joined
        self.asked: dict[str, Tensor] = {}
        self.left = list(answers)
        self.refused: list[tuple[str, str]] = []
        self.details: dict[str, Any] = {}

    async def keep_busy(
        self, kind: str, tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]
    ) -> AsyncIterator[Message]:
        assert kind == "head" and tensors.keys() == like.keys()
        self.asked = {name: each.clone() for name, each in tensors.items()}
        while self.left:
            name, number, value = self.left.pop(0)
            change = {each: torch.full_like(like[each], value) for each in like}
            yield Message(name, Header(kind, number, 0, self.details), change, 0, 9)

    def refuse(self, client: str, reason: str) -> None:
        self.refused.append((client, reason))


def stepped(fleet: Scripted, **options: Any) -> tuple[float, fedbuff.Server]:
    """By how much one round moves every weight."""
    model = a_model()
    before = trainable_state(model)
    config = fedbuff.Config(variant="head", **options)
    shard = shards(SAMPLES, (1, 4, 4), CLASSES)["client-1"]
    server = fedbuff.Server(config, model, shard, 0)
    asyncio.run(server.round(fleet))  # type: ignore[arg-type]
    moved = torch.cat(
        [(now - before[name]).flatten() for name, now in trainable_state(model).items()]
    )
    assert all(torch.equal(fleet.asked[name], each) for name, each in before.items())
    assert float(moved.std()) < 1e-6
    return float(moved.mean()), server


def test_a_step_is_the_mean_of_a_full_buffer_stale_changes_damped() -> None:
    fleet = Scripted(5, 9, ("a", 5, 0.1), ("b", 2, 0.6), ("c", 5, 9.0))
    moved, server = stepped(fleet, buffer_size=2)
    assert moved == pytest.approx((0.1 + 0.6 / 4**0.5) / 2, abs=1e-6)
    assert [answer[0] for answer in fleet.left] == ["c"]
    assert server.staleness == [0, 3]


def test_the_exponent_and_the_servers_rate_are_those_of_the_options() -> None:
    fleet = Scripted(3, 9, ("a", 1, 0.3))
    moved, _ = stepped(fleet, buffer_size=1, staleness_exponent=2.0, server_learning_rate=0.5)
    assert moved == pytest.approx(0.5 * 0.3 / 3**2, abs=1e-6)


def test_a_buffer_holds_at_most_a_change_a_client() -> None:
    fleet = Scripted(1, 2, ("a", 1, 0.1), ("b", 1, 0.3), ("c", 1, 9.0))
    moved, _ = stepped(fleet, buffer_size=10)
    assert moved == pytest.approx(0.2, abs=1e-6)


def test_what_came_by_the_limit_makes_a_step_and_nothing_makes_none() -> None:
    # Over the buffer's size, as the full one's step is.
    moved, _ = stepped(Scripted(1, 9, ("a", 1, 0.1), ("b", 1, 0.3)), buffer_size=5)
    assert moved == pytest.approx((0.1 + 0.3) / 5, abs=1e-6)
    moved, _ = stepped(Scripted(1, 4, ("a", 1, 0.1)), buffer_size=5)
    assert moved == pytest.approx(0.1 / 4, abs=1e-6)
    moved, server = stepped(Scripted(1, 9), buffer_size=5)
    assert moved == 0 and server.staleness == []


def test_integers_that_a_model_learns_are_rounded_once() -> None:
    model = a_model()
    model.head.register_buffer("batches", torch.tensor(10))
    shard = shards(SAMPLES, (1, 4, 4), CLASSES)["client-1"]
    server = fedbuff.Server(fedbuff.Config(variant="head", buffer_size=2), model, shard, 0)
    # 10 + (1 + 2 / sqrt(2)) / 2 is 11.2
    fleet = Scripted(5, 9, ("a", 5, 1), ("b", 4, 2))
    asyncio.run(server.round(fleet))  # type: ignore[arg-type]
    assert model.head.batches.item() == 11


def test_a_change_without_its_account_of_privacy_does_not_enter() -> None:
    options = {"dp": "sample", "dp_noise": 1.0}
    fleet = Scripted(1, 2, ("a", 1, 0.5))
    moved, _ = stepped(fleet, buffer_size=1, **options)
    assert moved == 0 and fleet.refused[0][0] == "a"
    fleet = Scripted(1, 2, ("a", 1, 0.5))
    fleet.details = {"epsilon": 1.5}
    moved, server = stepped(fleet, buffer_size=1, **options)
    assert moved == pytest.approx(0.5, abs=1e-6) and server.privacy.metrics() == {"epsilon": 1.5}


def test_privacy_by_client_is_refused() -> None:
    config = fedbuff.Config(dp="client", dp_noise=1.0)
    with pytest.raises(ValueError, match=r"dp = 'client'.*take dp=sample"):
        fedbuff.check(config, VisionTransformer(SPEC, CLASSES))


def test_it_learns_with_real_clients_that_overtake_each_other() -> None:
    config = fedbuff.Config(variant="head", batch_size=4, buffer_size=2, learning_rate=0.01)
    model = a_model()
    # The labels are random: what can be learnt is what all have in common.
    shard = shards(SAMPLES, (1, 4, 4), CLASSES)["client-2"]
    server = fedbuff.Server(config, copied(model), shard, 0)
    clients = {
        name: fedbuff.Client(config, copied(model), shard, number)
        for number, name in enumerate(SAMPLES)
    }
    before = server.evaluate(shard.inputs, shard.targets)["loss"]
    network = play(server, clients, SAMPLES, rounds=12)
    assert server.evaluate(shard.inputs, shard.targets)["loss"] < before - 0.02
    assert network.missed() == set()
    # Everybody's answer is a change, and is to a round in which it was asked.
    asked = {(sent.client, sent.message.round) for sent in network.log if sent.way == "down"}
    answered = [(sent.client, sent.message.round) for sent in network.log if sent.way == "up"]
    assert len(answered) >= 24 and set(answered) <= asked
    assert len(set(answered)) == len(answered)
