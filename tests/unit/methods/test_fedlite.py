"""FedLite: its quantiser against one in float64, its rounds against the loss they descend on."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from in_process import Network, play, shards
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from methods import Shard, fedavg, fedlite, splitfed
from methods.shared import flops
from methods.shared.averaging import WeightedMean
from methods.shared.local_training import load_trainable, trainable_state
from methods.split_model.exchange import batches
from nodes.program import FineTuning
from nodes.workload.models import ModelSpec, VisionTransformer
from testbed.config_error import ConfigError
from testbed.run.config import RunConfig
from testbed.seeds import derive

CLASSES = 3
SPEC = ModelSpec(side=4, patch=2, width=8, depth=3, heads=2)
VALUES = SPEC.tokens * SPEC.width
SAMPLES = {"client-1": 5, "client-2": 9, "client-3": 3}
SEED = 4
BATCH, EPOCHS = 4, 2
Array = NDArray[np.float64]


def model() -> nn.Module:
    torch.manual_seed(0)
    return VisionTransformer(SPEC, CLASSES)


def config(**more: Any) -> fedlite.Config:
    options = {"batch_size": BATCH, "local_epochs": EPOCHS, "optimizer": "sgd", "centroids": 4}
    if more.get("labels") == "private":
        options["tail_blocks"] = 1
    return fedlite.Config(**{**options, "learning_rate": 0.05, **more})


def played(
    options: Any,
    *names: str,
    method: Any = fedlite,
    network: Network | None = None,
    rounds: int = 1,
    **more: Any,
) -> tuple[nn.Module, Network]:
    """The model after some rounds, and what was sent."""
    found = shards(SAMPLES, (1, 4, 4), CLASSES)
    data = {name: found[name] for name in names or SAMPLES}
    server = method.Server(options, model(), found["client-1"], SEED)
    clients = {
        name: method.Client(options, model(), shard, 10 + shard.client)
        for name, shard in data.items()
    }
    return server.model, play(server, clients, SAMPLES, rounds, network, **more)


def equal(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = trainable_state(one), trainable_state(other)
    return all(torch.equal(mine[name], theirs[name]) for name in mine)


def assert_close(found: nn.Module, expected: nn.Module) -> None:
    after, right = trainable_state(found), trainable_state(expected)
    torch.testing.assert_close(after, right, rtol=1e-4, atol=1e-5)
    moved = [float((right[name] - p).abs().max()) for name, p in trainable_state(model()).items()]
    assert max(moved) > 1e-2


# The quantiser


class Reference:
    """Grouped product quantisation in float64, a vector and a centroid at a time."""

    def __init__(self, form: fedlite.Form, iterations: int, seed: int) -> None:
        self.form = form
        self.iterations = iterations
        self.generator = torch.Generator().manual_seed(seed)

    def rebuilt(self, values: Tensor) -> tuple[Array, list[Array]]:
        """What is sent stands for, and the codebooks of the groups."""
        rows = values.double().flatten(1).numpy()
        batch, (places, groups, count) = len(rows), self.form
        parts = rows.reshape(batch, places, -1).copy()
        draws = torch.rand(count, groups, 1, generator=self.generator, dtype=torch.float64)
        books = []
        each = places // groups
        for group in range(groups):
            of = [(row, group * each + place) for row in range(batch) for place in range(each)]
            vectors = np.array([parts[where] for where in of])
            books.append(self._k_means(vectors, draws[:, group, 0].tolist()))
            for where, vector in zip(of, vectors, strict=True):
                parts[where] = books[-1][_nearest(vector, books[-1])]
        return parts.reshape(values.shape), books

    def _k_means(self, vectors: Array, draws: list[float]) -> Array:
        chosen = [vectors[int(draws[0] * len(vectors))]]
        for draw in draws[1:]:
            far = [min(((v - c) ** 2).sum() for c in chosen) for v in vectors]
            reached = np.cumsum(far)
            below = int((reached <= draw * reached[-1]).sum())
            chosen.append(vectors[min(below, len(vectors) - 1)])
        centroids = np.array(chosen)
        for _ in range(self.iterations):
            own = np.array([_nearest(vector, centroids) for vector in vectors])
            for number in set(own.tolist()):
                centroids[number] = vectors[own == number].mean(axis=0)
        return centroids


def _nearest(vector: Array, centroids: Array) -> int:
    return int(np.argmin(((centroids - vector) ** 2).sum(axis=1)))


def values_of(batch: int, *shape: int) -> Tensor:
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(2)) + 1.5


@pytest.mark.parametrize(
    ("batch", "shape", "form"),
    [
        (6, (5, 8), fedlite.Form(5, 1, 4)),
        (6, (5, 8), fedlite.Form(10, 5, 3)),
        (6, (5, 8), fedlite.Form(40, 2, 7)),
        (8, (4, 6), fedlite.Form(6, 6, 5)),
        (9, (12,), fedlite.Form(1, 1, 2)),
        (1, (5, 8), fedlite.Form(5, 1, 2)),
        (3, (30,), fedlite.Form(15, 3, 9)),
    ],
)
@pytest.mark.parametrize("iterations", [1, 10])
def test_a_quantiser_against_one_in_float64(
    batch: int, shape: tuple[int, ...], form: fedlite.Form, iterations: int
) -> None:
    values = values_of(batch, *shape)
    quantiser, reference = (each(form, iterations, 9) for each in (fedlite.Quantiser, Reference))
    # The second batch goes on with the draws where the first had stopped.
    for given in (values, values.flip(0) ** 2):
        coded, own = quantiser.code(given)
        expected, books = reference.rebuilt(given)
        np.testing.assert_allclose(own.numpy(), expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(coded["codebooks"].numpy(), books, rtol=1e-4, atol=1e-5)
        assert torch.equal(quantiser.decode(coded, given), own)


@pytest.mark.parametrize(("bytes_each", "ratio"), [(8, 490.2), (4, 250.4)])
def test_the_papers_ratio_at_its_size(bytes_each: int, ratio: float) -> None:
    """FEMNIST: B 20, d 9,216, q 1,152, R 1, L 2; the activations up alone."""
    values = values_of(20, 9216).to({8: torch.float64, 4: torch.float32}[bytes_each])
    coded, _ = fedlite.Quantiser(fedlite.Form(1152, 1, 2), 10, 0).code(values)
    sent = sum(each.numel() * each.element_size() for each in coded.values())
    assert sent == bytes_each * 8 * 2 + 20 * 1152 // 8
    assert round(values.numel() * bytes_each / sent, 1) == ratio


def test_the_same_seed_quantises_alike() -> None:
    values, form = values_of(6, 5, 8), fedlite.Form(40, 2, 7)

    def codes(seed: int) -> Tensor:
        return fedlite.Quantiser(form, 3, seed).code(values)[0]["codes"]

    assert torch.equal(codes(1), codes(1)) and not torch.equal(codes(1), codes(2))


@pytest.mark.parametrize("distinct", [1, 2, 3])
def test_fewer_vectors_than_centroids_lose_nothing(distinct: int) -> None:
    vectors = torch.tensor([[1.0, 2.0], [-3.0, 0.5], [7.0, 7.0]])[:distinct]
    values = vectors.repeat(4, 1).reshape(4, -1)
    form = fedlite.Form(distinct, 1, 4)
    coded, rebuilt = fedlite.Quantiser(form, 10, 0).code(values)
    torch.testing.assert_close(rebuilt, values)
    assert bool(torch.isfinite(coded["codebooks"]).all())


def test_a_cluster_without_members_stays_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    first = torch.tensor([[[0.0], [100.0], [1.0]]])
    monkeypatch.setattr(fedlite, "first_centroids", lambda *_: first)
    vectors = torch.tensor([[[0.0], [0.2], [2.0], [4.0]]])
    found = fedlite.k_means(vectors, 3, 5, torch.Generator())
    torch.testing.assert_close(found, torch.tensor([[[0.1], [100.0], [3.0]]]))


def test_first_centroids_are_vectors_drawn_by_their_squared_distance() -> None:
    vectors = torch.tensor([0.0, 1.0, 3.0]).reshape(1, 3, 1).expand(3000, -1, -1).contiguous()
    found = fedlite.first_centroids(vectors, 2, torch.Generator().manual_seed(0)).squeeze(2)
    _, firsts = found[:, 0].unique(return_counts=True)
    assert firsts.tolist() == pytest.approx([1000] * 3, rel=0.1)
    # From 0 the others are 1 and 9 away, squared.
    seconds = found[found[:, 0] == 0][:, 1]
    assert float((seconds == 3).double().mean()) == pytest.approx(0.9, abs=0.03)
    assert not bool((seconds == 0).any())


def test_values_that_are_no_numbers_are_sent_as_such() -> None:
    values = values_of(4, 5, 8)
    values[0, 0, 0] = math.nan
    coded, _ = fedlite.Quantiser(fedlite.Form(5, 1, 4), 3, 0).code(values)
    assert not bool(torch.isfinite(coded["codebooks"]).all())


# Rounds


def by_hand(options: fedlite.Config, rounds: int = 1) -> nn.Module:
    """Descent on h(z~) + lambda / 2 * |z - z~|^2, with z~ taken for z in z's own gradient."""
    whole = model()
    data = shards(SAMPLES, (1, 4, 4), CLASSES)
    draws = {name: torch.Generator().manual_seed(10 + shard.client) for name, shard in data.items()}
    for number in range(1, rounds + 1):
        start, mean = trainable_state(whole), WeightedMean()
        for name, shard in data.items():
            load_trainable(whole, start)
            seed = derive(10 + shard.client, "k-means", number)
            reference = Reference(fedlite.form_of(options, whole), options.iterations, seed)
            optimizer = fedavg.new_optimizer(options, whole, 1)
            for batch in batches(shard, EPOCHS, BATCH, draws[name]):
                _descend(whole, options, batch, reference, optimizer)
            mean.add(trainable_state(whole), len(shard.targets))
        load_trainable(whole, mean.result())
    return whole


def _descend(
    whole: Any, options: fedlite.Config, batch: Any, reference: Reference, optimizer: Any
) -> None:
    tokens = whole.blocks[0](whole.embed(batch.inputs))
    rebuilt = torch.from_numpy(reference.rebuilt(tokens.detach())[0]).float()
    through = tokens + (rebuilt - tokens).detach()
    for block in whole.blocks[1:]:
        through = block(through)
    near = (tokens - rebuilt).square().sum()
    optimizer.zero_grad()
    loss = F.cross_entropy(whole.head(through), batch.targets)
    (loss + options.correction / 2 * near).backward()
    optimizer.step()


@pytest.mark.thorough
@pytest.mark.parametrize("labels", ["shared", "private"])
@pytest.mark.parametrize("correction", [0.0, 0.05])
def test_rounds_against_the_loss_that_they_descend_on(labels: str, correction: float) -> None:
    options = config(labels=labels, correction=correction, learning_rate=0.02)
    found, network = played(options, rounds=2)
    assert network.missed() == set()
    assert_close(found, by_hand(options, rounds=2))
    other, _ = played(config(labels=labels, correction=0.5, learning_rate=0.02), rounds=2)
    assert not equal(found, other)


@pytest.mark.thorough
@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("variant", ["v1", "v2"])
def test_with_a_centroid_for_each_vector_it_is_splitfed(variant: str, down: bool) -> None:
    more = {"variant": variant, "batch_size": BATCH, "local_epochs": EPOCHS, "optimizer": "sgd"}
    every = BATCH * VALUES // fedlite.VALUES_EACH
    found, _ = played(config(variant=variant, centroids=every, quantise_down=down))
    expected, _ = played(splitfed.Config(**more, learning_rate=0.05), method=splitfed)
    assert_close(found, expected)


@pytest.mark.thorough
@pytest.mark.parametrize("labels", ["shared", "private"])
@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize(
    "form", [{}, {"subvectors": 10, "groups": 5, "centroids": 3}, {"centroids": 16}]
)
def test_bytes_are_the_formulas(labels: str, down: bool, form: dict[str, int]) -> None:
    options = config(labels=labels, quantise_down=down, **form)
    _, network = played(options)
    places, groups = form.get("subvectors", 5), form.get("groups", 1)
    count = form.get("centroids", 4)

    def quantised(batch: int) -> int:
        codes = math.ceil(batch * places * math.ceil(math.log2(count)) / 8)
        return 4 * (VALUES // places) * count * groups + codes

    sizes = [4, 1, 4, 4, 1, 3] * EPOCHS
    dense, less = 4 * VALUES * sum(sizes), sum(map(quantised, sizes))
    up, back = {"smashed": less}, {"gradient": less if down else dense}
    if labels == "private":
        up["gradient"], back["smashed"] = dense, dense
    else:
        up["smashed"] += 8 * sum(sizes)
    found = network.payload()
    for way, expected in (("up", up), ("down", back)):
        assert {kind: found[way][kind] for kind in expected} == expected
        assert found[way].keys() - expected.keys() == set(split_sides(labels))
    # The weights are splitfed's.
    theirs = played(
        splitfed.Config(labels=labels, tail_blocks=options.tail_blocks), method=splitfed
    )
    for kind in split_sides(labels):
        assert found["up"][kind] == found["down"][kind] == theirs[1].payload()["up"][kind]


def split_sides(labels: str) -> list[str]:
    return ["head"] if labels == "shared" else ["head", "tail"]


@pytest.mark.parametrize("labels", ["shared", "private"])
@pytest.mark.parametrize("down", [False, True])
def test_traffic_is_what_a_client_of_one_sample_has(labels: str, down: bool) -> None:
    options = config(labels=labels, quantise_down=down, centroids=3)
    shard = shards({"client-1": 1}, (1, 4, 4), CLASSES)["client-1"]
    network = play(
        fedlite.Server(options, model(), shard, SEED),
        {"client-1": fedlite.Client(options, model(), shard, 11)},
        {"client-1": 1},
    )
    payload = network.payload()
    found = tuple(sum(payload[way].values()) for way in ("up", "down"))
    assert fedlite.traffic(options, model()) == found


def test_the_shipped_models_batch() -> None:
    """METHODS' size: d = 17 * 96, B 16, q 204, R 1, L 8."""
    shipped = ModelSpec()
    assert fedlite.form_of(fedlite.Config(), VisionTransformer(shipped, 10)) == (204, 1, 8)
    coded, _ = fedlite.Quantiser(fedlite.Form(204, 1, 8), 10, 0).code(values_of(16, 17, 96))
    assert sum(each.numel() * each.element_size() for each in coded.values()) == 1480


@pytest.mark.thorough
@pytest.mark.parametrize("down", [False, True])
def test_who_comes_first_does_not_show(down: bool) -> None:
    results = []
    for first, then in itertools.permutations(("client-1", "client-2")):
        network = Network(waits_for={then: first})
        results.append(played(config(quantise_down=down), network=network, rounds=2)[0])
    assert equal(*results)


@pytest.mark.parametrize("sent", [0, 1, 3])
def test_the_others_go_on_without_a_client_that_dies(sent: int) -> None:
    network = Network(dies_after={"client-2": sent})
    found, _ = played(config(), network=network)
    assert network.missed() == {("client-2", "killed")}
    assert equal(found, played(config(), "client-1", "client-3")[0])


def test_a_round_takes_as_many_clients_as_it_is_to() -> None:
    found, network = played(config(), rounds=3, per_round=2)
    taking = [{m.sender for m in network.of("up", "head") if m.round == n} for n in (1, 2, 3)]
    assert [len(each) for each in taking] == [2, 2, 2] and not equal(found, model())


def test_clients_that_lack_classes_take_part() -> None:
    data = {
        name: shard._replace(targets=torch.full_like(shard.targets, shard.client - 1))
        for name, shard in shards(SAMPLES, (1, 4, 4), CLASSES).items()
    }
    options = config()
    server = fedlite.Server(options, model(), data["client-1"], SEED)
    clients = {n: fedlite.Client(options, model(), d, d.client) for n, d in data.items()}
    assert play(server, clients, SAMPLES).missed() == set()
    assert not equal(server.model, model())


class Wrong(fedlite.Quantiser):
    """Codes beyond the codebook's end."""

    def code(self, values: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        coded, rebuilt = super().code(values)
        return {**coded, "codes": torch.full_like(coded["codes"], 255)}, rebuilt


def wrong_codings(node: Any, down: bool) -> None:
    make = type(node).codings

    def codings(*of: Any) -> Any:
        own = make(node, *of)
        wrong = Wrong(node.form, 1, 0)
        return own._replace(down=wrong) if down else own._replace(up=wrong)

    node.codings = codings


@pytest.mark.parametrize("down", [False, True])
def test_codes_that_no_centroid_has_are_refused(down: bool) -> None:
    options = config(centroids=3, quantise_down=True)
    data: Mapping[str, Shard] = shards(SAMPLES, (1, 4, 4), CLASSES)
    server = fedlite.Server(options, model(), data["client-1"], SEED)
    clients = {n: fedlite.Client(options, model(), d, d.client) for n, d in data.items()}
    wrong_codings(server if down else clients["client-2"], down)
    network = play(server, clients, SAMPLES)
    assert {client for client, _ in network.missed()} == (set(SAMPLES) if down else {"client-2"})
    assert all("a code outside 0 to 2" in reason for _, reason in network.missed())


def test_evaluation_does_not_quantise() -> None:
    shard = shards(SAMPLES, (1, 4, 4), CLASSES)["client-2"]
    ours, theirs = (
        of.Server(given, model(), shard, SEED).evaluate(shard.inputs, shard.targets)
        for of, given in ((fedlite, config()), (splitfed, splitfed.Config()))
    )
    assert ours == theirs


# What it costs a client


@pytest.mark.parametrize("iterations", [1, 10])
def test_k_means_is_among_a_clients_operations(iterations: int) -> None:
    options = config(iterations=iterations, centroids=4)
    image = torch.zeros(1, 1, 4, 4)
    own = fedlite.client_flops(options, model(), image)
    # A product of each value with each centroid, for distances and for sums; first ones before.
    products = 4 * (2 * iterations + 1) + 3
    theirs = splitfed.client_flops(options, model(), image)
    assert own == theirs + EPOCHS * 2 * VALUES * products
    quantiser = fedlite.Quantiser(fedlite.Form(5, 1, 4), iterations, 0)
    seven = flops.forward(lambda tokens: quantiser.code(tokens)[1], torch.zeros(7, 5, 8))
    assert seven == 7 * 2 * VALUES * products


# What is refused


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"subvectors": 200},
            "subvectors = 200: must divide the 1632 activations of a sample, as 136 and 204 would",
        ),
        (
            {"subvectors": 2000},
            "subvectors = 2000: must divide the 1632 activations of a sample, as 1632 would",
        ),
        ({"groups": 5}, "groups = 5: must divide the 204 subvectors, as 4 and 6 would"),
        (
            {"groups": 204, "centroids": 17},
            "centroids = 17: must be at most the 16 sub-vectors that a group has of a batch of 16",
        ),
        ({"centroids": 1}, "centroids = 1: Expected `int` >= 2"),
        ({"centroids": 257}, "centroids = 257: Expected `int` <= 256"),
        ({"correction": -1.0}, "correction = -1.0: Expected `float` >= 0"),
        ({"tail_blocks": 1}, "tail_blocks = 1: with labels = shared"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError) as refused:
        FineTuning(RunConfig(method="fedlite", options=options), 2).prepare()
    assert reason in str(refused.value)
