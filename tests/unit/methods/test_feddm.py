"""FedDM: gradients of the synthetic images, bytes, what they show, and refusals."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from copied import copied
from in_process import Network, play, shards
from torch import Tensor, nn
from torch.nn import functional as F

from methods import Peer, Shard, feddm
from methods.shared.local_training import trainable_state
from nodes.compute import Modelled
from nodes.program import FineTuning
from nodes.workload import data, models
from nodes.workload.models import ModelSpec, VisionTransformer
from testbed.config_error import ConfigError
from testbed.run.config import RunConfig

CLASSES = 3
SPEC = ModelSpec(side=4, patch=2, width=8, depth=1, heads=2)
SHAPE = (1, 4, 4)
PIXELS = 16
SAMPLES = {"client-1": 12, "client-2": 20, "client-3": 8}


def config(**options: Any) -> feddm.Config:
    few = {"iterations": 3, "real_batch": 4, "server_epochs": 2, "server_batch_size": 8}
    return feddm.Config(**{**few, **options})


def a_model() -> nn.Module:
    torch.manual_seed(0)
    return VisionTransformer(SPEC, CLASSES)


def parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: each.detach() for name, each in model.named_parameters()}


class Nodes:
    def __init__(self, own: feddm.Config, model: nn.Module | None = None) -> None:
        self.start = model or a_model()
        self.parts = shards(SAMPLES, SHAPE, CLASSES)
        self.parts["client-2"].targets[:] = torch.arange(20) % 2 * 2
        nothing = Shard(torch.empty(0, *SHAPE), torch.empty(0, dtype=torch.int64), None, 0)  # type: ignore[arg-type]
        self.server = feddm.Server(own, copied(self.start), nothing, 0)
        self.clients: dict[str, Any] = {
            name: feddm.Client(own, copied(self.start), shard, 10 + shard.client)
            for name, shard in self.parts.items()
        }

    def play(self, rounds: int = 1, **more: Any) -> Network:
        return play(self.server, self.clients, SAMPLES, rounds, **more)

    def present(self, client: str) -> list[int]:
        return sorted(set(self.parts[client].targets.tolist()))


# Matching


def test_the_gradient_of_the_images_against_finite_differences() -> None:
    model = a_model().double().eval()
    draw = torch.Generator().manual_seed(2)
    real = torch.rand(7, *SHAPE, generator=draw, dtype=torch.float64)
    images = torch.rand(4, *SHAPE, generator=draw, dtype=torch.float64)
    weights = feddm.nearby(model, 0.5, draw)

    def loss(where: Tensor) -> Tensor:
        return feddm.mismatch(model, weights, real, [4, 3], where)

    (found,) = torch.autograd.grad(loss(images.requires_grad_()), images)
    expected = torch.zeros_like(images)
    with torch.no_grad():
        for place in range(images.numel()):
            step = torch.zeros(images.numel(), dtype=torch.float64)
            step[place] = 1e-5
            step = step.view_as(images)
            expected.view(-1)[place] = (loss(images + step) - loss(images - step)) / 2e-5
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    assert float(expected.abs().min()) > 1e-6


def test_a_mismatch_by_hand() -> None:
    model = a_model().eval()
    draw = torch.Generator().manual_seed(2)
    real, images = (torch.rand(n, *SHAPE, generator=draw) for n in (7, 4))
    found = feddm.mismatch(model, parameters(model), real, [4, 3], images)

    def both(some: Tensor) -> list[np.ndarray]:
        with torch.no_grad():
            tokens = model.embed(some)
            for block in model.blocks:
                tokens = block(tokens)
            features = model.head.norm(tokens[:, 0])
            return [features.double().numpy(), model.head.classifier(features).double().numpy()]

    expected = 0.0
    for mine, theirs in zip(both(images), both(real), strict=True):
        for own, other in ((mine[:2], theirs[:4]), (mine[2:], theirs[4:])):
            expected += float(((own.mean(axis=0) - other.mean(axis=0)) ** 2).sum())
    assert float(found.detach()) == pytest.approx(expected, rel=1e-4) and expected > 1e-3
    same = feddm.mismatch(model, parameters(model), real[:4], [2, 2], real[:4])
    assert float(same) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize(("rho", "reached"), [(0.5, True), (1e6, False), (0.0, True)])
def test_weights_are_moved_within_the_ball(rho: float, reached: bool) -> None:
    model = a_model()
    own = parameters(model)
    moved = feddm.nearby(model, rho, torch.Generator().manual_seed(3))
    changes = torch.cat([(moved[name] - own[name]).flatten() for name in own]).double()
    length = float(changes.norm())
    if reached:
        assert length == pytest.approx(rho, rel=1e-3)
    else:
        # Of u itself, some sqrt(n).
        assert length == pytest.approx(len(changes) ** 0.5, rel=0.1)
    assert moved.keys() == own.keys()


def test_learning_brings_the_means_together_and_leaves_the_model() -> None:
    nodes = Nodes(config(iterations=60, rho=0.1, image_learning_rate=0.5, real_batch=64))
    client = nodes.clients["client-1"]
    shard, before = nodes.parts["client-1"], trainable_state(client.model)
    order = shard.targets.argsort()
    counts = shard.targets.bincount(minlength=CLASSES).tolist()
    images = client.learn(range(CLASSES))
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(1))
    client.model.eval()
    far, near = (
        float(
            feddm.mismatch(
                client.model, parameters(client.model), shard.inputs[order], counts, some
            )
        )
        for some in (noise, images)
    )
    assert near < 0.2 * far
    after = trainable_state(client.model)
    assert all(torch.equal(after[name], each) for name, each in before.items())
    assert not any(each.grad is not None for each in client.model.parameters())


# What travels


@pytest.mark.parametrize(("pixels", "size"), [("float32", 4), ("uint8", 1)])
def test_bytes_are_those_of_the_formula(pixels: str, size: int) -> None:
    own = config(pixels=pixels, ipc=3)
    nodes = Nodes(own)
    network = nodes.play(2)
    weights = 4 * sum(each.numel() for each in nodes.start.parameters())
    assert {each.payload_bytes for each in network.of("down")} == {weights}
    assert network.missed() == set() and len(network.of("up")) == 6
    for message in network.of("up"):
        count = len(nodes.present(message.sender)) * 3
        assert message.payload_bytes == count * (size * PIXELS + 1)
        assert message.tensors["images"].dtype == getattr(torch, pixels)
    assert feddm.traffic(own, nodes.start) == (3 * (size + 1), weights)


def test_bytes_at_the_papers_size() -> None:
    """CIFAR-10, every class, ipc = 10: 1,228,800 of pixels, a byte a label."""
    shape = (3, 32, 32)
    for pixels, expected in (("float32", 1_228_800 + 100), ("uint8", 307_200 + 100)):
        sent = feddm.outgoing(torch.zeros(100, *shape), pixels)
        labels = torch.zeros(100, dtype=torch.uint8)
        assert sum(each.numel() * each.element_size() for each in (sent, labels)) == expected


def test_a_client_sends_the_classes_that_it_has() -> None:
    nodes = Nodes(config(ipc=2))
    network = nodes.play()
    told = {each.sender: each.tensors["labels"].tolist() for each in network.of("up")}
    assert told["client-2"] == [0, 0, 2, 2]
    for name, labels in told.items():
        assert labels == [each for each in nodes.present(name) for _ in range(2)]


def test_pixels_as_bytes_are_clipped_and_off_by_half_a_step_at_most() -> None:
    images = torch.linspace(-0.5, 1.5, 1001).view(1, 1, 7, 143)
    found = feddm.received(feddm.outgoing(images, "uint8"))
    assert float((found - images.clamp(0, 1)).abs().max()) <= 1 / 510 + 1e-6
    assert torch.equal(feddm.received(feddm.outgoing(images, "float32")), images)


def test_images_begin_anew_each_round() -> None:
    nodes = Nodes(config(iterations=1, image_learning_rate=1e-12))
    came = nodes.play(2).of("up")
    first, second = ([m for m in came if m.round == number] for number in (1, 2))
    for one in first:
        (other,) = [m for m in second if m.sender == one.sender]
        assert float((one.tensors["images"] - other.tensors["images"]).abs().mean()) > 0.1


# The server


def test_the_server_trains_on_the_images_of_all() -> None:
    """Full batches, so that no draw shows."""
    own = config(server_epochs=3, server_batch_size=64, server_learning_rate=0.05)
    nodes = Nodes(own)
    came = sorted(nodes.play().of("up"), key=lambda each: each.sender)
    images = torch.cat([each.tensors["images"] for each in came])
    labels = torch.cat([each.tensors["labels"] for each in came]).long()
    model = copied(nodes.start)
    speeds = {name: torch.zeros_like(each) for name, each in model.named_parameters()}
    for _ in range(3):
        model.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        with torch.no_grad():
            for name, each in model.named_parameters():
                assert each.grad is not None
                speeds[name] = 0.9 * speeds[name] + each.grad + 5e-4 * each
                each -= 0.05 * speeds[name]
    for name, each in nodes.server.model.named_parameters():
        torch.testing.assert_close(each, model.get_parameter(name), rtol=1e-4, atol=1e-6)


def test_whoever_comes_first_the_model_is_the_same() -> None:
    states = []
    for _ in range(3):
        nodes = Nodes(config())
        nodes.play(2)
        states.append(trainable_state(nodes.server.model))
    assert all(torch.equal(states[0][name], other[name]) for other in states for name in other)


def test_a_lost_client_and_a_draw_leave_a_round_of_the_others() -> None:
    nodes = Nodes(config())
    network = nodes.play(3, network=Network(dies_after={"client-3": 1}))
    assert [m.sender for m in network.of("up") if m.round == 3] in (
        ["client-1", "client-2"],
        ["client-2", "client-1"],
    )
    few = Nodes(config()).play(3, per_round=2).of("up")
    assert [m.round for m in few] == [1, 1, 2, 2, 3, 3]


def test_a_round_without_answers_leaves_the_model() -> None:
    nodes = Nodes(config())
    nodes.play(1, network=Network(dies_after=dict.fromkeys(SAMPLES, 0)))
    before, after = trainable_state(nodes.start), trainable_state(nodes.server.model)
    assert all(torch.equal(before[name], after[name]) for name in before)


class Malformed:
    def __init__(self, **tensors: Tensor) -> None:
        self.answer = tensors

    def round(self, peer: Peer) -> None:
        peer.receive(feddm.KIND)
        peer.send(feddm.IMAGES, self.answer)


def answer(labels: Any = (0, 0, 2, 2), **more: Any) -> dict[str, Tensor]:
    own = torch.tensor(labels, dtype=more.get("dtype", torch.uint8))
    return {"images": more.get("images", torch.zeros(len(own), *SHAPE)), "labels": own}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"images": torch.zeros(2, *SHAPE)}, "images came, expected images and labels"),
        (answer(dtype=torch.int64), "labels is torch.int64[4], expected bytes"),
        (answer([]), "labels are not 2 of each of some classes from 0 to 2, in order"),
        (answer([2, 2, 0, 0]), "labels are not 2 of each of some classes"),
        (answer([0, 0, 0, 0]), "labels are not 2 of each of some classes"),
        (answer([0, 0, 2]), "labels are not 2 of each of some classes"),
        (answer([0, 1, 2, 2]), "labels are not 2 of each of some classes"),
        (answer([0, 0, 3, 3]), "labels are not 2 of each of some classes"),
        (answer(images=torch.zeros(4, 1, 4, 5)), "images is torch.float32[4, 1, 4, 5], expected"),
        (answer(images=torch.zeros(3, *SHAPE)), "images is torch.float32[3, 1, 4, 4], expected"),
        (answer(images=torch.zeros(4, *SHAPE).double()), "images is torch.float64[4, 1, 4, 4]"),
        (answer(images=torch.full((4, *SHAPE), torch.nan)), "images holds values that are not fin"),
    ],
)
def test_what_cannot_be_taken_is_refused_and_the_others_count(
    tensors: Mapping[str, Tensor], reason: str
) -> None:
    nodes, expected = Nodes(config()), Nodes(config())
    nodes.clients["client-2"] = Malformed(**tensors)
    ((client, told),) = nodes.play().missed()
    assert client == "client-2" and told.startswith(f"its update was not taken: {reason}")
    del expected.clients["client-2"]
    expected.play()
    own, other = trainable_state(nodes.server.model), trainable_state(expected.server.model)
    assert all(torch.equal(own[name], other[name]) for name in own)


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(PIXELS)
        self.classifier = nn.Linear(PIXELS, CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.norm(pixels))
        return logits


class Normalised(nn.Module):
    """Batch normalisation, in stages."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.blocks, self.head = nn.Flatten(), nn.ModuleList(), Head()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embed(images))
        return logits


def test_statistics_travel_stay_at_clients_and_learn_at_the_server() -> None:
    nodes = Nodes(config(), Normalised())
    network = nodes.play()
    mean = "head.norm.running_mean"
    assert all(mean in each.tensors for each in network.of("down"))
    assert not nodes.clients["client-1"].model.get_buffer(mean).any()
    came = torch.cat([each.tensors["images"].flatten(1) for each in network.of("up")])
    found = nodes.server.model.get_buffer(mean)
    assert float((found - came.mean(dim=0)).abs().max()) < float(came.mean(dim=0).abs().max())
    assert bool(found.any())


# What images show


def nearest(images: Tensor, others: Tensor) -> Tensor:
    """Distance from each image to the nearest of the others, (n,)."""
    return torch.cdist(images.flatten(1), others.flatten(1)).min(dim=1).values


@pytest.mark.thorough
def test_images_that_begin_as_samples_show_them_and_those_of_noise_do_not() -> None:
    digits = data.load("digits", seed=0)
    images, truth = torch.from_numpy(data.scaled(digits.train_inputs)), digits.train_targets
    own = Shard(images[:60], torch.from_numpy(truth[:60]), images[:0], 1)
    others = images[60:]
    found = {}
    for real in (True, False):
        model = models.build("vit-glyphs", digits.outputs, seed=0)
        own_rate = {"image_learning_rate": 0.01, "real_batch": 32, "real_init": real}
        options = config(iterations=10, **own_rate)
        client = feddm.Client(options, model, own, 3)
        found[real] = client.learn(sorted(set(own.targets.tolist()))).clamp(0, 1)
    # A training image is as far from a client's as one that the client has never had.
    strangers = nearest(others[:200], own.inputs).median()
    assert nearest(found[True], own.inputs).median() < 0.5 * strangers
    assert nearest(found[False], own.inputs).min() > strangers
    assert nearest(found[False], own.inputs).median() == pytest.approx(
        float(nearest(found[False], others[:60]).median()), rel=0.1
    )


def test_how_images_begin_is_told() -> None:
    assert feddm.server_sees(config()) == "synthetic images, and which classes a client has"
    assert "that began as samples" in feddm.server_sees(config(real_init=True))


def test_training_images_are_repeated_where_a_class_has_too_few() -> None:
    nodes = Nodes(config(real_init=True, ipc=9, image_learning_rate=1e-12, rho=0))
    shard = nodes.parts["client-3"]
    images = nodes.clients["client-3"].learn(nodes.present("client-3"))
    assert len(images) == 9 * len(nodes.present("client-3"))
    assert float(nearest(images, shard.inputs).max()) < 5e-3


# Compute


def test_operations_are_those_that_modelled_compute_counts() -> None:
    own = config(real_batch=10, ipc=2, iterations=5)
    shard = shards({"one": 9}, SHAPE, CLASSES)["one"]
    shard.targets[:] = torch.arange(9) % CLASSES
    with torch.device("meta"):
        model = VisionTransformer(SPEC, CLASSES)
    image = torch.empty(1, *SHAPE, device="meta")
    each, of_class = (of(own, model, image) for of in (feddm.client_flops, feddm.class_flops))
    told = 9 * each + 3 * of_class
    device = Modelled(1e18, torch.rand(1000))
    with device.active():
        feddm.Client(own, model, shard._replace(inputs=shard.inputs.to("meta")), 1).learn([0, 1, 2])
    device.settle()
    assert device.facts()["flops"] == told > 0


# Refusals


def test_a_model_that_cannot_be_matched_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Sequential cannot be cut: it has no embed"):
        feddm.check(config(), nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, CLASSES)))
    with pytest.raises(ValueError, match="as a byte, which 257 classes are too many for"):
        feddm.check(config(), VisionTransformer(SPEC, 257))
    with pytest.raises(ValueError, match="it needs trainable parameters"):
        feddm.check(config(), a_model().requires_grad_(False))
    feddm.check(config(), VisionTransformer(SPEC, 256))


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("ipc", 0, "ipc = 0: Expected `int` >= 1"),
        ("iterations", 0, "iterations = 0: Expected `int` >= 1"),
        ("real_batch", 0, "real_batch = 0: Expected `int` >= 1"),
        ("rho", -1.0, "rho = -1.0: Expected `float` >= 0"),
        ("image_momentum", 1.0, "image_momentum = 1.0: Expected `float` < 1"),
        ("pixels", "int4", "pixels = 'int4': must be one of float32, uint8"),
        ("server_epochs", 0, "server_epochs = 0: Expected `int` >= 1"),
    ],
)
def test_bad_options_are_refused(option: str, value: object, reason: str) -> None:
    with pytest.raises(ConfigError) as refused:
        FineTuning(RunConfig(method="feddm", options={option: value}), 2)  # type: ignore[dict-item]
    assert reason in str(refused.value)


def test_what_is_sent_as_bytes_is_learnt_within_their_range() -> None:
    """Clipped only as they are sent, images would not be those that were learnt."""
    nodes = Nodes(config(pixels="uint8", image_learning_rate=10.0, iterations=5))
    images = nodes.clients["client-3"].learn(nodes.present("client-3"))
    assert float(images.min()) == 0 and float(images.max()) == 1
    back = feddm.received(feddm.outgoing(images, "uint8"))
    assert float((back - images).abs().max()) <= 0.5 / 255 + 1e-6
    free = Nodes(config(image_learning_rate=10.0, iterations=5))
    assert float(free.clients["client-3"].learn(free.present("client-3")).max()) > 1
