"""Methods: one whole round in process, against means and steps worked out another way."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from copied import copied
from torch import Tensor, nn

import methods
from methods import Shard, fedavg, fedpeft
from methods.shared.averaging import WeightedMean
from methods.shared.local_training import trainable_state
from nodes.checks import difference
from nodes.workload.models import ModelSpec, VisionTransformer
from testbed.transport.wire import Header, Message, decode, encode_header, encode_tensors

CLASSES = 3
SPEC = ModelSpec(side=4, patch=2, width=8, depth=2, heads=2)
SAMPLES = {"client-1": 5, "client-2": 9, "client-3": 1}


def through_the_wire(sender: str, kind: str, number: int, tensors: Mapping[str, Tensor]) -> Message:
    """A message as it arrives: its tensors are views of buffers that nobody else has."""
    entries, buffers = encode_tensors(tensors)
    frames = [encode_header(Header(kind, number, 0, {}, entries)), *buffers]
    header, arrived = decode([memoryview(bytearray(frame)) for frame in frames])
    return Message(sender, header, arrived, 0, sum(len(frame) for frame in frames))


class FakePeer:
    """A client's server in process: it gives ``message`` once and keeps what it is sent."""

    def __init__(self, name: str, message: Message) -> None:
        self.round = message.round
        self.sent: list[Message] = []
        self._name = name
        self._arrivals = [message]

    def receive(
        self, kind: str, like: Mapping[str, Tensor] | None = None, base: Any = None
    ) -> Message:
        message = self._arrivals.pop(0)
        assert message.kind == kind
        assert like is None or difference(message.tensors, like) is None
        return message

    def send(self, kind: str, tensors: Mapping[str, Tensor], **details: Any) -> None:
        self.sent.append(through_the_wire(self._name, kind, self.round, tensors))


class FakeFleet:
    """A server's clients in process: each takes its part when the server gathers."""

    def __init__(self, clients: Mapping[str, Any], samples: Mapping[str, int]) -> None:
        self.round = 1
        self.clients = tuple(clients)
        self.samples = samples
        self.down: Message
        self.up: list[Message] = []
        self._methods = clients

    async def broadcast(
        self, kind: str, tensors: Mapping[str, Tensor], **details: Any
    ) -> Mapping[str, Tensor]:
        self.down = through_the_wire("server", kind, self.round, tensors)
        return tensors

    async def gather(
        self, kind: str, like: Mapping[str, Tensor] | None = None, base: Any = None
    ) -> AsyncIterator[Message]:
        for name, client in self._methods.items():
            peer = FakePeer(name, self.down)
            client.round(peer)
            (update,) = peer.sent
            assert update.kind == kind
            assert like is None or difference(update.tensors, like) is None
            self.up.append(update)
            yield update


def own(images: Tensor, labels: Tensor) -> Shard:
    """A client's data where nothing is public."""
    return Shard(images, labels, public=images[:0], client=1)


NOTHING = own(torch.empty(0, 4), torch.empty(0, dtype=torch.int64))


def shards(shape: tuple[int, ...], seed: int = 1) -> dict[str, Shard]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: own(
            torch.rand(count, *shape, generator=generator),
            torch.randint(CLASSES, (count,), generator=generator),
        )
        for name, count in SAMPLES.items()
    }


def one_round(
    method: Any, config: Any, model: nn.Module, parts: Mapping[str, Shard]
) -> tuple[Any, FakeFleet]:
    """The server after a round, and its fleet with all that was sent."""
    server = method.Server(config, copied(model), NOTHING, 0)
    clients = {
        name: method.Client(config, copied(model), shard, 10 + number)
        for number, (name, shard) in enumerate(parts.items())
    }
    fleet = FakeFleet(clients, {name: len(shard.targets) for name, shard in parts.items()})
    asyncio.run(server.round(fleet))
    return server, fleet


def weighted_by_hand(updates: list[Message]) -> dict[str, np.ndarray]:
    """sum(n_k w_k) / sum(n_k), with numpy's own average."""
    weights = [SAMPLES[update.sender] for update in updates]
    return {
        name: np.average(
            [update.tensors[name].numpy().astype(np.float64) for update in updates],
            axis=0,
            weights=weights,
        )
        for name in updates[0].tensors
    }


# The mean


def test_a_mean_against_a_hand_calculation() -> None:
    mean = WeightedMean()
    mean.add({"w": torch.tensor([1.0, 2.0]), "b": torch.tensor(4.0)}, weight=1)
    mean.add({"w": torch.tensor([3.0, -2.0]), "b": torch.tensor(0.0)}, weight=3)
    found = mean.result()
    # (1 + 3*3) / 4, (2 - 3*2) / 4, 4 / 4
    assert found["w"].tolist() == [2.5, -1.0] and found["b"].item() == 1.0
    assert mean.weight == 4


def test_the_mean_of_one_is_itself() -> None:
    only = torch.rand(5, generator=torch.Generator().manual_seed(0))
    mean = WeightedMean()
    mean.add({"w": only}, weight=7)
    assert torch.equal(mean.result()["w"], only)


def test_a_mean_of_none_is_empty() -> None:
    assert WeightedMean().result() == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_mean_keeps_the_dtype(dtype: torch.dtype) -> None:
    mean = WeightedMean()
    for value in (1.0, 2.0):
        mean.add({"w": torch.full((2, 3), value, dtype=dtype)}, weight=1)
    assert torch.equal(mean.result()["w"], torch.full((2, 3), 1.5, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.int8])
def test_a_mean_of_integers_is_the_nearest_one(dtype: torch.dtype) -> None:
    mean = WeightedMean()
    mean.add({"n": torch.tensor([1, 4, 0, 100], dtype=dtype)}, weight=1)
    mean.add({"n": torch.tensor([2, 4, 1, 101], dtype=dtype)}, weight=2)
    found = mean.result()["n"]
    # 5/3, 4, 2/3, 302/3
    assert found.tolist() == [2, 4, 1, 101] and found.dtype == dtype


def test_a_mean_of_what_is_neither_real_nor_whole() -> None:
    mean = WeightedMean()
    mean.add({"mask": torch.tensor([True, True]), "z": torch.tensor([1 + 2j])}, weight=1)
    mean.add({"mask": torch.tensor([False, True]), "z": torch.tensor([3 - 6j])}, weight=3)
    assert mean.result()["mask"].tolist() == [False, True]
    assert mean.result()["z"].tolist() == [2.5 - 4j]


def test_a_mean_does_not_show_the_order_of_arrival() -> None:
    generator = torch.Generator().manual_seed(0)
    # Of very different size: summed in float32, the order would show.
    updates = [torch.randn(1000, generator=generator) * 10.0**size for size in (-3, 0, 3, 4)]
    results = []
    for order in itertools.permutations(range(4)):
        mean = WeightedMean()
        for which in order:
            mean.add({"w": updates[which]}, weight=which + 1)
        results.append(mean.result()["w"])
    assert all(torch.equal(result, results[0]) for result in results)


def test_a_mean_of_many_loses_nothing_to_rounding() -> None:
    mean = WeightedMean()
    for _ in range(10_000):
        mean.add({"w": torch.tensor([0.1])}, weight=17)
    assert mean.result()["w"].item() == torch.tensor(0.1).item()


def test_a_mean_leaves_its_updates_alone() -> None:
    first = torch.ones(2)
    mean = WeightedMean()
    mean.add({"w": first}, weight=1)
    mean.add({"w": torch.zeros(2)}, weight=1)
    assert first.tolist() == [1, 1] and mean.result()["w"].tolist() == [0.5, 0.5]


# FedAvg


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, CLASSES)


def sgd_step(model: nn.Linear, shard: Shard, rate: float, decay: float) -> dict[str, np.ndarray]:
    """A first full-batch step of SGD with Nesterov momentum 0.9, by the softmax's own gradient."""
    x = shard.inputs.double().numpy()
    weight = model.weight.detach().double().numpy()
    bias = model.bias.detach().double().numpy()
    scores = np.exp(x @ weight.T + bias)
    errors = scores / scores.sum(axis=1, keepdims=True) - np.eye(CLASSES)[shard.targets.numpy()]
    gradients = {"weight": errors.T @ x / len(x), "bias": errors.mean(axis=0)}
    return {
        name: value - rate * 1.9 * (gradients[name] + decay * value)
        for name, value in (("weight", weight), ("bias", bias))
    }


def test_a_round_of_fedavg_against_a_step_and_a_mean_by_hand() -> None:
    model, parts = linear(), shards((4,))
    config = fedavg.Config(
        local_epochs=1, batch_size=100, optimizer="sgd", learning_rate=0.5, weight_decay=0.01
    )
    server, _ = one_round(fedavg, config, model, parts)
    steps = [sgd_step(model, shard, 0.5, 0.01) for shard in parts.values()]
    for name, parameter in server.model.named_parameters():
        expected = np.average([step[name] for step in steps], axis=0, weights=[5, 9, 1])
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_fedavg_sends_every_parameter_once_each_way() -> None:
    model = linear()
    _, fleet = one_round(fedavg, fedavg.Config(), model, shards((4,)))
    assert fleet.down.kind == "model" and len(fleet.up) == 3
    for message in (fleet.down, *fleet.up):
        assert message.payload_bytes == 4 * (4 * CLASSES + CLASSES)
        assert list(message.tensors) == ["weight", "bias"]
    assert torch.equal(fleet.down.tensors["weight"], model.weight)


def test_a_client_starts_from_what_the_server_sent() -> None:
    model = linear()
    config = fedavg.Config(optimizer="sgd", learning_rate=1e-12, weight_decay=0)
    client = fedavg.Client(config, copied(model), shards((4,))["client-1"], 0)
    sent = {"weight": torch.full((CLASSES, 4), 7.0), "bias": torch.full((CLASSES,), -7.0)}
    peer = FakePeer("client-1", through_the_wire("server", "model", 1, sent))
    client.round(peer)
    assert difference(peer.sent[0].tensors, sent) is None
    assert all(torch.allclose(peer.sent[0].tensors[name], sent[name]) for name in sent)


def test_a_round_without_updates_leaves_the_model() -> None:
    model = linear()
    server, _ = one_round(fedavg, fedavg.Config(), model, {})
    assert torch.equal(server.model.weight, model.weight)


def test_rounds_make_the_model_better() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (90,), generator=generator)
    images = torch.eye(4)[labels] + 0.1 * torch.rand(90, 4, generator=generator)
    parts = {f"client-{k}": own(images[k::3], labels[k::3]) for k in range(3)}
    server, _ = one_round(fedavg, fedavg.Config(learning_rate=0.1), linear(), parts)
    before = fedavg.Server(fedavg.Config(), linear(), NOTHING, 0).evaluate(images, labels)
    after = server.evaluate(images, labels)
    assert after["loss"] < before["loss"] and after["accuracy"] > 0.9


def test_evaluation_against_a_hand_calculation() -> None:
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
        model.bias.zero_()
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(200, 1)
    labels = torch.tensor([0, 0]).repeat(200)
    found = fedavg.Server(fedavg.Config(), model, NOTHING, 0).evaluate(images, labels)
    # -log softmax of the score 1 against 0, and of 0 against 1; more images than one batch holds.
    losses = np.log(1 + np.exp(-1)), np.log(1 + np.exp(1))
    assert found["accuracy"] == 0.5
    assert found["loss"] == pytest.approx(sum(losses) / 2, rel=1e-6)


# Buffers


class Normalised(nn.Module):
    """Batch normalisation under a classifier; ``steps`` is frozen, and changes all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.classifier = nn.Linear(4, CLASSES)
        self.norm.requires_grad_(False)
        self.register_buffer("scratch", torch.zeros(2), persistent=False)
        self.register_buffer("mask", torch.ones(2, dtype=torch.bool))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.norm(images))
        return logits


STATISTICS = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}


def test_what_batch_normalisation_learns_is_sent_and_averaged() -> None:
    parts = {name: shard for name, shard in shards((4,)).items() if len(shard.targets) > 1}
    config = fedavg.Config(local_epochs=3, batch_size=9)
    server, fleet = one_round(fedavg, config, Normalised(), parts)
    weights = {"classifier.weight", "classifier.bias"}
    assert all(set(message.tensors) == weights | STATISTICS for message in (fleet.down, *fleet.up))
    size = 4 * (4 * CLASSES + CLASSES) + 2 * 4 * 4 + 8
    assert fleet.down.payload_bytes == size
    assert fedavg.traffic(config, Normalised()) == (size, size)
    own = server.model.state_dict()
    for name, expected in weighted_by_hand(fleet.up).items():
        np.testing.assert_allclose(own[name].numpy(), expected, rtol=1e-6, atol=1e-8)
    assert float(own["norm.running_mean"].min()) > 0.1
    assert own["norm.num_batches_tracked"].item() == 3


@pytest.mark.parametrize("dp", ["sample", "client"])
def test_what_batch_normalisation_learns_is_not_sent_without_noise(dp: str) -> None:
    config = fedavg.Config(dp=dp, dp_noise=1.0)
    with pytest.raises(ValueError, match=f"dp = '{dp}': .*norm.* group norms"):
        fedavg.check(config, Normalised())
    fedavg.check(config, linear())


# FedPEFT


RANK = 2
TRAINABLE = 2 * RANK * SPEC.width * 2 * SPEC.depth + SPEC.width * CLASSES + CLASSES
"""As fedpeft.py's first lines give it: adapters on query and value of each block, classifier."""


@pytest.fixture(scope="module")
def adapted() -> nn.Module:
    torch.manual_seed(0)
    return fedpeft.adapt(fedpeft.Config(rank=RANK), VisionTransformer(SPEC, CLASSES))


@pytest.fixture(scope="module")
def peft_round(adapted: nn.Module) -> tuple[Any, FakeFleet]:
    return one_round(fedpeft, fedpeft.Config(rank=RANK, batch_size=4), adapted, shards((1, 4, 4)))


def test_only_adapters_and_the_classifier_are_trainable(adapted: nn.Module) -> None:
    names = trainable_state(adapted)
    assert all("lora_" in name or name.startswith("head.classifier.") for name in names)
    assert {"head.classifier.weight", "head.classifier.bias"} < names.keys()
    assert len(names) == 2 + 2 * 2 * SPEC.depth
    assert sum(tensor.numel() for tensor in names.values()) == TRAINABLE


def test_adapters_change_nothing_before_they_are_trained() -> None:
    torch.manual_seed(0)
    plain = VisionTransformer(SPEC, CLASSES)
    images = torch.rand(2, 1, 4, 4)
    expected = plain(images)
    assert torch.allclose(fedpeft.adapt(fedpeft.Config(), plain)(images), expected)


def test_only_trainable_tensors_travel_in_fedpeft(
    adapted: nn.Module, peft_round: tuple[Any, FakeFleet]
) -> None:
    _, fleet = peft_round
    for message in (fleet.down, *fleet.up):
        assert message.kind == "adapter"
        assert message.tensors.keys() == trainable_state(adapted).keys()
        assert message.payload_bytes == 4 * TRAINABLE


def test_a_round_of_fedpeft_is_the_mean_of_its_updates(peft_round: tuple[Any, FakeFleet]) -> None:
    server, fleet = peft_round
    state = trainable_state(server.model)
    for name, expected in weighted_by_hand(fleet.up).items():
        np.testing.assert_allclose(state[name].numpy(), expected, rtol=1e-6, atol=1e-9)
    first, second, _ = fleet.up
    assert not torch.equal(*(up.tensors["head.classifier.weight"] for up in (first, second)))


def test_the_backbone_stays_as_it_was(
    adapted: nn.Module, peft_round: tuple[Any, FakeFleet]
) -> None:
    server, _ = peft_round
    after = dict(server.model.named_parameters())
    for name, before in adapted.named_parameters():
        assert torch.equal(before, after[name]) != before.requires_grad, name


# Both


def updates_of(method: Any, config: Any, model: nn.Module, seed: int) -> list[Message]:
    """What one client sends in two rounds."""
    client = method.Client(config, copied(model), shards((1, 4, 4))["client-2"], seed)
    found = []
    for number in (1, 2):
        start = through_the_wire("server", client.kind, number, trainable_state(model))
        peer = FakePeer("client-2", start)
        client.round(peer)
        found += peer.sent
    return found


@pytest.mark.parametrize("method", [fedavg, fedpeft], ids=["fedavg", "fedpeft"])
def test_the_same_seed_sends_the_same_updates(method: Any, adapted: nn.Module) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES)) if method is fedavg else adapted
    config = method.Config(local_epochs=1, batch_size=2)
    once = updates_of(method, config, model, seed=5)
    torch.manual_seed(99)
    again = updates_of(method, config, model, seed=5)
    other = updates_of(method, config, model, seed=6)
    for number in (0, 1):
        assert same(once[number], again[number]) and not same(once[number], other[number])
    # A second round goes on drawing where the first had stopped.
    assert not same(once[0], once[1])


def same(one: Message, other: Message) -> bool:
    return all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())


# Every method there is


def test_the_walk_finds_the_methods() -> None:
    assert {"fedavg", "fedpeft"} <= set(methods.names())
    assert not {"__init__", "local", "averaging"} & set(methods.names())


@pytest.mark.parametrize("name", methods.names())
def test_a_method_file_holds_a_config_a_server_and_a_client(name: str) -> None:
    module = methods.load(name)
    assert (module.__doc__ or "").strip()
    assert issubclass(module.Config, msgspec.Struct)
    assert asyncio.iscoroutinefunction(module.Server.round)
    assert callable(module.Server.evaluate)
    assert callable(module.Client.round) and not asyncio.iscoroutinefunction(module.Client.round)


@pytest.mark.parametrize("name", methods.names())
def test_a_methods_config_has_defaults_and_is_frozen(name: str) -> None:
    config = methods.load(name).Config()
    with pytest.raises(AttributeError):
        setattr(config, config.__struct_fields__[0], 1)


@pytest.mark.parametrize("name", methods.names())
def test_a_methods_config_refuses_an_unknown_field(name: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field `no_such_option`"):
        msgspec.convert({"no_such_option": 1}, methods.load(name).Config)


def test_a_method_has_privacy_or_no_option_for_it() -> None:
    having = [
        name for name in methods.names() if "dp" in methods.load(name).Config.__struct_fields__
    ]
    averaging = ["fedadam", "fedavg", "fedavgm", "fedbuff", "feddf", "fedpeft", "fedprox", "fedptr"]
    assert having == ["diloco", *averaging]
