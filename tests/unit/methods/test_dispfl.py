"""DisPFL: densities, masks and means by hand, the graph at both ends, and neighbours that die."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from copied import copied
from in_process import Network, play, shards
from torch import Tensor, nn

from methods import Shard, dispfl
from methods.payload import bits
from methods.shared.common_seed import common_seed
from nodes.program import FineTuning
from nodes.workload.models import ModelSpec, VisionTransformer
from testbed.config_error import ConfigError
from testbed.run.config import RunConfig, convert
from testbed.run.feasible import Traffic

CLASSES = 3
SPEC = ModelSpec(side=4, patch=2, width=8, depth=2, heads=2)
SAMPLES = {f"client-{number}": 6 + number for number in range(1, 6)}
NUMBERS = list(range(1, 6))


def config(**options: Any) -> dispfl.Config:
    return dispfl.Config(**{"batch_size": 4, "local_epochs": 2, "learning_rate": 0.05, **options})


def model(device: str = "cpu") -> nn.Module:
    torch.manual_seed(0)
    found = VisionTransformer(SPEC, CLASSES)
    torch.manual_seed(9)
    return dispfl.adapt(dispfl.Config(), found).to(device)


class Run:
    def __init__(self, rounds: int = 1, network: Network | None = None, **more: Any) -> None:
        own = {"per_round": more.pop("per_round", None)}
        self.config = config(**more)
        nothing = shards({"server": 0}, (1, 4, 4), 1)["server"]._replace(client=0)
        self.server = dispfl.Server(self.config, model(), nothing, 1)
        self.clients = {
            name: dispfl.Client(self.config, model(), shard, 10 + shard.client)
            for name, shard in shards(SAMPLES, (1, 4, 4), CLASSES).items()
        }
        self.network = play(self.server, self.clients, SAMPLES, rounds, network, **own)

    def exchanged(self, number: int) -> dict[tuple[str, str], Mapping[str, Tensor]]:
        """Models of a round by sender and receiver."""
        return {
            (sent.message.sender, sent.client): sent.message.tensors
            for sent in self.network.log
            if sent.way == "among" and sent.message.round == number
        }


def edges(options: dispfl.Config, number: int, there: list[int]) -> set[tuple[str, str]]:
    return {
        (f"client-{each}", f"client-{client}")
        for client in there
        for each in dispfl.neighbours(options, common_seed(model()), number, client, there)
    }


# Densities


def test_densities_against_a_hand_calculation() -> None:
    # A vector of 4, 4 x 4 and 4 x 8, half of 52. First: raw 1, 0.5 and 0.375, times sizes 4, 8 and
    # 12; eps = 26 / 24 makes the vector 1.083, so it is whole. Then eps = (26 - 4) / 20 = 1.1.
    assert dispfl.densities([(4,), (4, 4), (4, 8)], 0.5) == pytest.approx([1, 0.55, 0.4125])


def test_a_tensor_that_comes_to_more_than_all_once_others_are_whole_is_whole_too() -> None:
    # 0.9 of 2 + 4 + 100 = 95.4: eps = 95.4 / (2 + 4 + 20) = 3.669 leaves out 2 and 2 x 2; the
    # 10 x 10 alone then has (95.4 - 6) / 20 * 0.2.
    assert dispfl.densities([(2,), (2, 2), (10, 10)], 0.9) == pytest.approx([1, 1, 0.894])
    assert dispfl.densities([(2,), (2, 2)], 1.0) == [1, 1]


@pytest.mark.parametrize("density", [0.05, 0.2, 0.5, 0.8, 1.0])
def test_as_many_weights_are_kept_as_the_density_says(density: float) -> None:
    tensors = list(dispfl.trainable(VisionTransformer(ModelSpec(), 10)).values())
    found = dispfl.densities([each.shape for each in tensors], density)
    kept = sum(share * each.numel() for share, each in zip(found, tensors, strict=True))
    assert kept == pytest.approx(density * sum(each.numel() for each in tensors))
    assert all(0 < share <= 1 for share in found)
    assert all(share == 1 for share, each in zip(found, tensors, strict=True) if each.dim() == 1)


# The mean and the masks


def test_a_mean_over_masks_against_a_hand_calculation() -> None:
    rows = [
        ([2.0, 4.0, 6.0], [1, 1, 1, 0, 0]),
        ([10.0, 20.0], [0, 1, 0, 1, 0]),
        ([1.0, 1.0, 5.0], [1, 0, 1, 1, 0]),
    ]
    models = [(torch.tensor(values), torch.tensor(mask).bool()) for values, mask in rows]
    found = dispfl.masked_mean(models, 5)
    assert found.tolist() == [1.5, 7.0, 3.5, 12.5, 0.0]
    assert dispfl.masked_mean(models[:1], 5).tolist() == [2, 4, 6, 0, 0]


def layout(shapes: list[tuple[int, ...]], kept: list[int]) -> dispfl.Layout:
    module = nn.ParameterList([nn.Parameter(torch.zeros(shape)) for shape in shapes])
    found = dispfl.Layout(dispfl.Config(density=1.0), module)
    found.kept = kept
    return found


def test_the_smallest_weights_go_and_as_many_others_come() -> None:
    own = layout([(4,), (6,)], [2, 4])
    mask = torch.tensor([1, 1, 0, 0, 1, 1, 1, 1, 0, 0]).bool()
    weights = torch.tensor([-3.0, 1.0, 0.0, 0.0, 5.0, -0.5, 0.25, 9.0, 0.0, 0.0])
    growth = torch.tensor([0.9, 0.1, 0.2, 0.8, 0.9, 0.1, 0.2, 0.9, 0.5, 0.3])
    # A quarter of 2 and of 4, rounded up: one each, 1.0 and 0.25.
    found = dispfl.moved(own, mask, weights, 0.25, growth)
    assert found.tolist() == [bool(each) for each in [1, 0, 0, 1, 1, 1, 0, 1, 1, 0]]
    # What has just gone may come back.
    growth[6] = 0.7
    again = dispfl.moved(own, mask, weights, 0.25, growth)
    assert again.tolist() == [bool(each) for each in [1, 0, 0, 1, 1, 1, 1, 1, 0, 0]]
    assert torch.equal(dispfl.moved(own, mask, weights, 0.0, growth), mask)


@pytest.mark.thorough
def test_masks_keep_as_many_weights_of_a_tensor_whatever_is_exchanged() -> None:
    run = Run(rounds=3)
    masks = [client.next for client in run.clients.values()]
    own = run.clients["client-1"].layout
    for mask in masks:
        assert [int(part.sum()) for (part,) in own.parts(mask)] == own.kept
    assert not torch.equal(masks[0], masks[1])


def test_weights_outside_a_mask_are_zero() -> None:
    run = Run(rounds=2)
    for client in run.clients.values():
        weights = torch.cat([each.flatten() for each in dispfl.trainable(client.model).values()])
        assert bool((weights[~client.held] == 0).all())
        assert not torch.equal(client.held, client.next)


def test_first_masks_keep_weights_by_chance_or_the_largest() -> None:
    by_chance, largest = (Run(rounds=0, first_masks=each) for each in ("random", "largest"))
    whole = torch.cat([each.detach().flatten() for each in dispfl.trainable(model()).values()])
    for client in largest.clients.values():
        own = client.layout
        for kept, (mask, size) in zip(own.kept, own.parts(client.held, whole.abs()), strict=True):
            assert int(mask.sum()) == kept
            assert kept == len(size) or size[mask].min() >= size[~mask].max()
        assert torch.equal(client._weights(), whole * client.held)
    one, other, *_ = (client.held for client in by_chance.clients.values())
    assert not torch.equal(one, other)


# A round


def test_a_round_is_the_mean_over_those_drawn_cut_by_the_present_mask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispfl, "train_masked", lambda *_, **__: None)
    run = Run(rounds=2, neighbours=2)
    first, second = run.exchanged(1), run.exchanged(2)
    own = model()
    start = torch.cat([each.detach().flatten() for each in dispfl.trainable(own).values()])
    size = len(start)

    def whole(tensors: Mapping[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
        mask = np.unpackbits(tensors["mask"].numpy())[:size].astype(bool)
        found = np.zeros(size)
        found[mask] = tensors["values"].double().numpy()
        return found, mask

    # All start from one model, so that the first exchange leaves it.
    for tensors in first.values():
        weights, mask = whole(tensors)
        np.testing.assert_array_equal(weights, np.where(mask, start.double().numpy(), 0))
    held = {sender: whole(tensors) for (sender, _), tensors in second.items()}
    for name, client in run.clients.items():
        theirs = [held[sender] for sender, receiver in second if receiver == name]
        assert len(theirs) == 2
        if name not in held:
            continue
        weights = sum(w for w, _ in [held[name], *theirs])
        count = sum(m.astype(int) for _, m in [held[name], *theirs])
        mean = np.divide(weights, count, out=np.zeros(size), where=count > 0)
        expected = np.where(client.held.numpy(), mean, 0)
        after = torch.cat([e.detach().flatten() for e in dispfl.trainable(client.model).values()])
        np.testing.assert_allclose(after.numpy(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("done", "share"),
    [(1, 0.5), (2, 0.25 * (1 + math.cos(math.pi / 4))), (3, 0.25), (5, 0), (9, 0)],
)
def test_the_share_that_is_exchanged_goes_down_by_a_cosine(
    done: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[float] = []
    real = dispfl.moved

    def noted(*given: Any) -> Tensor:
        shares.append(given[3])
        return real(*given)

    monkeypatch.setattr(dispfl, "moved", noted)
    monkeypatch.setattr(dispfl, "train_masked", lambda *_, **__: None)
    Run(rounds=done, drop_rounds=4, topology="ring")
    assert shares[-1] == pytest.approx(share)


def test_growth_by_gradient_takes_the_largest_of_those_not_kept() -> None:
    client = Run(regrow="gradient").clients["client-1"]
    shard = client.shard._replace(inputs=client.shard.inputs[:4], targets=client.shard.targets[:4])
    client.shard = shard
    growth = client._growth()
    client.model.zero_grad()
    nn.functional.cross_entropy(client.model(shard.inputs), shard.targets).backward()
    expected = torch.cat([e.grad.flatten() for e in dispfl.trainable(client.model).values()])
    torch.testing.assert_close(growth, expected.abs())


@pytest.mark.thorough
def test_it_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (120,), generator=generator)
    images = 0.2 * torch.rand(120, 1, 4, 4, generator=generator)
    images[torch.arange(120), 0, labels, labels] = 1.0
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, CLASSES))
    start = dispfl.adapt(config(), net)
    options = config(drop_rounds=4, learning_rate=0.3)
    parts = {
        n: Shard(images[n::4], labels[n::4], images[:0], n, (images, labels)) for n in (1, 2, 3)
    }
    clients = {
        f"client-{n}": dispfl.Client(options, copied(start), shard, n) for n, shard in parts.items()
    }
    before = [client.evaluate(images, labels) for client in clients.values()]
    play(dispfl.Server(options, start, parts[1], 0), clients, dict.fromkeys(clients, 30), 8)
    for client, first in zip(clients.values(), before, strict=True):
        found = client.evaluate(images, labels)
        assert found["accuracy"] > 0.95 > first["accuracy"] + 0.2
        assert 0.5 < found["accuracy_before_training"] <= 1
        # Which is of the client's own samples, and of no others.
        assert "accuracy_before_training" not in client.evaluate(images.clone(), labels)
        assert "accuracy_before_training" not in first


def test_a_client_without_a_class_learns_all_the_same() -> None:
    some = shards(SAMPLES, (1, 4, 4), CLASSES)
    one = some["client-1"]
    some["client-1"] = one._replace(targets=torch.zeros_like(one.targets))
    own = config()
    clients = {n: dispfl.Client(own, model(), s, s.client) for n, s in some.items()}
    play(dispfl.Server(own, model(), one, 0), clients, SAMPLES, 2)
    assert all(bool(each.isfinite().all()) for each in clients["client-1"].model.parameters())


# The graph


@pytest.mark.thorough
@pytest.mark.parametrize(
    "options", [{}, {"neighbours": 2}, {"topology": "ring"}, {"topology": "full"}]
)
def test_who_is_sent_a_model_is_who_drew_its_sender(options: dict[str, Any]) -> None:
    run = Run(rounds=2, **options)
    for number in (1, 2):
        assert set(run.exchanged(number)) == edges(run.config, number, NUMBERS)
    assert run.network.missed() == set()


def test_draws_are_of_others_alone_and_anew_each_round() -> None:
    own, there = config(neighbours=3), list(range(1, 21))
    found = {n: [dispfl.neighbours(own, 5, n, k, there) for k in there] for n in (1, 2)}
    for client, drawn in zip(there, found[1], strict=True):
        assert len(drawn) == 3 and client not in drawn and drawn <= set(there)
    assert found[1] != found[2]
    assert found[1] == [dispfl.neighbours(own, 5, 1, k, there[::-1]) for k in there]
    assert found[1] != [dispfl.neighbours(own, 6, 1, k, there) for k in there]
    assert [len(dispfl.neighbours(config(), 5, 1, 1, there[:n])) for n in (1, 2, 9, 20)] == [
        *(0, 1, 8, 10)
    ]


def test_a_ring_is_of_those_who_are_there() -> None:
    ring = config(topology="ring")
    assert dispfl.neighbours(ring, 0, 1, 2, [9, 2, 5]) == {5, 9}
    assert dispfl.neighbours(ring, 0, 1, 2, [2, 5]) == {5}
    assert dispfl.neighbours(ring, 0, 1, 2, [2]) == set()
    assert dispfl.neighbours(config(topology="full"), 0, 1, 2, [9, 2, 5]) == {5, 9}


@pytest.mark.thorough
def test_nodes_have_one_seed_though_their_own_differ() -> None:
    run = Run(rounds=0)
    assert len({client.seed for client in run.clients.values()}) == 1
    programs = [FineTuning(RunConfig(method="dispfl", seed=seed), 3) for seed in (0, 0, 1)]
    for program in programs:
        program.prepare()
    seeds = [common_seed(program._model) for program in programs]
    assert seeds[0] == seeds[1] != seeds[2]


@pytest.mark.thorough
def test_only_those_in_the_round_take_part() -> None:
    run = Run(rounds=3, per_round=3)
    for number in (1, 2, 3):
        asked = {s.client for s in run.network.log if s.way == "down" and s.message.round == number}
        there = sorted(int(name[-1]) for name in asked)
        assert len(there) == 3
        assert set(run.exchanged(number)) == edges(run.config, number, there)


def test_a_neighbour_that_dies_amid_a_round_is_in_neither_sum() -> None:
    """It has sent one model when it dies: whoever hears no more of it goes on with the others."""
    counts: list[int] = []
    real = dispfl.masked_mean

    def noted(models: Any, size: int) -> Tensor:
        taken = list(models)
        counts.append(len(taken))
        return real(taken, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispfl, "masked_mean", noted)
        run = Run(rounds=2, topology="full", network=Network(dies_after={"client-3": 1}))
    first, second = run.exchanged(1), run.exchanged(2)
    assert [receiver for sender, receiver in first if sender == "client-3"] == ["client-4"]
    # In round 1 client-4 has its model and three others do not; it comes to no mean itself.
    assert sorted(counts[:4]) == [4, 4, 4, 5] and counts[4:] == [4, 4, 4, 4]
    missed = {e["peer"] for e in run.network.events if e["event"] == "missed"}
    assert missed == {"client-3"}
    assert set(second) == edges(run.config, 2, [1, 2, 4, 5])
    for name, client in run.clients.items():
        assert all(bool(each.isfinite().all()) for each in client.model.parameters()), name


# What travels


def test_bytes_are_the_formulas() -> None:
    run = Run(rounds=2, neighbours=2)
    tensors = list(dispfl.trainable(model()).values())
    size = sum(each.numel() for each in tensors)
    shares = dispfl.densities([each.shape for each in tensors], 0.5)
    kept = sum(int(s * each.numel()) for s, each in zip(shares, tensors, strict=True))
    each = 4 * kept + math.ceil(size / 8)
    assert run.network.payload() == {
        "up": {"done": 0},
        "down": {"begin": 2 * len(SAMPLES)},
        "among": {"sparse": 2 * len(SAMPLES) * 2 * each},
    }
    assert dispfl.traffic(run.config, model()) == (0, each)
    assert dispfl.traffic(config(topology="ring"), model()) == (each, each)


def test_the_shipped_models_bytes() -> None:
    own = VisionTransformer(ModelSpec(), 10)
    assert dispfl.traffic(dispfl.Config(), own) == (0, 4 * 151_826 + 37_958)
    # A mask of everything is whole weights and a bit each.
    assert dispfl.traffic(config(density=1.0), own) == (0, 4 * 303_658 + 37_958)


def test_what_clients_send_one_another_is_not_on_the_servers_line() -> None:
    program = FineTuning(RunConfig(method="dispfl"), 3)
    assert program.prepare() == Traffic(0, 645_262, among_clients=True)
    assert FineTuning(RunConfig(method="fedavg"), 3).prepare().among_clients is False


def test_a_mask_of_other_weights_than_came_is_not_taken() -> None:
    own = dispfl.Layout(config(), model())
    size = sum(own.sizes)
    mask = dispfl.drawn(own, torch.Generator().manual_seed(0))
    good = dispfl.packed(torch.ones(size), mask, own.like)
    own.check(good)
    fewer = mask.clone()
    fewer[mask.nonzero()[0]] = False
    beyond = good["mask"].clone()
    assert size % 8
    beyond[-1] |= 1
    for wrong, said in ((bits.pack(fewer, 1), sum(own.kept) - 1), (beyond, sum(own.kept))):
        with pytest.raises(ValueError, match=f"a mask of {said} weights, expected"):
            own.check({"values": good["values"], "mask": wrong})


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({}, "it does not say who is in the round"),
        ({"there": torch.zeros(2)}, "it does not say who is in the round"),
        ({"there": torch.zeros(1, dtype=torch.uint8)}, "a round that this client is not in"),
    ],
)
def test_a_beginning_that_says_nothing_is_not_taken(tensors: dict[str, Tensor], said: str) -> None:
    client = Run(rounds=0).clients["client-2"]
    with pytest.raises(ValueError, match=said):
        client._accept(tensors)


# Options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"topology": "ring", "neighbours": 3}, "neighbours = 3: .*'ring' clients hear two each"),
        ({"topology": "full", "neighbours": 3}, "neighbours = 3: .*'full' clients hear everyone"),
        ({"density": 0}, "density = 0"),
        ({"density": 1.5}, "density = 1.5"),
        ({"topology": "star"}, "topology = 'star'"),
    ],
)
def test_options_that_are_none_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        convert(options, dispfl.Config, "options of method dispfl")


def test_more_neighbours_than_there_are_are_refused_before_anything_starts() -> None:
    own = RunConfig(method="dispfl", options={"neighbours": 3})
    FineTuning(own, clients=4)
    with pytest.raises(ConfigError, match="neighbours = 3: must be at most 2, the other clients"):
        FineTuning(own, clients=3)
    with pytest.raises(ConfigError, match="clients = 1: a client hears others; take at least 2"):
        FineTuning(RunConfig(method="dispfl"), clients=1)


def test_statistics_are_refused() -> None:
    normed = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    with pytest.raises(ValueError, match=r"1\..* is learnt and no weight: .*take group or layer"):
        dispfl.check(config(), normed)
