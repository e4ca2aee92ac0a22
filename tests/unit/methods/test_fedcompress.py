"""FedCompress: bytes of its rounds, its rule for C and its score by numpy, and what is refused."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from in_process import Network, play, shards
from torch import nn

from methods import Peer, Shard, fedcompress
from methods.fedcompress import Client, Config, Server, grows, held_back, score
from methods.shared import clustering, flops
from methods.shared.local_training import trainable_state
from nodes.program import FineTuning
from nodes.workload import models
from nodes.workload.models import ModelSpec, VisionTransformer
from testbed.config_error import ConfigError
from testbed.run.config import RunConfig

CLASSES = 3
SHAPE = (1, 4, 4)
SPEC = ModelSpec(side=4, patch=2, width=16, depth=1, heads=2)
SAMPLES = {"client-1": 12, "client-2": 29, "client-3": 8}
HELD = {"client-1": 1, "client-2": 2, "client-3": 1}
PUBLIC = torch.rand(10, *SHAPE, generator=torch.Generator().manual_seed(8))
OPTIONS: dict[str, Any] = {"local_epochs": 2, "cluster_epochs": 2, "learning_rate": 1e-2}


def backbone() -> nn.Module:
    torch.manual_seed(0)
    return VisionTransformer(SPEC, CLASSES)


def expected_bytes(clusters: int) -> int:
    """P ceil(log2 C) / 8 by matrix, 4 C a matrix, and 4 of all else."""
    shapes = {name: each.shape for name, each in backbone().named_parameters()}
    weights = [
        math.prod(shape)
        for name, shape in shapes.items()
        if name.endswith("weight") and "norm" not in name
    ]
    others = sum(map(math.prod, shapes.values())) - sum(weights)
    codes = sum(math.ceil(size * math.ceil(math.log2(clusters)) / 8) for size in weights)
    return codes + 4 * clusters * len(weights) + 4 * others


class Played:
    def __init__(self, rounds: int = 1, dies_after: dict[str, int] | None = None, **options: Any):
        self.config = Config(**OPTIONS | options)
        self.before = fedcompress.adapt(self.config, backbone())
        self.parts = {
            name: shard._replace(public=PUBLIC)
            for name, shard in shards(SAMPLES, SHAPE, CLASSES).items()
        }
        # One has no other class.
        self.parts["client-3"].targets.zero_()
        nothing = Shard(torch.empty(0, *SHAPE), torch.empty(0, dtype=torch.int64), PUBLIC, 0)
        self.server = Server(self.config, copy.deepcopy(self.before), nothing, 0)
        self.clients = {
            name: Client(self.config, copy.deepcopy(self.before), own, own.client)
            for name, own in self.parts.items()
        }
        self.network = Network(dies_after=dies_after or {})
        self.clusters: list[int] = []
        self.play(rounds)

    def play(self, rounds: int, per_round: int | None = None) -> None:
        def note(_: int) -> None:
            self.clusters.append(self.server.clusters)

        own = (self.server, self.clients, SAMPLES, rounds, self.network, note)
        play(*own, per_round=per_round)


@pytest.mark.thorough
@pytest.mark.parametrize("clusters", [2, 5, 8, 30])
@pytest.mark.parametrize("representations", ["embeddings", "gram"])
def test_bytes_of_every_message(clusters: int, representations: Any) -> None:
    played = Played(2, clusters=clusters, representations=representations)
    model = expected_bytes(clusters)
    for way in ("up", "down"):
        sizes = [each.payload_bytes for each in played.network.of(way, "clustered")]
        assert sizes == [model] * 6
    told = played.network.of("up", "representation")
    rows = {name: SPEC.width if representations == "gram" else HELD[name] for name in SAMPLES}
    assert [each.payload_bytes for each in told] == [
        4 * rows[each.sender] * SPEC.width for each in told
    ]
    assert len(told) == 6
    least = SPEC.width if representations == "gram" else 1
    found = fedcompress.traffic(played.config, played.before)
    assert found == (model + 4 * least * SPEC.width, model)


def test_the_shipped_model() -> None:
    model = models.skeleton("vit-glyphs", 10)
    config = Config(adaptive=False)
    assert fedcompress.traffic(config, model) == (137_360, 137_360)
    assert fedcompress.traffic(Config(clusters=16, adaptive=False), model) == (175_368, 175_368)


def test_without_the_rule_nothing_else_is_sent() -> None:
    payload = Played(1, adaptive=False).network.payload()
    size = 3 * expected_bytes(8)
    assert payload == {"up": {"clustered": size}, "down": {"clustered": size}}


def test_the_server_learns_from_the_mean_and_sends_what_it_evaluates() -> None:
    played = Played(1)
    updates = played.network.of("up", "clustered")
    states = [clustering.rebuilt(played.before, each.tensors) for each in updates]
    mean = copy.deepcopy(played.before)
    weights = [SAMPLES[each.sender] for each in updates]
    for name, parameter in mean.named_parameters():
        values = [state[name].double().numpy() for state in states]
        parameter.data = torch.from_numpy(np.average(values, axis=0, weights=weights)).float()
    many = {name: len(each.unique()) for name, each in clustering.matrices(mean).items()}
    few = {n: len(each.unique()) for n, each in clustering.matrices(played.server.model).items()}
    assert max(few.values()) <= 8 < max(many.values())
    state = trainable_state(played.server.model)
    sent = clustering.rebuilt(played.before, played.server.sent)
    assert all(torch.equal(state[name], sent[name]) for name in state)

    def far(model: nn.Module) -> float:
        with torch.no_grad():
            own, its = ((each(PUBLIC) / 2).log_softmax(dim=1) for each in (model, mean))
        return float((its.exp() * (its - own)).sum())

    # Nearer to the mean on the public images than its weights are, when they are only clustered.
    only = clustering.Clustered(copy.deepcopy(mean), 8, torch.Generator().manual_seed(0))
    longer = Played(0, distill_epochs=60, distill_learning_rate=1e-3)
    longer.server.model.load_state_dict(mean.state_dict())
    longer.server.compress()
    assert far(longer.server.model) < 0.5 * far(only)


def test_what_validates_is_not_trained_on_and_stays_the_same() -> None:
    played = Played(0)
    for name, client in played.clients.items():
        own, validation = client.split()
        again = client.split()
        assert len(validation.targets) == held_back(SAMPLES[name]) == HELD[name]
        assert torch.equal(validation.inputs, again[1].inputs)
        assert len(own.targets) + len(validation.targets) == SAMPLES[name]
        together = torch.cat([own.inputs, validation.inputs])
        assert len(together.flatten(1).unique(dim=0)) == SAMPLES[name]


def test_the_score_is_that_of_the_singular_values_of_all_rows_together() -> None:
    rows = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    rows[:, 4:] *= 0.01
    rows = nn.functional.normalize(rows, dim=1)
    values = np.linalg.svd(rows.double().numpy(), compute_uv=False)
    shares = values / values.sum()
    expected = float(np.exp(-(shares * np.log(shares)).sum()))
    assert 4 < expected < 6
    whole = score(fedcompress.gram(rows))
    assert whole == pytest.approx(expected, rel=1e-5)
    # A client's product for each part of the rows, and a factor for all.
    parts = sum(3 * fedcompress.gram(part) for part in rows.split(7))
    assert score(parts) == pytest.approx(expected, rel=1e-5)  # type: ignore[arg-type]
    assert score(torch.eye(5)) == pytest.approx(5.0)
    assert score(fedcompress.gram(torch.ones(3, 4))) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.thorough
def test_both_kinds_of_representations_give_one_score() -> None:
    ours, theirs = (Played(1, representations=kind).server for kind in ("embeddings", "gram"))
    assert ours.score == pytest.approx(theirs.score, rel=1e-4)
    assert ours.accuracy == theirs.accuracy


def test_features_are_what_the_classifier_gets() -> None:
    model, images = backbone(), torch.rand(5, *SHAPE)
    found, logits = fedcompress.features(model, images)
    tokens = model.embed(images)
    for block in model.blocks:
        tokens = block(tokens)
    expected = nn.functional.normalize(model.head.norm(tokens[:, 0]), dim=1)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(logits, model(images))


FLAT = [0.5, 0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("clusters", "held", "accuracy", "scores", "expected"),
    [
        (8, 4, FLAT, FLAT, True),
        (8, 3, FLAT, FLAT, False),
        (30, 4, FLAT, FLAT, False),
        (8, 4, FLAT[:2], FLAT[:2], False),
        # The mean of the last three rises by a third of the last one's rise: 0.01 and 0.1 at most.
        (8, 4, [0.5, 0.5, 0.5, 0.529], FLAT, True),
        (8, 4, [0.5, 0.5, 0.5, 0.531], FLAT, False),
        (8, 4, FLAT, [0.5, 0.5, 0.5, 0.79], True),
        (8, 4, FLAT, [0.5, 0.5, 0.5, 0.81], False),
        # A cluster more, half as much; two more, a quarter.
        (9, 4, [0.5, 0.5, 0.5, 0.514], FLAT, True),
        (9, 4, [0.5, 0.5, 0.5, 0.516], FLAT, False),
        (10, 4, FLAT, [0.5, 0.5, 0.5, 0.574], True),
        (10, 4, FLAT, [0.5, 0.5, 0.5, 0.576], False),
        # The first means are of as many as there are.
        (8, 4, [0.5, 0.5, 0.529], FLAT[:3], True),
        (8, 4, [0.5, 0.5, 0.531], FLAT[:3], False),
        (8, 4, [0.9, 0.1, 0.1, 0.1], FLAT, True),
    ],
)
def test_when_c_grows(
    clusters: int, held: int, accuracy: list[float], scores: list[float], expected: bool
) -> None:
    assert grows(8, clusters, held, accuracy, scores) == expected


@pytest.mark.thorough
def test_more_clusters_are_used_by_all_from_the_next_round_on() -> None:
    """Nothing is learnt at such rates, so that C grows as often as it may: each four rounds."""
    played = Played(
        10, learning_rate=1e-12, cluster_learning_rate=1e-12, distill_learning_rate=1e-12
    )
    assert played.clusters == [8, 8, 8, 9, 9, 9, 9, 10, 10, 10]
    used = [8] * 4 + [9] * 4 + [10] * 2
    for way in ("up", "down"):
        sizes = {each.round: each.payload_bytes for each in played.network.of(way, "clustered")}
        assert [sizes[number] for number in range(1, 11)] == [expected_bytes(c) for c in used]
    images = played.parts["client-1"].inputs
    found = played.server.evaluate(images, played.parts["client-1"].targets)
    assert found["clusters"] == 10
    assert found["score"] == played.server.score[-1]


def test_deflated_floats_are_fewer_bytes_where_weights_are_clustered() -> None:
    played = Played(0)
    images, labels = played.parts["client-1"][:2]
    whole = 4 * sum(each.numel() for each in played.before.parameters())
    before = played.server.evaluate(images, labels)["deflated_bytes"]
    played.server.compress()
    after = played.server.evaluate(images, labels)["deflated_bytes"]
    assert 0.8 * whole < before < 1.1 * whole
    # More than the codes, and less than half of the floats.
    assert expected_bytes(8) < after < 0.5 * whole


@pytest.mark.thorough
def test_a_round_takes_some_clients_and_others_need_nothing_of_it() -> None:
    played = Played(0)
    played.play(5, per_round=1)
    assert len({sent.client for sent in played.network.log}) > 1
    assert played.network.missed() == set()
    assert len(played.network.of("up", "clustered")) == 5


@pytest.mark.thorough
def test_who_is_lost_before_its_representation_does_not_count() -> None:
    played = Played(2, dies_after={"client-2": 1})
    assert played.network.missed() == {("client-2", "killed")}
    alone = Played(0)
    del alone.clients["client-2"]
    alone.play(2)
    mine, theirs = (trainable_state(each.server.model) for each in (played, alone))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.thorough
def test_a_round_without_updates_leaves_the_model_and_c() -> None:
    played = Played(2, dies_after=dict.fromkeys(SAMPLES, 2))
    assert len(played.network.of("up", "clustered")) == 3
    assert len(played.server.score) == 1


class Liar(Client):
    accuracy: Any = 1.5

    def round(self, peer: Peer) -> None:
        sent = peer.receive("clustered").tensors
        peer.send("clustered", sent)
        peer.send("representation", {"embeddings": torch.ones(1, 16)}, accuracy=self.accuracy)


@pytest.mark.parametrize(
    "accuracy",
    [
        *(pytest.param(each, marks=pytest.mark.thorough) for each in (1.5, math.nan)),
        *(-0.1, "high"),
    ],
)
def test_an_accuracy_that_is_none_is_refused(accuracy: Any) -> None:
    played = Played(0)
    liar = Liar(played.config, copy.deepcopy(played.before), played.parts["client-1"], 0)
    liar.accuracy = accuracy
    played.clients["client-1"] = liar
    played.play(1)
    ((client, reason),) = played.network.missed()
    assert client == "client-1"
    assert reason.endswith(f"accuracy = {accuracy!r}: must be a number from 0 to 1")


def test_operations_are_of_both_trainings_and_of_what_validates() -> None:
    model, image = backbone(), torch.zeros(1, *SHAPE)
    config = Config(local_epochs=2, cluster_epochs=3)
    step, forward = flops.step(model, image, model), flops.forward(model, image)
    found = fedcompress.client_flops(config, model, image)
    assert found == pytest.approx(0.9 * 5 * step + 0.1 * forward)


def test_modelled_compute_takes_a_c_that_stays() -> None:
    model = models.skeleton("vit-glyphs", 10)
    with pytest.raises(ValueError, match=r"adaptive = True: .* take adaptive=false"):
        fedcompress.adapt(Config(), model)
    assert fedcompress.adapt(Config(adaptive=False), model) is model
    config = RunConfig(method="fedcompress", options={}, compute="modelled", device_class="phone")
    with pytest.raises(ConfigError, match="take adaptive=false"):
        FineTuning(config, 2)


def test_what_the_server_sees() -> None:
    assert fedcompress.server_sees(Config()) == "features of validation samples"
    assert fedcompress.server_sees(Config(representations="gram")) == ""
    assert fedcompress.server_sees(Config(adaptive=False)) == ""


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("clusters", 1, "clusters = 1: Expected `int` >= 2"),
        ("clusters", 31, "clusters = 31: Expected `int` <= 30"),
        ("representations", "all", "representations = 'all': must be one of embeddings, gram"),
        ("public_source", "web", "public_source = 'web': must be one of held-out, glyphs"),
        ("temperature", 0.0, "temperature = 0.0: Expected `float` > 0"),
    ],
)
def test_bad_options_are_refused(option: str, value: object, reason: str) -> None:
    config = RunConfig(method="fedcompress", options={option: value})  # type: ignore[dict-item]
    with pytest.raises(ConfigError) as refused:
        FineTuning(config, 2)
    assert reason in str(refused.value)


def test_a_client_of_one_sample_has_nothing_to_train_on() -> None:
    with pytest.raises(ValueError, match="one has 1"):
        fedcompress.check_samples(Config(), [5, 1])
    fedcompress.check_samples(Config(), [5, 2])
