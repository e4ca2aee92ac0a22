"""Split learning against the same training of the whole model on one machine."""

from typing import Any

import numpy as np
import pytest
import torch
from copied import copied
from in_process import Network, play, shards
from torch import nn
from torch.nn import functional as F

from methods import Shard, fedavg, split, splitfed
from methods.shared.local_training import train, trainable_state
from methods.split_model import cut
from nodes.workload.models import ModelSpec, VisionTransformer

CLASSES = 3
SPEC = ModelSpec(side=4, patch=2, width=8, depth=3, heads=2)
TOKENS, WIDTH = SPEC.tokens, SPEC.width
SAMPLES = {"client-1": 5, "client-2": 9, "client-3": 3}
SEED = 4

CUTS = [("shared", head, 0) for head in range(4)]
CUTS += [("private", head, tail) for head in range(3) for tail in range(3 - head)]


def model() -> nn.Module:
    torch.manual_seed(0)
    return VisionTransformer(SPEC, CLASSES)


def parts(*names: str) -> dict[str, Shard]:
    return {n: shard for n, shard in shards(SAMPLES, (1, 4, 4), CLASSES).items() if n in names}


def config(labels: str = "shared", head: int = 1, tail: int = 0, **more: Any) -> split.Config:
    options = {"batch_size": 4, "local_epochs": 2, "optimizer": "sgd", "learning_rate": 0.05}
    return split.Config(labels=labels, head_blocks=head, tail_blocks=tail, **{**options, **more})


def played(
    method: Any,
    options: Any,
    data: dict[str, Shard],
    network: Network | None = None,
    rounds: int = 1,
) -> tuple[nn.Module, Network]:
    """The model after some rounds, and what was sent."""
    server = method.Server(options, model(), shards({"server": 0}, (1, 4, 4), 1)["server"], SEED)
    clients = {
        name: method.Client(options, model(), shard, 10 + shard.client)
        for name, shard in data.items()
    }
    counts = {name: len(shard.targets) for name, shard in data.items()}
    network = play(server, clients, counts, rounds, network)
    return server.model, network


class Tracked(nn.Module):
    """A layer, and an account of how many batches and what mean it has seen."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("mean", torch.zeros(SPEC.width))
        self.register_buffer("batches", torch.tensor(0))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.mean += tokens.detach().mean(dim=(0, 1))
            self.batches += 1
        found: torch.Tensor = self.layer(tokens)
        return found


def tracked() -> nn.Module:
    torch.manual_seed(0)
    made = VisionTransformer(SPEC, CLASSES)
    for block in made.blocks:
        block.norm_mlp = Tracked(block.norm_mlp)
    return made


@pytest.mark.parametrize("method", [split, splitfed], ids=["split", "splitfed"])
def test_buffers_of_both_sides_go_where_weights_do(
    method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "model", tracked)
    data = parts("client-1", "client-3")
    options = method.Config(labels="private", head_blocks=1, tail_blocks=1, batch_size=4)
    found, network = played(method, options, data)
    counts = [block.norm_mlp.batches.item() for block in found.blocks]
    # Two batches and one; in turns they add up, in parallel the mean by samples is 13/8.
    assert counts == ([3] * 3 if method is split else [2] * 3)
    for number in (0, 2):
        name = f"blocks.{number}.norm_mlp.mean"
        sent = [message for message in network.of("up") if name in message.tensors]
        expected = sent[-1].tensors[name].numpy()
        if method is splitfed:
            weights = [SAMPLES[message.sender] for message in sent]
            values = [message.tensors[name].numpy() for message in sent]
            expected = np.average(values, axis=0, weights=weights)
        own = found.blocks[number].norm_mlp.mean.numpy()
        np.testing.assert_allclose(own, expected, rtol=1e-5, atol=1e-6)


class Alone:
    """Training of a whole model on one machine, with the clients' own draws of batches."""

    def __init__(self, options: Any, data: dict[str, Shard]) -> None:
        self.model = model()
        self.options = options
        self.data = data
        self.generators = {
            name: torch.Generator().manual_seed(10 + shard.client) for name, shard in data.items()
        }

    def turn(self, client: str) -> None:
        train(
            self.model,
            self.data[client],
            fedavg.new_optimizer(self.options, self.model, 1),
            epochs=self.options.local_epochs,
            batch_size=self.options.batch_size,
            generator=self.generators[client],
        )


def assert_same(found: nn.Module, expected: nn.Module, data: dict[str, Shard]) -> None:
    """Equal losses and weights, and not because nothing has moved."""
    images = torch.cat([shard.inputs for shard in data.values()])
    labels = torch.cat([shard.targets for shard in data.values()])
    with torch.no_grad():
        losses = [F.cross_entropy(m(images), labels) for m in (found, expected, model())]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)
    assert abs(float(losses[0] - losses[2])) > 1e-3
    torch.testing.assert_close(
        trainable_state(found), trainable_state(expected), rtol=1e-5, atol=1e-5
    )


@pytest.mark.thorough
@pytest.mark.parametrize(("labels", "head", "tail"), CUTS)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_any_cut_trains_as_the_whole(labels: str, head: int, tail: int, optimizer: str) -> None:
    options = config(labels, head, tail, optimizer=optimizer, learning_rate=0.01)
    data = parts("client-2")
    found, _ = played(split, options, data, rounds=2)
    alone = Alone(options, data)
    alone.turn("client-2")
    alone.turn("client-2")
    assert_same(found, alone.model, data)


def test_clients_take_turns_in_an_order_drawn_from_the_seed() -> None:
    options, data = config(), parts(*SAMPLES)
    found, network = played(split, options, data, rounds=3)
    order = left_weights(network)
    by_round = [tuple(order[i : i + 3]) for i in (0, 3, 6)]
    assert all(sorted(one) == sorted(SAMPLES) for one in by_round) and len(set(by_round)) > 1
    alone = Alone(options, data)
    for client in order:
        alone.turn(client)
    assert_same(found, alone.model, data)
    again, _ = played(split, options, data, rounds=3)
    assert same(found, again)


def left_weights(network: Network) -> list[str]:
    """Clients, in the order in which they handed their weights back."""
    return [message.sender for message in network.of("up", "head")]


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = trainable_state(one), trainable_state(other)
    return all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("sent", [0, 1, 2, 5])
def test_a_client_that_dies_in_its_turn_leaves_no_trace(sent: int) -> None:
    options, data = config("private"), parts(*SAMPLES)
    network = Network(dies_after={"client-2": sent})
    found, _ = played(split, options, data, network)
    assert network.missed() == {("client-2", "killed")}
    order = left_weights(network)
    assert sorted(order) == ["client-1", "client-3"]
    alone = Alone(options, data)
    for client in order:
        alone.turn(client)
    assert_same(found, alone.model, data)


def test_private_labels_never_leave() -> None:
    data = parts(*SAMPLES)
    _, network = played(split, config("private"), data)
    names = {name for message in network.of("up") for name in message.tensors}
    assert not any("label" in name for name in names)
    for message in network.of("up") + network.of("down"):
        assert not message.details
        assert all(tensor.is_floating_point() for tensor in message.tensors.values())
    # Other labels change what is sent only through gradients and weights, which they must.
    assert {message.kind for message in network.of("up")} == {"smashed", "gradient", "head", "tail"}


def test_shared_labels_go_with_the_activations_alone() -> None:
    data = parts(*SAMPLES)
    _, network = played(split, config("shared"), data)
    assert {message.kind for message in network.of("up")} == {"smashed", "head"}
    for message in network.of("up", "smashed"):
        assert message.tensors.keys() == {"tokens", "labels"}


@pytest.mark.parametrize(("labels", "head", "tail"), CUTS)
def test_bytes_are_the_formulas(labels: str, head: int, tail: int) -> None:
    data, epochs = parts(*SAMPLES), 2
    _, network = played(split, config(labels, head, tail), data)
    passed = epochs * sum(SAMPLES.values())
    block = 4 * 8 * 8 + 2 * 8 * 16 + 4 * 8 + 16 + 8 + 4 * 8
    embed = 2 * 2 * 8 + 8 + 8 + TOKENS * WIDTH
    weights = {"head": 3 * 4 * (embed + head * block)}
    tokens = 4 * passed * TOKENS * WIDTH
    if labels == "private":
        weights["tail"] = 3 * 4 * (tail * block + 2 * WIDTH + WIDTH * CLASSES + CLASSES)
        exchanged = {"smashed": tokens, "gradient": tokens}
        expected = {"up": {**weights, **exchanged}, "down": {**weights, **exchanged}}
    else:
        expected = {
            "up": {**weights, "smashed": tokens + 8 * passed},
            "down": {**weights, "gradient": tokens},
        }
    assert network.payload() == expected


@pytest.mark.parametrize(("labels", "head", "tail"), CUTS)
def test_traffic_is_what_a_client_of_one_sample_has(labels: str, head: int, tail: int) -> None:
    options = config(labels, head, tail)
    image = parts("client-3")["client-3"]
    one = image._replace(inputs=image.inputs[:1], targets=image.targets[:1])
    _, network = played(split, options, {"client-3": one})
    payload = network.payload()
    found = tuple(sum(payload[way].values()) for way in ("up", "down"))
    assert split.traffic(options, model()) == found


@pytest.mark.parametrize("wrong", [-1, CLASSES, 10**12])
def test_a_label_that_is_none_costs_the_client_its_turn(wrong: int) -> None:
    data = parts(*SAMPLES)
    labels = data["client-2"].targets.clone()
    labels[-1] = wrong
    data["client-2"] = data["client-2"]._replace(targets=labels)
    found, network = played(split, config(), data)
    ((client, reason),) = network.missed()
    assert client == "client-2" and "a label outside 0 to 2" in reason
    assert_same_without_the_missed(found, network)


def test_activations_of_another_shape_cost_the_client_its_turn() -> None:
    data = parts(*SAMPLES)
    options = config()
    server = split.Server(options, model(), data["client-1"], SEED)
    clients = {
        name: split.Client(options, model(), shard, 10 + shard.client)
        for name, shard in data.items()
    }
    counts = {**SAMPLES, "client-1": SAMPLES["client-1"] + 1}
    network = play(server, clients, counts)
    ((client, reason),) = network.missed()
    assert client == "client-1" and "tokens is torch.float32[1, 5, 8], expected" in reason
    assert_same_without_the_missed(server.model, network)


def assert_same_without_the_missed(found: nn.Module, network: Network) -> None:
    """The model is what those who left their weights made of it."""
    (missed,) = {client for client, _ in network.missed()}
    data = parts(*SAMPLES)
    alone = Alone(config(), data)
    for client in left_weights(network):
        if client != missed:
            alone.turn(client)
    assert_same(found, alone.model, data)


# Cuts


@pytest.mark.parametrize(
    ("labels", "head", "tail", "reason"),
    [
        ("shared", 4, 0, "head_blocks = 4: must be 0 to 3"),
        ("shared", 1, 1, "tail_blocks = 1: with labels = shared"),
        ("private", 3, 0, "head_blocks = 3: must be 0 to 2"),
        ("private", 1, 2, "tail_blocks = 2: must be 0 to 1"),
        ("private", 0, 3, "tail_blocks = 3: must be 0 to 2"),
    ],
)
def test_a_cut_outside_the_model_is_refused(labels: str, head: int, tail: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        split.check(config(labels, head, tail), model())


def test_a_model_without_stages_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear cannot be cut: it has no embed, blocks, head"):
        split.check(config(), nn.Linear(1, 1))


@pytest.mark.parametrize(("labels", "head", "tail"), CUTS)
def test_parts_are_the_models_own_parameters(labels: str, head: int, tail: int) -> None:
    whole = model()
    private = labels == "private"
    found = cut(whole, head_blocks=head, tail_blocks=tail, private=private)
    own = dict(whole.named_parameters())
    names = []
    for part in found:
        for name, parameter in part.named_parameters() if part is not None else ():
            assert parameter is own[name]
            names.append(name)
    assert sorted(names) == sorted(own)
    values = torch.rand(2, 1, 4, 4)
    expected = whole(values)
    for part in found:
        values = values if part is None else part(values)
    assert torch.equal(values, expected)


def test_a_client_changes_nothing_of_the_servers_part() -> None:
    """Weights that stay as they are stay shared between processes."""
    data, options = parts("client-2"), config("private", 1, 1)
    client = split.Client(options, copied(model()), data["client-2"], 0)
    before = {name: p.detach().clone() for name, p in client.cut.server.named_parameters()}
    server = split.Server(options, model(), data["client-2"], SEED)
    play(server, {"client-2": client}, SAMPLES)
    for name, parameter in client.cut.server.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None
