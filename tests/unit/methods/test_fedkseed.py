"""FedKSeed: bytes, weights made again from the scalars alone, steps by hand, and refusals."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from copied import copied
from in_process import Network, play, shards
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from methods import Peer, Shard, fedkseed
from methods.shared import flops
from methods.shared.common_seed import common_seed
from nodes.compute import Modelled
from nodes.program import FineTuning
from nodes.workload.models import ModelSpec, VisionTransformer
from testbed.config_error import ConfigError
from testbed.run.config import RunConfig

CLASSES = 3
SPEC = ModelSpec(side=4, patch=2, width=8, depth=1, heads=2)
SAMPLES = {"client-1": 12, "client-2": 20, "client-3": 8}
MASK = (1 << 64) - 1


def config(**options: Any) -> fedkseed.Config:
    return fedkseed.Config(**{"candidates": 16, "steps": 6, "learning_rate": 1e-3, **options})


def a_model(kind: Callable[[], nn.Module] = lambda: VisionTransformer(SPEC, CLASSES)) -> nn.Module:
    torch.manual_seed(0)
    return fedkseed.adapt(config(), kind())


def linear(features: int = 16) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(features, CLASSES))


class Nodes:
    def __init__(self, own: fedkseed.Config, model: nn.Module | None = None) -> None:
        self.start = model or a_model()
        self.parts = shards(SAMPLES, (1, 4, 4), CLASSES)
        self.server = fedkseed.Server(own, copied(self.start), self.parts["client-1"], 0)
        self.clients: dict[str, Any] = {
            name: fedkseed.Client(own, copied(self.start), shard, 10 + shard.client)
            for name, shard in self.parts.items()
        }

    def play(self, first: int, last: int, *names: str) -> Network:
        some = {name: self.clients[name] for name in names or SAMPLES}
        return play(self.server, some, SAMPLES, last, first=first)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([each.detach().flatten() for each in model.parameters()]).double()


# Directions


def philox(key: tuple[int, int], counter: int) -> list[int]:
    """Words of one counter, as Salmon et al. (SC 2011) give Philox4x64-10."""
    words, (one, other) = [counter, 0, 0, 0], key
    for _ in range(10):
        low, high = 0xD2E7470EE14C6C93 * words[0], 0xCA5A826395121157 * words[2]
        words = [
            (high >> 64) ^ words[1] ^ one,
            high & MASK,
            (low >> 64) ^ words[3] ^ other,
            low & MASK,
        ]
        one, other = (one + 0x9E3779B97F4A7C15) & MASK, (other + 0xBB67AE8584CAA73B) & MASK
    return words


def direction(model: nn.Module, number: int) -> np.ndarray:
    """All of z, without numpy's generator: float64 (n,)."""
    size, seed = len(flat(model)), common_seed(model)
    found = []
    for block in range(math.ceil(size / 16)):
        # numpy's counts on before it gives the first.
        for word in philox((seed, number), block + 1):
            found += [word >> shift & 0xFFFF for shift in (0, 16, 32, 48)]
    return fedkseed.QUANTILES[found[:size]].astype(np.float64)


def test_entries_are_those_of_philox_wherever_one_begins() -> None:
    model = a_model()
    seed, whole = common_seed(model), direction(model, 5)
    assert np.array_equal(fedkseed.entries(seed, 5, 0, len(whole)).numpy(), whole)
    assert np.array_equal(fedkseed.entries(seed, 5, 32, 7).numpy(), whole[32:39])


def test_entries_are_normal() -> None:
    table = fedkseed.QUANTILES.astype(np.float64)
    assert table.mean() == pytest.approx(0, abs=1e-9)
    assert table.var() == pytest.approx(1, abs=1e-6)
    assert (table**4).mean() == pytest.approx(3, rel=5e-3)
    below = [np.mean(table < edge) for edge in (-3, -1, 0, 0.5, 2)]
    expected = torch.special.ndtr(torch.tensor([-3, -1, 0, 0.5, 2])).numpy()
    np.testing.assert_allclose(below, expected, atol=1e-4)


def test_directions_are_unlike_one_another_and_those_of_another_run() -> None:
    drawn = [fedkseed.entries(seed, number, 0, 4096) for seed in (1, 2) for number in (0, 1, 2)]
    likeness = np.corrcoef(torch.stack(drawn).numpy()) - np.eye(6)
    assert np.abs(likeness).max() < 0.08
    torch.manual_seed(1)
    other = fedkseed.adapt(config(), VisionTransformer(SPEC, CLASSES))
    assert common_seed(other) != common_seed(a_model())


@pytest.mark.parametrize("chunk", [16, 48, 1 << 16])
def test_how_many_weights_are_moved_at_once_does_not_show(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fedkseed, "CHUNK", chunk)
    model, before = a_model(), flat(a_model())
    fedkseed.Directions(config(), model).add([3, 9], [0.5, -0.25])
    expected = 0.5 * direction(model, 3) - 0.25 * direction(model, 9)
    np.testing.assert_allclose(flat(model) - before, expected, atol=1e-6)


# Steps


def test_a_step_by_hand() -> None:
    own, model = config(epsilon=1e-2), a_model()
    shard = shards(SAMPLES, (1, 4, 4), CLASSES)["client-3"]
    before, along = flat(model), torch.from_numpy(direction(model, 4))

    def loss(weights: Tensor) -> float:
        parameters, place = {}, 0
        for name, each in model.named_parameters():
            parameters[name] = weights[place : place + each.numel()].view_as(each).float()
            place += each.numel()
        logits = functional_call(model, parameters, (shard.inputs,))
        return float(F.cross_entropy(logits.double(), shard.targets))

    expected = (loss(before + 1e-2 * along) - loss(before - 1e-2 * along)) / 2e-2
    found = fedkseed.Directions(own, model).step(4, shard.inputs, shard.targets)
    assert found == pytest.approx(expected, abs=1e-4) and abs(found) > 1e-2
    torch.testing.assert_close(flat(model), before - 1e-3 * found * along, rtol=0, atol=1e-6)


@pytest.mark.thorough
def test_the_mean_of_g_z_is_the_gradient() -> None:
    own = config(learning_rate=1e-12)
    model = a_model(lambda: linear(4))
    images = torch.rand(9, 1, 2, 2, generator=torch.Generator().manual_seed(3))
    labels = torch.arange(9) % CLASSES
    F.cross_entropy(model(images), labels).backward()
    truth = torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None])
    directions, seed = fedkseed.Directions(own, model), common_seed(model)
    found, count = torch.zeros(len(truth)), 6000
    for number in range(count):
        gradient = directions.step(number, images, labels)
        found += gradient / count * fedkseed.entries(seed, number, 0, len(truth))
    # n + 1 times the gradient's square, over as many, is the variance of all entries together.
    error = float(truth.norm()) * math.sqrt((len(truth) + 1) / count)
    assert float((found - truth).norm()) < 2 * error < 0.15 * float(truth.norm())


class Uncertain(nn.Module):
    """Dropout and statistics, which training would draw and learn."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(16)
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Linear(16, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.dropout(self.norm(images.flatten(1))))
        return logits


def test_losses_are_of_the_model_in_evaluation() -> None:
    nodes = Nodes(config(batch_size=4), a_model(Uncertain))
    first = nodes.play(1, 1).of("up")
    model = nodes.clients["client-1"].model
    assert not model.training and not model.norm.running_mean.any()
    torch.manual_seed(7)
    again = Nodes(config(batch_size=4), a_model(Uncertain)).play(1, 1).of("up")
    by_name = {each.sender: each.tensors["gradients"] for each in again}
    assert all(torch.equal(each.tensors["gradients"], by_name[each.sender]) for each in first)


def test_a_step_whose_loss_is_no_number_is_left_out() -> None:
    nodes = Nodes(config())
    nodes.clients["client-2"].shard.inputs[:] = math.nan
    network = nodes.play(1, 1)
    sent = {each.sender: each.tensors["gradients"] for each in network.of("up")}
    assert not sent["client-2"].any() and sent["client-1"].all()
    assert network.missed() == set()
    left = nodes.clients["client-2"]
    torch.testing.assert_close(flat(left.model), flat(nodes.start), rtol=0, atol=1e-6)
    assert not left.sums.any() and int(nodes.server.counts.sum()) == 16 + 12


def test_a_pass_takes_each_sample_once() -> None:
    client = Nodes(config(steps=10, batch_size=2)).clients["client-1"]
    numbers, batches = client._drawn(None)
    drawn = torch.cat(list(batches)).tolist()
    assert len(batches) == 10 and all(len(batch) == 2 for batch in batches)
    assert sorted(drawn[:12]) == list(range(12)) and len(set(drawn[12:])) == 8
    assert numbers.dtype == torch.int32 and 0 <= int(numbers.min()) <= int(numbers.max()) < 16


# What travels, and where it leads


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["vit", "linear"])
def test_bytes_are_the_papers_whatever_the_model(kind: str) -> None:
    own = fedkseed.Config()
    nodes = Nodes(own, a_model(linear) if kind == "linear" else a_model())
    network = nodes.play(1, 2, "client-1", "client-2")
    assert {each.payload_bytes for each in network.of("down")} == {4 * 4096}
    assert {each.payload_bytes for each in network.of("up")} == {8 * 200}
    assert fedkseed.traffic(own, nodes.start) == (1_600, 16_384)
    rounds_of_clients = 2 * 2
    found = network.payload()
    assert sum(found["up"].values()) + sum(found["down"].values()) == rounds_of_clients * 17_984


def test_bytes_of_pro_have_the_means_too() -> None:
    own = config(sampling="importance")
    network = Nodes(own).play(1, 1)
    assert {each.payload_bytes for each in network.of("down")} == {2 * 4 * 16}
    assert {each.payload_bytes for each in network.of("up")} == {8 * 6}
    assert fedkseed.traffic(own, a_model()) == (48, 128)


def test_the_weights_are_made_again_from_the_scalars_alone() -> None:
    nodes = Nodes(config())
    sums = np.zeros(16)
    for number, names in enumerate([(), ("client-1", "client-3"), ("client-2",), ()], start=1):
        updates = nodes.play(number, number, *names).of("up")
        total = sum(SAMPLES[each.sender] for each in updates)
        for each in updates:
            pairs = zip(each.tensors["numbers"], each.tensors["gradients"], strict=True)
            for s, g in pairs:
                sums[int(s)] += SAMPLES[each.sender] / total * float(g)
    np.testing.assert_allclose(nodes.server.sums, sums, rtol=1e-5, atol=1e-6)
    moved = sum(sums[s] * direction(nodes.start, s) for s in range(16))
    expected = flat(nodes.start).numpy() - 1e-3 * moved
    np.testing.assert_allclose(flat(nodes.server.model), expected, rtol=0, atol=2e-6)
    assert np.abs(1e-3 * moved).max() > 1e-3


@pytest.mark.parametrize("sampling", ["uniform", "importance"])
def test_who_missed_rounds_is_where_the_server_is(
    sampling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = Nodes(config(sampling=sampling))
    nodes.play(1, 1)
    nodes.play(2, 3, "client-1", "client-2")
    new = fedkseed.Client(nodes.clients["client-1"].config, a_model(), nodes.parts["client-1"], 77)
    nodes.clients["client-1"] = new
    monkeypatch.setattr(fedkseed.Directions, "step", lambda *_: 0.0)
    nodes.play(4, 4)
    where = flat(nodes.server.model)
    for client in nodes.clients.values():
        torch.testing.assert_close(flat(client.model), where, rtol=0, atol=2e-6)
        assert torch.equal(client.sums, nodes.server.sums)
    assert float((where - flat(nodes.start)).abs().max()) > 1e-3


def test_only_what_has_changed_is_gone_along(monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[int] = []
    add = fedkseed.Directions.add

    def counting(own: fedkseed.Directions, numbers: Any, lengths: Any) -> None:
        moves.append(len(numbers))
        add(own, numbers, lengths)

    nodes = Nodes(config(candidates=1000))
    first = nodes.play(1, 1).of("up")
    monkeypatch.setattr(fedkseed.Directions, "add", counting)
    nodes.play(2, 2, "client-1")
    # In the first round all went along 6, the client's own among them.
    changed = {int(s) for each in first for s in each.tensors["numbers"]}
    assert moves[0] == len(changed) and max(moves[1:]) <= 6


@pytest.mark.thorough
def test_a_run_makes_the_loss_smaller() -> None:
    generator = torch.Generator().manual_seed(0)
    own = config(candidates=512, steps=50, learning_rate=5e-3, batch_size=4)
    nodes = Nodes(own)
    for client in nodes.clients.values():
        labels = torch.randint(CLASSES, (len(client.shard.targets),), generator=generator)
        images = torch.rand(len(labels), 1, 4, 4, generator=generator) * 0.3
        images[torch.arange(len(labels)), 0, labels] += 0.7
        client.shard = Shard(images, labels, images[:0], client.shard.client)
    images = torch.cat([each.shard.inputs for each in nodes.clients.values()])
    labels = torch.cat([each.shard.targets for each in nodes.clients.values()])
    losses = [nodes.server.evaluate(images, labels)["loss"]]
    for number in (1, 2, 3):
        nodes.play(number, number)
        losses.append(nodes.server.evaluate(images, labels)["loss"])
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 0.2


# FedKSeed-Pro


def test_chances_by_hand() -> None:
    found = fedkseed.chances(torch.tensor([3.0, 1.0, 2.0]))
    expected = np.exp([1.0, 0.0, 0.5])
    np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-6)
    assert fedkseed.chances(torch.zeros(4)).tolist() == [0.25] * 4


def test_means_are_of_what_was_sent_clipped_and_of_a_first_zero() -> None:
    server = Nodes(config(sampling="importance", clip=2.0, candidates=4)).server
    server._remember(torch.tensor([0, 0, 2, 3]), torch.tensor([-1.0, 5.0, 0.0, 1.0]))
    assert (server.sizes / server.counts).tolist() == [1.0, 0.0, 0.0, 0.5]


def test_steps_go_along_directions_by_their_chances() -> None:
    client = Nodes(config(sampling="importance", steps=40_000, candidates=3)).clients["client-1"]
    means = torch.tensor([3.0, 1.0, 2.0])
    numbers, _ = client._drawn(means)
    found = torch.bincount(numbers, minlength=3) / 40_000
    np.testing.assert_allclose(found, fedkseed.chances(means), atol=0.01)


# Compute


def test_operations_are_those_that_modelled_compute_counts(some_noise: Tensor) -> None:
    own = config(batch_size=3)
    shard = shards({"one": 10}, (1, 4, 4), CLASSES)["one"]
    with torch.device("meta"):
        bare = VisionTransformer(SPEC, CLASSES)
    model = fedkseed.adapt(own, bare)
    weights = sum(each.numel() for each in model.parameters())
    image = torch.empty(1, 1, 4, 4, device="meta")
    by_hand = 6 * (2 * 3 * flops.forward(model, image) + 3 * 2 * weights) + 16 * 2 * weights
    assert fedkseed.fixed_flops(own, model, image) == by_hand
    assert fedkseed.client_flops(own, model, image) == 0
    device = Modelled(1e18, some_noise)
    client = fedkseed.Client(own, model, shard._replace(inputs=shard.inputs.to("meta")), 1)
    with device.active():
        client.round(Told({"sums": torch.empty(16, device="meta")}))
    device.settle()
    assert device.facts()["flops"] == by_hand


class Told(Peer):
    """A server that says one thing."""

    round = 1

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def receive(self, *_: Any, **__: Any) -> Any:
        return self

    def send(self, *_: Any, **__: Any) -> None:
        pass


@pytest.fixture(scope="module")
def some_noise() -> Tensor:
    return torch.rand(1000)


# Refusals


class Malformed:
    def __init__(self, numbers: Tensor, gradients: Tensor) -> None:
        self.answer = {"numbers": numbers, "gradients": gradients}

    def round(self, peer: Peer) -> None:
        peer.receive(fedkseed.KIND)
        peer.send(fedkseed.KIND, self.answer)


@pytest.mark.parametrize(
    ("numbers", "gradient", "reason"),
    [
        (torch.tensor([0, 1, 2, 3, 4, 16], dtype=torch.int32), 1.0, "a direction outside 0 to 15"),
        (torch.tensor([0, -1, 2, 3, 4, 5], dtype=torch.int32), 1.0, "a direction outside 0 to 15"),
        (
            torch.arange(6, dtype=torch.int32),
            math.nan,
            "gradients holds values that are not finite",
        ),
        (
            torch.arange(6, dtype=torch.int32),
            -math.inf,
            "gradients holds values that are not finite",
        ),
        (
            torch.zeros(6, dtype=torch.int32),
            3e38,
            "its steps lead further than a float32 can tell",
        ),
        (torch.arange(6), 1.0, "numbers is torch.int64[6], expected torch.int32[6]"),
        (
            torch.arange(5, dtype=torch.int32),
            1.0,
            "numbers is torch.int32[5], expected torch.int32[6]",
        ),
    ],
)
def test_what_cannot_be_taken_is_refused_and_the_others_count(
    numbers: Tensor, gradient: float, reason: str
) -> None:
    nodes = Nodes(config())
    nodes.clients["client-2"] = Malformed(numbers, torch.full((6,), gradient))
    network = nodes.play(1, 1)
    assert network.missed() == {("client-2", f"its update was not taken: {reason}")}
    expected = Nodes(config())
    expected.play(1, 1, "client-1", "client-3")
    assert torch.equal(nodes.server.sums, expected.server.sums)
    assert torch.equal(flat(nodes.server.model), flat(expected.server.model))


def test_a_round_without_answers_leaves_everything() -> None:
    nodes = Nodes(config())
    nodes.clients["client-2"] = Malformed(torch.full((6,), 99, dtype=torch.int32), torch.ones(6))
    nodes.play(1, 1, "client-2")
    assert not nodes.server.sums.any()
    assert torch.equal(flat(nodes.server.model), flat(nodes.start))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("candidates", 0),
        ("steps", 0),
        ("batch_size", 0),
        ("epsilon", 0.0),
        ("epsilon", 2.0),
        ("learning_rate", 0.0),
        ("clip", 0.0),
        ("sampling", "biased"),
    ],
)
def test_an_option_out_of_range_is_refused(option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^options of method fedkseed: {option} = "):
        FineTuning(RunConfig(method="fedkseed", options={option: value}), 2)


def test_a_model_without_real_weights_to_train_is_refused() -> None:
    frozen = VisionTransformer(SPEC, CLASSES).requires_grad_(False)
    whole = nn.Linear(2, 2, dtype=torch.complex64)
    for model in (frozen, whole):
        with pytest.raises(ValueError, match="trainable parameters, all of them real"):
            fedkseed.check(config(), model)
    fedkseed.check(config(), VisionTransformer(SPEC, CLASSES))
