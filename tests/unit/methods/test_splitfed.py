"""SplitFed against FedAvg, which v1 equals, and against v2's steps one after the other by hand."""

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from copied import copied
from in_process import Network, play, shards
from torch import nn
from torch.nn import functional as F

from methods import Shard, fedavg, split, splitfed
from methods.shared import averaging
from methods.shared.averaging import WeightedMean
from methods.shared.local_training import copy_of, load_trainable, trainable_state
from methods.split_model import cut
from methods.split_model.exchange import batches
from methods.split_model.order import Arrival, Drawn
from nodes.workload.models import ModelSpec, VisionTransformer

CLASSES = 3
SPEC = ModelSpec(side=4, patch=2, width=8, depth=3, heads=2)
SAMPLES = {"client-1": 5, "client-2": 9, "client-3": 3}
SEED = 4
LABELS = ["shared", "private"]


def model() -> nn.Module:
    torch.manual_seed(0)
    return VisionTransformer(SPEC, CLASSES)


def parts(*names: str) -> dict[str, Shard]:
    return {n: shard for n, shard in shards(SAMPLES, (1, 4, 4), CLASSES).items() if n in names}


def config(variant: str, labels: str = "shared", **more: Any) -> splitfed.Config:
    options = {"batch_size": 4, "local_epochs": 2, "optimizer": "sgd", "learning_rate": 0.05}
    tail = 1 if labels == "private" else 0
    return splitfed.Config(
        variant=variant, labels=labels, head_blocks=1, tail_blocks=tail, **{**options, **more}
    )


def played(
    method: Any,
    options: Any,
    data: dict[str, Shard],
    network: Network | None = None,
    rounds: int = 1,
) -> tuple[nn.Module, Network]:
    """The model after some rounds, and what was sent."""
    server = method.Server(options, model(), data["client-1"], SEED)
    clients = {
        name: method.Client(options, model(), shard, 10 + shard.client)
        for name, shard in data.items()
    }
    network = play(server, clients, {n: len(d.targets) for n, d in data.items()}, rounds, network)
    return server.model, network


def assert_same(found: nn.Module, expected: nn.Module) -> None:
    after, right = trainable_state(found), trainable_state(expected)
    torch.testing.assert_close(after, right, rtol=1e-5, atol=1e-5)
    moved = [float((right[name] - p).abs().max()) for name, p in trainable_state(model()).items()]
    assert max(moved) > 1e-2


def equal(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = trainable_state(one), trainable_state(other)
    return all(torch.equal(mine[name], theirs[name]) for name in mine)


# v1


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize(
    "names",
    [pytest.param(("client-1",), marks=pytest.mark.thorough), tuple(SAMPLES)],
    ids=["alone", "three"],
)
def test_v1_is_federated_averaging_cut_in_parts(labels: str, names: tuple[str, ...]) -> None:
    data, options = parts(*names), config("v1", labels)
    found, _ = played(splitfed, options, data, rounds=2)
    common = {key: getattr(options, key) for key in averaging.Training.__struct_fields__}
    expected, _ = played(fedavg, fedavg.Config(**common), data, rounds=2)
    assert_same(found, expected)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize(
    "sent", [*(pytest.param(sent, marks=pytest.mark.thorough) for sent in (0, 3)), 1]
)
def test_v1_averages_over_those_who_are_left(labels: str, sent: int) -> None:
    options = config("v1", labels)
    network = Network(dies_after={"client-2": sent})
    found, _ = played(splitfed, options, parts(*SAMPLES), network)
    assert network.missed() == {("client-2", "killed")}
    expected, _ = played(splitfed, options, parts("client-1", "client-3"))
    assert equal(found, expected)


def test_v1_copies_what_is_trained_and_nothing_else() -> None:
    part = cut(model(), head_blocks=1, tail_blocks=0, private=False).server
    part.blocks["1"].requires_grad_(False)
    other = copy_of(part)
    theirs = dict(other.named_parameters())
    for name, parameter in part.named_parameters():
        assert (theirs[name] is parameter) == name.startswith("blocks.1.")
        assert torch.equal(theirs[name], parameter)


# v2


def by_hand(options: splitfed.Config, data: dict[str, Shard], order: list[str]) -> nn.Module:
    """One round: a head and tail for each client, one server side, batches in ``order``."""
    whole = model()
    clients = {name: copied(whole) for name in data}

    def cut_of(one: nn.Module) -> Any:
        return split.cut_of(options, one)

    middle = cut_of(whole).server
    rest = {
        name: iter(
            list(
                batches(
                    shard,
                    options.local_epochs,
                    options.batch_size,
                    torch.Generator().manual_seed(10 + shard.client),
                )
            )
        )
        for name, shard in data.items()
    }
    steps = [fedavg.new_optimizer(options, middle, 1)]
    own = {
        name: fedavg.new_optimizer(
            options,
            nn.ModuleList(p for p in (cut_of(one).head, cut_of(one).tail) if p is not None),
            1,
        )
        for name, one in clients.items()
    }
    for name in order:
        batch = next(rest[name])
        head, _, tail = cut_of(clients[name])
        logits = middle(head(batch.inputs))
        logits = logits if tail is None else tail(logits)
        for optimizer in (*steps, own[name]):
            optimizer.zero_grad()
        F.cross_entropy(logits, batch.targets).backward()
        for optimizer in (*steps, own[name]):
            optimizer.step()
    assert all(next(iterator, None) is None for iterator in rest.values())
    for kind, part in cut_of(whole).client_side.items():
        mean = WeightedMean()
        for name, one in clients.items():
            mean.add(trainable_state(cut_of(one).client_side[kind]), len(data[name].targets))
        load_trainable(part, mean.result())
    return whole


def worked_on(network: Network) -> list[str]:
    """Clients in the order in which the server updated its side with their batches."""
    return [sent.client for sent in network.log if (sent.way, sent.message.kind) == DONE]


DONE = ("down", "gradient")


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("order", ["drawn", "arrival"])
@pytest.mark.parametrize("optimizer", [pytest.param("sgd", marks=pytest.mark.thorough), "adamw"])
def test_v2_against_its_steps_by_hand(labels: str, order: str, optimizer: str) -> None:
    options = config("v2", labels, order=order, optimizer=optimizer, learning_rate=0.01)
    data = parts("client-1", "client-2")
    found, network = played(splitfed, options, data)
    assert_same(found, by_hand(options, data, worked_on(network)))


@pytest.mark.parametrize("labels", LABELS)
def test_v2_draws_its_order_and_arrival_does_not_show(labels: str) -> None:
    options = config("v2", labels)
    results, orders = [], []
    for first, then in itertools.permutations(("client-1", "client-2")):
        network = Network(waits_for={then: first})
        found, _ = played(splitfed, options, parts(*SAMPLES), network, rounds=2)
        results.append(found)
        orders.append(worked_on(network))
    assert equal(*results) and orders[0] == orders[1]


@pytest.mark.parametrize("labels", LABELS)
def test_v2_in_order_of_arrival_takes_whoever_is_there(labels: str) -> None:
    options = config("v2", labels, order="arrival")
    for first, then in itertools.permutations(("client-1", "client-2")):
        network = Network(waits_for={then: first})
        played(splitfed, options, parts("client-1", "client-2"), network)
        assert worked_on(network)[0] == first


def test_in_v2_with_private_labels_a_batch_is_done_before_the_next_begins() -> None:
    _, network = played(splitfed, config("v2", "private"), parts(*SAMPLES))
    down = [(s.client, s.message.kind) for s in network.log if s.way == "down"]
    steps = [entry for entry in down if entry[1] in ("smashed", "gradient")]
    for out, back in zip(steps[::2], steps[1::2], strict=True):
        assert out == (back[0], "smashed") and back[1] == "gradient"


@pytest.mark.thorough
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("sent", [0, 1, 3])
@pytest.mark.parametrize("order", ["drawn", "arrival"])
def test_v2_goes_on_without_a_client_that_dies(labels: str, sent: int, order: str) -> None:
    options = config("v2", labels, order=order)
    network = Network(dies_after={"client-2": sent})
    found, _ = played(splitfed, options, parts(*SAMPLES), network)
    assert network.missed() == {("client-2", "killed")}
    left = {message.sender for message in network.of("up", "head")}
    assert left == {"client-1", "client-3"} and not equal(found, model())


def test_v2_trains_on_nobody_twice_and_forgets_nobody() -> None:
    _, network = played(splitfed, config("v2"), parts(*SAMPLES))
    order = worked_on(network)
    # Two epochs of batches of 4.
    assert {name: order.count(name) for name in SAMPLES} == {
        "client-1": 4,
        "client-2": 6,
        "client-3": 2,
    }


# Turns


def test_each_step_has_an_order_of_its_own() -> None:
    counts = {f"client-{number}": 4 for number in range(1, 6)}
    order = taken(Drawn(counts, "0 1"), counts)
    steps = [tuple(order[i : i + 5]) for i in range(0, 20, 5)]
    assert all(sorted(step) == sorted(counts) for step in steps) and len(set(steps)) > 1
    assert order == taken(Drawn(dict(reversed(counts.items())), "0 1"), counts)
    assert order != taken(Drawn(counts, "0 2"), counts)


def test_those_who_have_more_batches_go_on_alone() -> None:
    counts = {"a": 1, "b": 3}
    order = taken(Drawn(counts, ""), counts)
    assert sorted(order[:2]) == ["a", "b"] and order[2:] == ["b", "b"]


def taken(turns: Any, counts: dict[str, int]) -> list[str]:
    order: list[str] = []

    async def work(client: str) -> None:
        for _ in range(counts[client]):
            async with turns.turn(client):
                order.append(client)
                await asyncio.sleep(0)
                assert order[-1] == client

    async def all_of_them() -> None:
        await asyncio.wait_for(asyncio.gather(*(work(client) for client in counts)), 20)

    asyncio.run(all_of_them())
    return order


@pytest.mark.parametrize("make", [lambda counts: Drawn(counts, ""), lambda counts: Arrival()])
def test_nobody_waits_for_one_that_has_left(make: Callable[[dict[str, int]], Any]) -> None:
    counts = {"a": 2, "b": 2, "c": 2}

    async def all_of_them() -> list[str]:
        turns = make(counts)
        order: list[str] = []

        async def work(client: str, stays: int) -> None:
            try:
                for number in range(counts[client]):
                    async with turns.turn(client):
                        if number == stays:
                            raise ConnectionError
                        order.append(client)
            except ConnectionError:
                turns.leave(client)

        jobs = [work("a", 9), work("b", 1), work("c", 0)]
        await asyncio.wait_for(asyncio.gather(*jobs), 20)
        return order

    assert sorted(asyncio.run(all_of_them())) == ["a", "a", "b"]
