"""Federated Pruning: the model that is left against the whole one with zeros, masks and bytes."""

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from copied import copied
from in_process import Network, play, shards
from torch import Tensor, nn

from methods import Peer, Shard, fedpruning
from methods.fedpruning import Config, Masks, best, cut, drawn_up, places, shrunk
from methods.shared import flops
from methods.shared.local_training import trainable_state
from nodes.checkpoint import Snapshot
from nodes.program import FineTuning
from nodes.workload import models
from nodes.workload.models import ModelSpec, VisionTransformer
from testbed.config_error import ConfigError
from testbed.run.config import RunConfig

CLASSES = 3
SHAPE = (1, 4, 4)
SPEC = ModelSpec(side=4, patch=2, width=8, depth=2, heads=4)
SAMPLES = {"client-1": 12, "client-2": 20, "client-3": 8}
UNIT = 2 * SPEC.width + 1
"""Parameters of a hidden unit."""
HEAD = 2 * (4 * SPEC.width + 3)
"""Of a head, of two features."""
HIDDEN, HEADS = 2 * 16, 2 * 4


def backbone(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = VisionTransformer(SPEC, CLASSES)
    with torch.no_grad():
        for parameter in model.parameters():
            # Biases too, and norms that are none.
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    return model


def size(model: nn.Module) -> int:
    return sum(each.numel() for each in model.parameters())


class Played:
    def __init__(self, rounds: int = 1, dies_after: dict[str, int] | None = None, **options: Any):
        self.config = Config(**{"batch_size": 4, "learning_rate": 1e-2} | options)
        self.before = backbone()
        self.parts = shards(SAMPLES, SHAPE, CLASSES)
        # One has no other class.
        self.parts["client-3"].targets.zero_()
        nothing = self.parts["client-1"]._replace(client=0)
        self.server = fedpruning.Server(self.config, copy.deepcopy(self.before), nothing, 0)
        self.clients = {
            name: fedpruning.Client(self.config, copy.deepcopy(self.before), own, own.client)
            for name, own in self.parts.items()
        }
        self.states = [trainable_state(self.before)]
        self.masks: list[Masks] = [self.server.masks]
        self.done = 0
        self.network = Network(dies_after=dies_after or {})
        self.play(rounds)

    def play(self, rounds: int, *names: str, per_round: int | None = None) -> Network:
        def note(_: int) -> None:
            self.states.append(trainable_state(self.server.model))
            self.masks.append(self.server.masks)

        some = {name: self.clients[name] for name in names or self.clients}
        first, self.done = self.done + 1, self.done + rounds
        return play(
            *(self.server, some, SAMPLES, self.done, self.network, note),
            first=first,
            per_round=per_round,
        )

    def bytes_of(self, way: str, number: int) -> list[int]:
        sent = self.network.of(way, "model")
        return [each.payload_bytes for each in sent if each.round == number]


def with_zeros(model: nn.Module, masks: Masks) -> nn.Module:
    """The whole model, which of what is pruned has zeros, one tensor after the other by hand."""
    found = copied(model)
    wide = SPEC.width // SPEC.heads
    with torch.no_grad():
        for number, block in enumerate(found.blocks):
            for unit in range(16):
                if "hidden" in masks and not masks["hidden"][number, unit]:
                    block.expand.weight[unit] = 0
                    block.expand.bias[unit] = 0
                    block.contract.weight[:, unit] = 0
            for head in range(SPEC.heads):
                if "heads" in masks and not masks["heads"][number, head]:
                    own = slice(head * wide, (head + 1) * wide)
                    for each in (block.attention.query, block.attention.key, block.attention.value):
                        each.weight[own] = 0
                        each.bias[own] = 0
                    block.attention.output.weight[:, own] = 0
    return found


@pytest.mark.parametrize("structures", ["hidden", "heads", "both"])
@pytest.mark.parametrize("layers", ["adaptive", "uniform"])
def test_what_is_left_is_the_whole_model_with_zeros(structures: Any, layers: Any) -> None:
    """Its outputs, and the gradients of all that is kept."""
    model = backbone()
    config = Config(structures=structures, layers=layers, sparsity=0.4)
    masks = drawn_up(config, model, config.sparsity)
    small = shrunk(model, cut(model, trainable_state(model), masks), masks)
    full = with_zeros(model, masks)
    assert size(small) < size(full) == size(model)
    images, labels = torch.rand(5, *SHAPE), torch.tensor([0, 1, 2, 0, 1])
    for each in (small, full):
        nn.functional.cross_entropy(each(images), labels).backward()
    torch.testing.assert_close(small(images), full(images))
    gradients = {name: each.grad for name, each in full.named_parameters()}
    for name, found in cut(full, gradients, masks).items():  # type: ignore[arg-type]
        own = small.get_parameter(name).grad
        torch.testing.assert_close(own, found, rtol=1e-4, atol=1e-6)
    before, after = trainable_state(backbone()), trainable_state(model)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("pattern", ["all", "row", "column"])
def test_scores_are_norms(pattern: str) -> None:
    model, config = backbone(), Config(structures="both", pattern=pattern)  # type: ignore[arg-type]
    for number, block in enumerate(model.blocks):
        of = {name: each.detach().double().numpy() for name, each in block.named_parameters()}
        square = {"row": np.zeros(16), "column": (of["contract.weight"] ** 2).sum(axis=0)}
        square["row"] = (of["expand.weight"] ** 2).sum(axis=1) + of["expand.bias"] ** 2
        square["all"] = square["row"] + square["column"]
        group = fedpruning.groups(model, "hidden")[number]
        found = fedpruning.norms(group, trainable_state(model), config.pattern)
        np.testing.assert_allclose(found.numpy(), np.sqrt(square[pattern]))
        rows = sum(
            (of[f"attention.{each}.weight"] ** 2).sum(axis=1) + of[f"attention.{each}.bias"] ** 2
            for each in ("query", "key", "value")
        )
        columns = (of["attention.output.weight"] ** 2).sum(axis=0)
        by_feature = {"row": rows, "column": columns, "all": rows + columns}[pattern]
        group = fedpruning.groups(model, "heads")[number]
        found = fedpruning.norms(group, trainable_state(model), config.pattern)
        np.testing.assert_allclose(found.numpy(), np.sqrt(by_feature.reshape(4, 2).sum(axis=1)))


def test_the_best_of_all_blocks_or_of_each() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0], [0.1, 0.3, 0.2, 0.3]])
    of_each = [[False, False, True, True]] * 2 + [[False, True, False, True]]
    assert best(scores, 0.5, uniform=True).tolist() == of_each
    of_all = [[False, False, False, True], [True] * 4, [False, True, False, False]]
    assert best(scores, 0.5, uniform=False).tolist() == of_all
    # Of each block one stays, whatever is asked for.
    least = [[False, False, False, True], [False, False, False, True], [False, True, False, False]]
    for uniform in (True, False):
        assert best(scores, 0.99, uniform=uniform).tolist() == least
        assert best(scores, 0.0, uniform=uniform).all()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, None, None]),
        ({"schedule": "constant", "refine_rounds": 1}, [0.5] * 6 + [None] * 2),
        (
            {"prune_rounds": 4, "refine_rounds": 3, "mask_rounds": 2},
            [0.25, None, 0.5, None, 0.5, None, 0.5, None, None],
        ),
    ],
)
def test_phases_and_schedules(options: dict[str, Any], expected: list[float | None]) -> None:
    config = Config(**options)
    found = [config.sparsity_of(number) for number in range(1, len(expected) + 1)]
    assert [each and round(each, 9) for each in found] == expected


def test_the_shipped_model_without_half_of_its_hidden_units() -> None:
    model = models.skeleton("vit-glyphs", 10)
    assert fedpruning.traffic(Config(), model) == (918_184, 918_184)
    assert 4 * (303_658 - 4 * (96 * (2 * 96 + 1))) == 918_184
    masks = fedpruning.whole(model, ["hidden"])
    assert sum(each.numel() for each in fedpruning.packed(masks).values()) == 96


@pytest.mark.parametrize(
    ("structures", "pruned", "bitmaps"),
    [("hidden", 16 * UNIT, 4), ("heads", 4 * HEAD, 1), ("both", 16 * UNIT + 4 * HEAD, 5)],
)
def test_bytes_are_those_of_what_is_kept_and_of_masks_that_change(
    structures: Any, pruned: int, bitmaps: int
) -> None:
    options = {"schedule": "constant", "prune_rounds": 2, "refine_rounds": 0}
    played = Played(2, structures=structures, **options)
    kept = 4 * (size(played.before) - pruned)
    assert played.bytes_of("down", 1) == [kept + bitmaps] * 3
    assert played.bytes_of("down", 2) == [kept] * 3
    assert played.bytes_of("up", 1) == played.bytes_of("up", 2) == [kept] * 3
    assert fedpruning.traffic(played.config, played.before) == (kept, kept)
    images, labels = (
        torch.cat(each) for each in zip(*[p[:2] for p in played.parts.values()], strict=True)
    )
    found = played.server.evaluate(images, labels)["kept"]
    assert found == pytest.approx(kept / (4 * size(played.before)))


def test_the_mean_enters_what_is_kept_and_the_rest_stays() -> None:
    played = Played(1, structures="both", schedule="constant")
    (before, after), masks = played.states, played.masks[-1]
    updates = played.network.of("up")
    for name, along, kept in places(played.before, masks):
        mean = np.average(
            [each.tensors[name].double().numpy() for each in updates],
            axis=0,
            weights=[SAMPLES[each.sender] for each in updates],
        )
        expected = before[name].double().numpy()
        expected[kept if along == 0 else (slice(None), kept)] = mean
        np.testing.assert_allclose(after[name].numpy(), expected, rtol=1e-6)
        assert not np.array_equal(after[name].numpy(), before[name].numpy())
        gone = torch.ones(after[name].shape[along], dtype=torch.bool)
        gone[kept] = False
        some = gone.nonzero().squeeze(1)
        assert torch.equal(*(each[name].index_select(along, some) for each in (before, after)))


def test_what_is_pruned_comes_back_in_refining_alone() -> None:
    options: dict[str, Any] = {"prune_rounds": 2, "refine_rounds": 1, "schedule": "constant"}
    played = Played(1, **options)
    first = played.masks[-1]["hidden"]
    with torch.no_grad():
        # By their weights all that was pruned would now be first.
        for group, kept in zip(fedpruning.groups(played.before, "hidden"), first, strict=True):
            played.server.model.get_parameter(group.columns)[:, ~kept] += 100
    played.play(3)
    pruning, refining, tuning = (each["hidden"] for each in played.masks[-3:])
    assert torch.equal(pruning, first)
    assert torch.equal(refining, ~first)
    assert torch.equal(tuning, refining)


def test_masks_shrink_by_steps() -> None:
    played = Played(4, sparsity=0.5, prune_rounds=4, refine_rounds=0)
    kept = [each["hidden"] for each in played.masks]
    assert [int(each.sum()) for each in kept] == [32, 28, 24, 20, 16]
    assert all(not (later & ~earlier).any() for earlier, later in itertools.pairwise(kept))
    assert [played.bytes_of("up", number)[0] for number in (1, 2, 3, 4)] == [
        4 * (size(played.before) - pruned * UNIT) for pruned in (4, 8, 12, 16)
    ]


@pytest.mark.thorough
def test_who_missed_a_mask_is_sent_it() -> None:
    options: dict[str, Any] = {"schedule": "constant", "prune_rounds": 3, "refine_rounds": 0}
    played = Played(0, **options)
    kept = 4 * (size(played.before) - 16 * UNIT)
    played.play(1, "client-1", "client-2")
    played.play(1)
    assert sorted(played.bytes_of("down", 2)) == [kept, kept, kept + 4]
    (last,) = [each for each in played.network.log if each.message.payload_bytes == kept + 4][2:]
    assert last.client == "client-3"
    played.play(1)
    assert played.bytes_of("down", 3) == [kept] * 3


@pytest.mark.thorough
def test_a_round_takes_some_clients() -> None:
    played = Played(0, schedule="constant", prune_rounds=6, refine_rounds=0)
    played.play(6, per_round=1)
    kept = 4 * (size(played.before) - 16 * UNIT)
    known: set[str] = set()
    for way, client, message in played.network.log:
        if way == "down":
            assert message.payload_bytes == kept + (0 if client in known else 4)
            known.add(client)
    assert len(known) > 1


@pytest.mark.thorough
def test_a_client_that_is_lost() -> None:
    played = Played(2, dies_after={"client-2": 1})
    assert played.network.missed() == {("client-2", "killed")}
    assert len(played.bytes_of("up", 2)) == 2
    assert not torch.equal(*(each["head.classifier.weight"] for each in played.states[1:]))


class Forgetful(fedpruning.Client):
    """Has not kept the masks."""

    def round(self, peer: Peer) -> None:
        self.masks = None
        super().round(peer)


@pytest.mark.thorough
def test_who_has_no_mask_says_so_and_is_sent_it_again() -> None:
    played = Played(0, schedule="constant", prune_rounds=9, refine_rounds=0)
    own = played.parts["client-1"]
    played.clients["client-1"] = Forgetful(played.config, copy.deepcopy(played.before), own, 1)
    played.play(3)
    assert played.network.missed() == {("client-1", "it refused: no mask was ever sent")}
    assert [len(played.bytes_of("up", number)) for number in (1, 2, 3)] == [3, 2, 3]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mask.hidden": torch.zeros(4, dtype=torch.uint8)}, "leaves a block without any"),
        ({"mask.hidden": torch.zeros(3, dtype=torch.uint8)}, "expected torch.uint8[4]"),
        ({"mask.heads": torch.zeros(1, dtype=torch.uint8)}, "differ in 'mask.heads'"),
        ({"mask.hidden": torch.tensor([255, 0, 255, 0], dtype=torch.uint8)}, "expected torch.f"),
    ],
)
def test_masks_that_cannot_be_are_refused(change: dict[str, Tensor], reason: str) -> None:
    played = Played(0)
    whole = fedpruning.packed(played.server.masks) | trainable_state(played.before)
    played.clients["client-1"].read(whole)
    with pytest.raises(ValueError) as refused:
        played.clients["client-1"].read(whole | change)
    assert reason in str(refused.value)


@pytest.mark.thorough
def test_a_run_goes_on_with_masks_and_who_has_them() -> None:
    options: dict[str, Any] = {"prune_rounds": 3, "structures": "both"}
    undisturbed, killed, resumed = Played(2, **options), Played(2, **options), Played(0, **options)
    resumed.done = 2
    for old, new in (
        (killed.server, resumed.server),
        *((killed.clients[name], resumed.clients[name]) for name in SAMPLES),
    ):
        shard: Shard = getattr(old, "shard", killed.parts["client-1"])
        tensors, told = Snapshot(old, killed.config, shard).take()
        tensors = {name: each.clone() for name, each in tensors.items()}
        Snapshot(new, resumed.config, shard).put(tensors, told)
    resumed.network = Network()
    undisturbed.network = Network()
    undisturbed.play(2)
    resumed.play(2)
    assert undisturbed.network.payload() == resumed.network.payload()
    mine, theirs = (trainable_state(each.server.model) for each in (undisturbed, resumed))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_operations_fall_with_what_is_left() -> None:
    model, image = backbone(), torch.zeros(1, *SHAPE)
    config = Config(local_epochs=3, prune_rounds=4, sparsity=0.5)
    found = fedpruning.client_flops(config, model, image)
    # Forward, and twice backward, of two matrices a unit for each token.
    unit = 3 * 2 * 2 * SPEC.width * SPEC.tokens
    whole = flops.step(model, image, model)
    assert found == [3 * (whole - pruned * unit) for pruned in (4, 8, 12, 16)]


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("sparsity", 1.0, "sparsity = 1.0: Expected `float` < 1"),
        ("structures", "tokens", "structures = 'tokens': must be one of hidden, heads, both"),
        ("pattern", "half", "pattern = 'half': must be one of all, row, column"),
        ("prune_rounds", 0, "prune_rounds = 0: Expected `int` >= 1"),
        ("mask_rounds", 0, "mask_rounds = 0: Expected `int` >= 1"),
    ],
)
def test_bad_options_are_refused(option: str, value: object, reason: str) -> None:
    config = RunConfig(method="fedpruning", options={option: value})  # type: ignore[dict-item]
    with pytest.raises(ConfigError) as refused:
        FineTuning(config, 2)
    assert reason in str(refused.value)


def test_a_model_without_what_is_pruned_is_refused() -> None:
    model = backbone()
    del model.blocks[1].expand
    with pytest.raises(ValueError, match="'both': block 1 of this model has no expand; take one"):
        fedpruning.check(Config(structures="both"), model)
    fedpruning.check(Config(structures="heads"), model)
