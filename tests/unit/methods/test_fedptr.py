"""FedPTR: unrolled gradients, the projection by another loop, bytes, and refusals."""

from typing import Any

import pytest
import torch
from copied import copied
from in_process import play, shards
from made_rounds import CLASSES, SAMPLES, SHAPE, Rounds, linear, same
from torch import Tensor, nn
from torch.nn import functional as F

from methods import Peer, Shard, fedavg, fedpeft, fedprox, fedptr
from methods.shared.local_training import trainable_state
from nodes.compute import Modelled
from nodes.program import FineTuning
from nodes.workload.models import ModelSpec, VisionTransformer
from testbed.config_error import ConfigError
from testbed.run.config import RunConfig

SPEC = ModelSpec(side=4, patch=2, width=8, depth=1, heads=2)
TRAINING = {"learning_rate": 0.05, "batch_size": 4, "match_steps": 4, "unrolled_steps": 3}
PROJECTIONS = ("synthetic", "projected", "client")
PIXELS = 16
SET = CLASSES * (4 * PIXELS + 4 * CLASSES) + 4
"""Payload bytes of a synthetic set of an image a class."""
MODEL = 4 * (PIXELS * CLASSES + CLASSES)


def vit() -> nn.Module:
    torch.manual_seed(0)
    return VisionTransformer(SPEC, CLASSES)


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(PIXELS)
        self.classifier = nn.Linear(PIXELS, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.norm(images.flatten(1)))
        return logits


def config(**options: Any) -> fedptr.Config:
    return fedptr.Config(**{"variant": "full", **TRAINING, **options})


def an_update(model: nn.Module, length: float = 0.1) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights, and a change of them of that length."""
    start = fedptr.trained(model)
    draw = torch.Generator().manual_seed(4)
    change = {
        name: torch.randn(each.shape, generator=draw, dtype=each.dtype)
        for name, each in start.items()
    }
    whole = float(fedptr.norm(change))
    return start, {name: each * (length / whole) for name, each in change.items()}


# The gradient through the steps


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["vit", "batch norm"])
def test_the_unrolled_gradient_against_finite_differences(kind: str) -> None:
    model = (vit() if kind == "vit" else Normalised()).double()
    draw = torch.Generator().manual_seed(3)
    parts = [
        torch.rand(CLASSES, *SHAPE, generator=draw, dtype=torch.float64),
        torch.randn(CLASSES, CLASSES, generator=draw, dtype=torch.float64),
        torch.tensor([-1.5], dtype=torch.float64),
    ]
    start, change = an_update(model)
    own = config()

    def loss(*some: Tensor) -> Tensor:
        return fedptr.mismatch(own, model, start, change, *some)

    leaves = [each.clone().requires_grad_() for each in parts]
    found = torch.autograd.grad(loss(*leaves), leaves)
    for which, part in enumerate(parts):
        for place in range(part.numel()):
            step = torch.zeros_like(part)
            step.view(-1)[place] = 1e-6
            above = [each + step if n == which else each for n, each in enumerate(parts)]
            below = [each - step if n == which else each for n, each in enumerate(parts)]
            expected = (loss(*above) - loss(*below)).item() / 2e-6
            assert found[which].view(-1)[place].item() == pytest.approx(
                expected, rel=1e-4, abs=1e-6
            )
        assert float(found[which].abs().max()) > 1e-3


def test_steps_by_another_loop() -> None:
    model = linear()
    start, _ = an_update(model)
    draw = torch.Generator().manual_seed(3)
    images = torch.rand(CLASSES, *SHAPE, generator=draw)
    labels = torch.rand(CLASSES, CLASSES, generator=draw).softmax(dim=1)
    found = {"images": images, "labels": labels, "step": torch.tensor([0.3])}
    other = copied(model)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.3)
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(other(images), labels).backward()
        optimizer.step()
    ahead = fedptr.project(config(unrolled_steps=5), model, start, found)
    for name, each in other.named_parameters():
        torch.testing.assert_close(ahead[name], each.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [1.0, 1e-3, 1e-12, 1e-25])
def test_an_update_of_any_size_is_imitated(length: float) -> None:
    """The last is one whose squares float32 has no room for, and that no weight shows."""
    model = linear()
    start, _ = an_update(model)
    aim = {"images": torch.rand(6, *SHAPE), "labels": torch.eye(CLASSES)[torch.arange(6) % CLASSES]}
    change = fedptr.unrolled(model, start, aim | {"step": torch.ones(1)}, 1)
    scale = length / float(fedptr.norm(change))
    change = {name: scale * each for name, each in change.items()}
    own = config(match_steps=60, unrolled_steps=2)
    imitation = fedptr.Imitation(own, model, torch.empty(0, *SHAPE), 1)
    first = fedptr.Imitation(own, model, torch.empty(0, *SHAPE), 1)
    imitation.learn(model, start, change)
    moved = fedptr.unrolled(model, start, imitation.tensors(), 2)
    off = fedptr.norm({name: moved[name] - change[name] for name in change})
    assert float(off) < 0.2 * length
    assert float(fedptr.norm(moved)) == pytest.approx(length, rel=0.2)
    assert not torch.equal(imitation.images, first.images)


def test_an_update_of_nothing_is_none() -> None:
    model = linear()
    start, change = an_update(model)
    assert (
        fedptr.difference(model, start, {name: each.clone() for name, each in start.items()}) == {}
    )
    assert fedptr.difference(model, {}, start) == {}
    after = {name: start[name] + change[name] for name in start}
    assert fedptr.difference(model, start, after).keys() == start.keys()


def test_what_diverges_is_no_projection() -> None:
    model = linear()
    start, change = an_update(model)
    own = config()
    imitation = fedptr.Imitation(own, model, torch.empty(0, *SHAPE), 1)
    before = imitation.images
    imitation.learn(model, start, {name: torch.nan * each for name, each in change.items()})
    assert imitation.images is before and imitation.step.item() == 0
    found = imitation.tensors()
    for step in (0.0, 1e38):
        found["step"] = torch.tensor([step])
        found["labels"] = found["labels"] * (1 if step == 0 else 1e30)
        ahead = fedptr.project(own, model, start, found)
        assert all(torch.equal(ahead[name], start[name]) for name in start)


def test_statistics_are_neither_learnt_nor_projected() -> None:
    model = Normalised()
    model.norm.running_mean.fill_(0.5)
    start, change = an_update(model)
    imitation = fedptr.Imitation(config(), model, torch.empty(0, *SHAPE), 1)
    imitation.learn(model, start, change)
    ahead = fedptr.project(config(), model, start, imitation.tensors())
    assert ahead.keys() == dict(model.named_parameters()).keys()
    assert bool((model.norm.running_mean == 0.5).all())
    assert model.norm.num_batches_tracked.item() == 0


# Rounds


def test_round_1_is_fedavgs_and_later_ones_are_not() -> None:
    ours = Rounds(fedptr, mu=1.0, **TRAINING)
    theirs = Rounds(fedpeft, learning_rate=0.05, batch_size=4)
    assert same(ours.states[:2], theirs.states[:2])
    assert not same(ours.states[2:3], theirs.states[2:3])
    without = Rounds(fedptr, mu=0.0, **TRAINING)
    assert same(without.states, theirs.states)


def test_synthetic_images_lead_clients_where_the_server_is_led() -> None:
    one, other = (
        Rounds(fedptr, mu=1.0, projection=each, **TRAINING) for each in ("synthetic", "projected")
    )
    for mine, theirs in zip(one.states, other.states, strict=True):
        for name in mine:
            torch.testing.assert_close(mine[name], theirs[name], rtol=1e-5, atol=1e-6)


def test_what_is_sent_leads_from_the_present_weights_like_the_last_update() -> None:
    played = Rounds(fedptr, rounds=2, projection="projected", **{**TRAINING, "match_steps": 100})
    (told, *_) = [m for m in played.network.of("down", "projected") if m.round == 2]
    first, second = played.states[0], played.states[1]
    update = torch.cat([(second[name] - first[name]).flatten() for name in first])
    ahead = torch.cat([(told.tensors[name] - second[name]).flatten() for name in first])
    assert float(F.cosine_similarity(update, ahead, dim=0)) > 0.3


def test_clients_are_pulled_to_the_projection() -> None:
    """So hard that nothing else counts."""
    options = {**TRAINING, "learning_rate": 0.01, "optimizer": "sgd", "local_epochs": 40}
    played = Rounds(fedptr, rounds=2, projection="projected", mu=20.0, **options)
    (told, *_) = [m for m in played.network.of("down", "projected") if m.round == 2]
    for message in (m for m in played.network.of("up") if m.round == 2):
        for name, each in told.tensors.items():
            assert float((message.tensors[name] - each).abs().max()) < 0.05


@pytest.mark.parametrize(
    ("projection", "extra"), [("synthetic", SET), ("projected", MODEL), ("client", 0)]
)
def test_bytes_are_those_of_the_formula(projection: str, extra: int) -> None:
    played = Rounds(fedptr, projection=projection, **TRAINING)
    found: dict[tuple[str, int], set[int]] = {}
    for way, client, message in played.network.log:
        assert client in SAMPLES
        found.setdefault((way, message.round), set()).add(message.payload_bytes)
    assert all(found["up", number] == {MODEL} for number in (1, 2, 3))
    assert found["down", 1] == {MODEL}
    assert all(found["down", number] == {MODEL, extra or MODEL} for number in (2, 3))
    messages = {"client": 3, "synthetic": 5, "projected": 5}[projection]
    assert len(played.network.of("down")) == 3 * messages
    start = fedptr.adapt(played.config, linear())
    assert fedptr.traffic(played.config, start) == (MODEL, MODEL)


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_batch_normalisation_is_averaged_as_ever(projection: str) -> None:
    parts = {name: each for name, each in SAMPLES.items() if each > 4}
    own = config(projection=projection, batch_size=3)
    data = shards(parts, SHAPE, CLASSES)
    nothing = Shard(torch.empty(0, *SHAPE), torch.empty(0, dtype=torch.int64), None, 0)  # type: ignore[arg-type]
    server = fedptr.Server(own, Normalised(), nothing, 0)
    clients = {
        name: fedptr.Client(own, Normalised(), each, each.client) for name, each in data.items()
    }
    network = play(server, clients, parts, 2)
    assert network.missed() == set()
    came = [m for m in network.of("up") if m.round == 2]
    means = torch.stack([m.tensors["norm.running_mean"] for m in came])
    weights = torch.tensor([float(parts[m.sender]) for m in came])
    expected = (weights[:, None] * means).sum(dim=0) / weights.sum()
    torch.testing.assert_close(server.model.get_buffer("norm.running_mean"), expected)
    assert all("norm.running_mean" not in m.tensors for m in network.of("down", "projected"))


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_a_lost_client_and_a_draw_leave_a_round_of_the_others(projection: str) -> None:
    played = Rounds(fedptr, projection=projection, dies_after={"client-2": 1}, **TRAINING)
    assert len([m for m in played.network.of("up") if m.round == 3]) == 2
    drawn = Rounds(fedptr, rounds=1, projection=projection, **TRAINING)
    network = play(drawn.server, drawn.clients, SAMPLES, 4, first=2, per_round=2)
    assert [m.round for m in network.of("up")] == [2, 2, 3, 3, 4, 4]
    assert network.missed() == set()


def test_a_client_without_a_class_learns_of_all() -> None:
    played = Rounds(fedptr, rounds=1, projection="client", **TRAINING)
    client = played.clients["client-3"]
    client.shard.targets[:] = 0
    network = play(played.server, played.clients, SAMPLES, 2, first=2)
    assert network.missed() == set() and len(client.imitation.images) == CLASSES
    assert float(client.imitation.step) > 0 and client.aim is None


def test_a_round_without_updates_has_nothing_to_imitate() -> None:
    played = Rounds(fedptr, rounds=1, dies_after=dict.fromkeys(SAMPLES, 0), **TRAINING)
    assert same(played.states[:1], played.states[1:])
    again = Rounds(fedptr, rounds=1, **TRAINING)
    network = play(played.server, again.clients, SAMPLES, 2, first=2)
    assert {m.details["follows"] for m in network.of("down")} == {"nothing"}
    assert len(network.of("up")) == 3


class Other:
    """A server that announces something else."""

    def __init__(self, model: nn.Module, follows: str) -> None:
        self.model, self.follows = model, follows

    async def round(self, fleet: Any) -> None:
        await fleet.broadcast("model", trainable_state(self.model), follows=self.follows)
        async for _ in fleet.gather("model"):
            pass


@pytest.mark.thorough
def test_stragglers_are_fedproxs() -> None:
    """Drawn by the round, so that of two rounds of 30 epochs no two are as long."""
    more = {"mu": 0.0, "straggler_share": 1.0, "local_epochs": 30}
    ours = Rounds(fedptr, **more, **TRAINING)
    theirs = Rounds(fedprox, **more, learning_rate=0.05, batch_size=4)
    assert same(ours.states, theirs.states)
    assert not same(
        ours.states, Rounds(fedptr, **{**more, "straggler_share": 0.0}, **TRAINING).states
    )


def test_what_does_not_follow_is_refused() -> None:
    played = Rounds(fedptr, rounds=1, **TRAINING)
    network = play(Other(linear(), "projected"), {"client-1": played.clients["client-1"]}, SAMPLES)
    reason = "it refused: 'projected' follows, expected synthetic or nothing"
    assert network.missed() == {("client-1", reason)}


# Privacy, compute, refusals


@pytest.mark.thorough
@pytest.mark.parametrize("dp", ["sample", "client"])
def test_privacy_is_fedavgs_since_models_alone_are_looked_at(dp: str) -> None:
    more = {"dp": dp, "dp_noise": 1.0}
    ours = Rounds(fedptr, mu=0.0, **more, **TRAINING)
    theirs = Rounds(fedavg, learning_rate=0.05, batch_size=4, **more)
    shard = ours.parts["client-1"]
    found, expected = (
        each.server.evaluate(shard.inputs, shard.targets)["epsilon"] for each in (ours, theirs)
    )
    assert found == expected > 0


class Told(Peer):
    """A server that says what is asked for."""

    round = 2

    def __init__(self, model: nn.Module, own: fedptr.Config) -> None:
        self.of = {
            fedptr.SYNTHETIC: fedptr.outline(own, model, torch.empty(0, *SHAPE, device="meta"))
        }
        self.model = trainable_state(model)
        self.details = {"follows": own.projection}

    def receive(self, kind: str, *_: Any, **__: Any) -> Any:
        self.tensors = self.of.get(kind, self.model)
        return self

    def send(self, *_: Any, **__: Any) -> None:
        pass


@pytest.mark.thorough
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_operations_are_those_that_modelled_compute_counts(projection: str) -> None:
    own = config(projection=projection, batch_size=12)
    shard = shards({"one": 12}, SHAPE, CLASSES)["one"]
    shard = shard._replace(inputs=shard.inputs.to("meta"))
    with torch.device("meta"):
        model = VisionTransformer(SPEC, CLASSES)
    image = torch.empty(1, *SHAPE, device="meta")
    fixed = fedptr.fixed_flops(own, model, image)
    assert fixed == fedptr.fixed_flops(own, vit(), torch.zeros(1, *SHAPE))
    extra = fixed[-1] if isinstance(fixed, list) else fixed
    assert (extra > 0) == (projection != "projected")
    if isinstance(fixed, list):
        assert len(fixed) == 2 and fixed[0] == 0
    device = Modelled(1e18, torch.rand(1000))
    server = Told(model, own)
    with device.active():
        client = fedptr.Client(own, model, shard, 1)
        client.last = trainable_state(model)
        device.rest()
        client.round(server)
    device.settle()
    told = 12 * fedptr.client_flops(own, model, image) + extra
    assert device.facts()["flops"] == told


@pytest.mark.thorough
def test_what_unrolling_costs_grows_with_its_steps() -> None:
    model, image = vit(), torch.zeros(1, *SHAPE)
    few, many = (
        fedptr.fixed_flops(config(projection="client", unrolled_steps=steps), model, image)
        for steps in (2, 4)
    )
    assert isinstance(few, list) and isinstance(many, list)
    assert 1.8 < many[1] / few[1] < 2.2


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("mu", -1.0, "mu = -1.0: Expected `float` >= 0"),
        ("projection", "both", "projection = 'both': must be one of synthetic, projected, client"),
        ("ipc", 0, "ipc = 0: Expected `int` >= 1"),
        ("unrolled_steps", 0, "unrolled_steps = 0: Expected `int` >= 1"),
        ("match_steps", 0, "match_steps = 0: Expected `int` >= 1"),
        ("match_learning_rate", 0.0, "match_learning_rate = 0.0: Expected `float` > 0"),
    ],
)
def test_bad_options_are_refused(option: str, value: object, reason: str) -> None:
    with pytest.raises(ConfigError) as refused:
        FineTuning(RunConfig(method="fedptr", options={option: value}), 2)  # type: ignore[dict-item]
    assert reason in str(refused.value)
