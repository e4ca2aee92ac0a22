"""SalientGrads: masks by hand, values in their order, and clients that come late or never."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from in_process import Network, play, shards
from made_rounds import CLASSES, SAMPLES, SHAPE, linear
from torch import Tensor, nn
from torch.nn import functional as F

from methods import Shard, salientgrads
from methods.payload import bits
from methods.payload.chain import Chain
from methods.payload.coder import Coder
from methods.salientgrads import Config, masks_of, prunable
from methods.shared.local_training import learnt, trainable_state
from nodes.compute import Modelled, noise
from nodes.program import FineTuning
from nodes.workload.models import ModelSpec, VisionTransformer, skeleton
from testbed.config_error import ConfigError
from testbed.run.config import RunConfig

SPEC = ModelSpec(side=4, patch=2, width=16, depth=2, heads=2)
WHOLE = {"batch_size": 12, "local_epochs": 1}
"""Batches of every sample of a client."""


def backbone() -> nn.Module:
    torch.manual_seed(0)
    return VisionTransformer(SPEC, CLASSES)


class Run:
    def __init__(
        self,
        model: nn.Module | None = None,
        parts: Mapping[str, Shard] | None = None,
        coders: Mapping[str, Coder] | None = None,
        **options: Any,
    ) -> None:
        self.config = Config(**{"learning_rate": 0.05, **options})
        self.model = backbone() if model is None else model
        self.parts = parts or shards(SAMPLES, SHAPE, CLASSES)
        nothing = Shard(
            torch.empty(0, *SHAPE), torch.empty(0, dtype=torch.int64), torch.empty(0), 0
        )
        self.server = salientgrads.Server(self.config, copy.deepcopy(self.model), nothing, 7)
        self.clients = {
            name: salientgrads.Client(self.config, copy.deepcopy(self.model), shard, shard.client)
            for name, shard in self.parts.items()
        }
        self.coders = coders or {}

    def play(self, rounds: int, **more: Any) -> Network:
        return play(self.server, self.clients, SAMPLES, rounds, coders=self.coders, **more)

    @property
    def masks(self) -> dict[str, Tensor]:
        """bool, of each layer's shape."""
        return {
            name: self.server.masks.of(name, each.shape)
            for name, each in prunable(self.model).items()
        }


def unpacked(packed: Tensor, shape: tuple[int, ...]) -> list[int]:
    found: list[int] = bits.unpack(packed, 1, math.prod(shape)).view(shape).tolist()
    return found


# The mask


def test_a_mask_against_a_hand_calculation() -> None:
    """Of 10 weights 4: of both layers together, the first of equal ones."""
    saliency = {
        "one": torch.tensor([[0.9, 0.1, 0.5], [0.0, 0.4, 0.5]]),
        "two": torch.tensor([[0.5, 0.7], [0.2, 0.5]]),
    }
    found = masks_of(Config(density=0.4, keep_rows=False), saliency)
    assert unpacked(found["one"], (2, 3)) == [[1, 0, 1], [0, 0, 1]]
    assert unpacked(found["two"], (2, 2)) == [[0, 1], [0, 0]]
    assert {name: each.tolist() for name, each in found.items()} == {
        "one": [0b10100100],
        "two": [0b01000000],
    }


def test_each_output_keeps_one_and_the_number_stays() -> None:
    saliency = {
        "one": torch.tensor([[0.9, 0.1, 0.5], [0.0, 0.04, 0.01]]),
        "two": torch.tensor([[0.5, 0.7], [0.02, 0.01]]),
    }
    found = masks_of(Config(density=0.5), saliency)
    assert unpacked(found["one"], (2, 3)) == [[1, 0, 1], [0, 1, 0]]
    assert unpacked(found["two"], (2, 2)) == [[0, 1], [1, 0]]


def test_a_layer_that_would_be_left_with_nothing_is_refused() -> None:
    saliency = {"one": torch.tensor([[0.9, 0.8]]), "two": torch.tensor([[0.1, 0.2]])}
    with pytest.raises(ValueError, match=r"density = 0\.5: no weight of two is .* keep_rows=true"):
        masks_of(Config(density=0.5, keep_rows=False), saliency)
    assert masks_of(Config(density=0.5), saliency).keys() == {"one", "two"}


def by_softmax(model: nn.Module, images: Tensor, labels: Tensor) -> np.ndarray:
    """|w dL/dw| of a linear model under cross-entropy, by the softmax's own gradient, float64."""
    layer = model[1]
    x = images.flatten(1).double().numpy()
    weight = layer.weight.detach().double().numpy()
    scores = np.exp(x @ weight.T + layer.bias.detach().double().numpy())
    errors = scores / scores.sum(axis=1, keepdims=True) - np.eye(CLASSES)[labels.numpy()]
    found: np.ndarray = np.abs(weight * (errors.T @ x) / len(x))
    return found


@pytest.mark.parametrize("weighted", [False, True])
def test_saliency_and_the_mask_of_a_linear_model_against_its_gradient_by_hand(
    weighted: bool,
) -> None:
    run = Run(linear(), density=0.25, weighted=weighted, keep_rows=False, **WHOLE)
    network = run.play(1)
    expected = {
        name: by_softmax(run.model, shard.inputs, shard.targets)
        for name, shard in run.parts.items()
    }
    for message in network.of("up", "saliency"):
        (found,) = message.tensors.values()
        np.testing.assert_allclose(found.numpy(), expected[message.sender], rtol=1e-4, atol=1e-8)
    weights = list(SAMPLES.values()) if weighted else None
    mean = np.average(list(expected.values()), axis=0, weights=weights)
    by_hand = mean >= np.sort(mean, axis=None)[-12]  # A quarter of 48.
    assert by_hand.sum() == 12
    np.testing.assert_array_equal(run.masks["1.weight"].numpy(), by_hand)


def test_saliency_is_the_gradient_of_a_mask_of_ones() -> None:
    """Through masks that are really in the layers, by finite differences in float64."""
    run = Run(density=0.5, **WHOLE)
    (client, shard) = run.clients["client-1"], run.parts["client-1"]
    found = client.saliency()
    model = copy.deepcopy(run.model).double().requires_grad_(False)
    for name in ("embed.patches.weight", "blocks.1.attention.key.weight", "head.classifier.weight"):
        weight = dict(model.named_parameters())[name]
        for place in (0, 7, weight.numel() - 1):
            losses = []
            for step in (1e-4, -1e-4):
                flat = weight.data.view(-1)
                before = float(flat[place])
                flat[place] = before * (1 + step)
                losses.append(float(F.cross_entropy(model(shard.inputs.double()), shard.targets)))
                flat[place] = before
            slope = abs(losses[0] - losses[1]) / 2e-4
            assert float(found[name].view(-1)[place]) == pytest.approx(slope, rel=1e-2, abs=1e-6)


def test_the_published_loss_is_of_outputs_that_are_no_logarithms() -> None:
    """Its gradient by an output is -1 for the right class, whatever the others are."""
    run = Run(linear(), saliency_loss="as_published", density=0.5, **WHOLE)
    shard = run.parts["client-1"]
    x, layer = shard.inputs.flatten(1).double(), run.model[1]
    slopes = F.one_hot(shard.targets, CLASSES).double().T @ x / len(x)
    expected = (layer.weight.detach().double() * slopes).abs()
    found = run.clients["client-1"].saliency()["1.weight"]
    assert torch.allclose(found.double(), expected, atol=1e-6)
    other = Run(linear(), density=0.5, **WHOLE).clients["client-1"].saliency()["1.weight"]
    assert not torch.allclose(found, other, atol=1e-4)


def test_batches_of_the_set_up_are_drawn_anew_and_their_magnitudes_averaged() -> None:
    run = Run(linear(), saliency_batches=5, batch_size=4, density=0.5)
    client, shard = run.clients["client-1"], run.parts["client-1"]
    drawn = copy.deepcopy(client.choice)
    batches = [torch.randperm(12, generator=drawn)[:4] for _ in range(5)]
    each = [by_softmax(run.model, shard.inputs[own], shard.targets[own]) for own in batches]
    found = client.saliency()["1.weight"]
    np.testing.assert_allclose(found.numpy(), np.mean(each, axis=0), rtol=1e-4, atol=1e-8)


# Rounds


def formula(run: Run) -> dict[str, int]:
    """Bytes of each message, by its kind."""
    own = prunable(run.model)
    prunables = sum(each.numel() for each in own.values())
    rest = sum(each.numel() for name, each in learnt(run.model).items() if name not in own)
    kept = int(run.config.density * prunables)
    mask = sum(math.ceil(each.numel() / 8) for each in own.values())
    return {"saliency": 4 * prunables, "mask": mask, "model": 4 * (kept + rest)}


@pytest.mark.thorough
@pytest.mark.parametrize("options", [{"density": 0.11}, {"density": 0.6, "keep_rows": False}])
def test_bytes_are_those_of_the_formula_with_values_and_without(options: dict[str, Any]) -> None:
    real = Run(**options)
    found = real.play(3).payload()
    size = formula(real)
    assert found["up"] == {"saliency": 3 * size["saliency"], "model": 9 * size["model"]}
    assert found["down"] == {"mask": 3 * size["mask"], "model": 9 * size["model"]}
    assert salientgrads.traffic(real.config, real.model) == (size["model"], size["model"])
    parts = {
        name: each._replace(inputs=each.inputs.to("meta")) for name, each in real.parts.items()
    }
    modelled = Run(real.model.to("meta"), parts, **options)
    made = noise(0)
    network = modelled.play(3, compute=lambda: Modelled(1e15, made))
    assert network.payload() == found and network.missed() == set()


def test_the_shipped_models_bytes() -> None:
    model = skeleton("vit-glyphs", classes=10)
    assert sum(each.numel() for each in prunable(model).values()) == 297_408
    assert len(prunable(model)) == 26
    assert salientgrads.traffic(Config(density=0.3), model) == (381_888, 381_888)
    client = salientgrads.Client(Config(), model, shards(SAMPLES, SHAPE, CLASSES)["client-1"], 0)
    assert sum(each.numel() for each in client.bitmaps().values()) == 37_176


def test_rounds_are_steps_of_masked_sgd_and_a_mean_by_hand() -> None:
    """The rate falls from round to round, and no weight comes back."""
    run = Run(linear(), density=0.25, learning_rate=0.5, rate_decay=0.5, weight_decay=0.01, **WHOLE)
    network = run.play(2)
    mask = run.masks["1.weight"].double()
    weight, bias = run.model[1].weight.detach().double() * mask, run.model[1].bias.detach().double()
    first = [each for each in network.of("down", "model") if each.round == 1]
    for message in first:
        values = message.tensors["1.weight"]
        assert torch.equal(values, run.model[1].weight.detach()[run.masks["1.weight"]])
    for rate in (0.5, 0.25):
        ends = []
        for shard in run.parts.values():
            w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
            loss = F.cross_entropy(shard.inputs.double().flatten(1) @ w.T + b, shard.targets)
            slopes = torch.autograd.grad(loss, (w, b))
            ends.append(
                (
                    (weight - rate * (slopes[0] + 0.01 * weight)) * mask,
                    bias - rate * (slopes[1] + 0.01 * bias),
                )
            )
        share = torch.tensor([*SAMPLES.values()], dtype=torch.float64) / sum(SAMPLES.values())
        weight, bias = (
            torch.tensordot(share, torch.stack(each), dims=1) for each in zip(*ends, strict=True)
        )
    own = trainable_state(run.server.model)
    assert torch.allclose(own["1.weight"].double(), weight, atol=1e-6)
    assert torch.allclose(own["1.bias"].double(), bias, atol=1e-6)
    assert int(own["1.weight"].count_nonzero()) == 12


def test_a_steps_gradient_is_no_longer_than_the_clip() -> None:
    """That of a whole batch, masked weights' in it, by a rate of 1 without decay."""
    lengths = []
    for clip in (1e-3, 1e3):
        run = Run(linear(), density=1.0, clip=clip, learning_rate=1.0, weight_decay=0.0, **WHOLE)
        run.play(1)
        client, start = run.clients["client-1"], trainable_state(run.model)
        moved = [
            (now.detach() - start[name]).flatten() for name, now in learnt(client.model).items()
        ]
        lengths.append(float(torch.cat(moved).norm()))
    assert lengths[0] == pytest.approx(1e-3, rel=1e-3) and lengths[1] > 0.01


def test_masked_weights_are_zero_after_every_step_and_in_the_mean() -> None:
    run = Run(density=0.2, batch_size=4)
    run.play(2)
    for node in (run.server, *run.clients.values()):
        own = dict(node.model.named_parameters())
        for name, mask in run.masks.items():
            assert not own[name][~mask].any() and own[name][mask].any()


# Who is there


def test_everyone_is_asked_and_a_client_gets_the_mask_with_its_first_model() -> None:
    run = Run()
    network = run.play(6, per_round=1)
    assert network.missed() == set()
    assert {each.sender for each in network.of("up", "saliency")} == set(SAMPLES)
    assert {each.round for each in network.of("up", "saliency")} == {1}
    trained = [each.sender for each in network.of("up", "model")]
    assert len(trained) == 6 and len(set(trained)) > 1
    masks = [s for s in network.log if s.way == "down" and s.message.kind == "mask"]
    got = [sent.client for sent in masks if sent.message.tensors]
    assert sorted(got) == sorted(set(trained))
    for name in set(trained):
        first = next(
            s
            for s in network.log
            if s.way == "up" and s.client == name and s.message.kind == "model"
        )
        (own,) = [s.message.round for s in masks if s.client == name and s.message.tensors]
        assert own == first.message.round


def test_a_client_that_was_not_asked_gets_the_mask_later() -> None:
    run = Run()
    late = run.clients.pop("client-3")
    run.play(1)
    run.clients["client-3"] = late
    network = run.play(2, first=2)
    assert network.missed() == set() and not network.of("up", "saliency")
    assert [s.client for s in network.log if s.message.kind == "mask"] == ["client-3"]
    assert len(network.of("up", "model")) == 3


def test_a_client_that_dies_amid_the_set_up_has_no_part_in_the_mask() -> None:
    run, without = Run(linear(), density=0.25, **WHOLE), Run(linear(), density=0.25, **WHOLE)
    network = Network(dies_after={"client-1": 0})
    run.play(2, network=network)
    assert network.missed() == {("client-1", "killed")}
    without.clients.pop("client-1")
    without.play(2)
    assert torch.equal(run.masks["1.weight"], without.masks["1.weight"])
    ours, theirs = (trainable_state(each.server.model) for each in (run, without))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_client_that_dies_between_its_saliency_and_its_update() -> None:
    run = Run()
    network = Network(dies_after={"client-2": 1})
    run.play(2, network=network)
    assert network.missed() == {("client-2", "killed")}
    assert len(network.of("up", "saliency")) == 3 and len(network.of("up", "model")) == 4


def test_without_any_answer_the_set_up_is_asked_for_again() -> None:
    run = Run()
    everybody, run.clients = run.clients, {"client-1": run.clients["client-1"]}
    start = trainable_state(run.server.model)
    run.play(1, network=Network(dies_after={"client-1": 0}))
    assert not run.server.masks.packed
    assert all(
        torch.equal(each, start[name]) for name, each in trainable_state(run.server.model).items()
    )
    run.clients = everybody
    network = run.play(2, first=2)
    assert len(network.of("up", "saliency")) == len(network.of("up", "model")) == 3


def test_a_client_without_a_class_has_its_part() -> None:
    parts = shards(SAMPLES, SHAPE, CLASSES)
    parts["client-1"] = parts["client-1"]._replace(targets=torch.zeros(12, dtype=torch.int64))
    run = Run(parts=parts)
    network = run.play(2)
    assert network.missed() == set() and len(network.of("up", "model")) == 6


@pytest.mark.parametrize(
    ("spoilt", "reason"),
    [
        (lambda masks: {**masks, "head.classifier.weight": torch.zeros(6, dtype=torch.uint8)},
         r"a mask that keeps \d+ weights, expected \d+"),
        (lambda masks: {"head.classifier.weight": masks["head.classifier.weight"]},
         "a mask has a bit for each weight of each layer"),
    ],
)  # fmt: skip
def test_a_client_refuses_a_mask_that_is_none(spoilt: Any, reason: str) -> None:
    run = Run(density=0.5)
    run.play(1)
    with pytest.raises(ValueError, match=reason):
        run.clients["client-1"].check(spoilt(run.server.masks.packed))
    run.clients["client-1"].check(run.server.masks.packed)


def test_saliency_below_zero_is_refused() -> None:
    run = Run()
    own = run.clients["client-1"]
    honest = own.saliency
    own.saliency = lambda: {name: -each - 1 for name, each in honest().items()}
    ((peer, reason),) = run.play(1).missed()
    assert peer == "client-1" and "holds values below 0" in reason


@pytest.mark.thorough
@pytest.mark.parametrize("stage", ["int8", "topk:k=0.2"])
def test_payload_stages_work_on_what_is_kept(stage: str) -> None:
    chains = {name: Coder(Chain([stage]), Chain([stage]), 7) for name in ("server", *SAMPLES)}
    run = Run(coders=chains)
    network = run.play(3)
    assert network.missed() == set()
    for name, mask in run.masks.items():
        assert not dict(run.server.model.named_parameters())[name][~mask].any()
    whole = sum(each.payload_bytes for each in Run().play(3).of("up", "model"))
    assert 0 < sum(each.payload_bytes for each in network.of("up", "model")) < whole


@pytest.mark.thorough
def test_it_learns_what_clients_have_in_common() -> None:
    labels = torch.arange(12) % CLASSES
    images = F.one_hot(labels, 16).float().view(12, *SHAPE)
    own = shards(SAMPLES, SHAPE, CLASSES)
    parts = {
        n: s._replace(inputs=images[: SAMPLES[n]], targets=labels[: SAMPLES[n]])
        for n, s in own.items()
    }
    run = Run(parts=parts, density=0.3, learning_rate=0.1)
    before = run.server.evaluate(images, labels)["loss"]
    run.play(20)
    assert run.server.evaluate(images, labels)["loss"] < 0.5 * before


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"density": 0.0}, "density = 0.0: Expected `float` > 0"),
        ({"density": 1.5}, "density = 1.5: Expected `float` <= 1"),
        ({"density": 5e-5, "keep_rows": False},
         "density = 5e-05: keeps 14 of 297408 weights, and there are 26 layers; take at least "
         "0.0001"),
        ({"density": 0.005},
         "density = 0.005: keeps 1487 of 297408 weights, and there are 2794 outputs; take at least "
         "0.0094"),
        ({"clip": 0}, "clip = 0: Expected `float` > 0"),
        ({"rate_decay": 1.1}, "rate_decay = 1.1: Expected `float` <= 1"),
        ({"saliency_loss": "nll"}, "saliency_loss = 'nll'"),
        ({"densty": 0.3}, "unknown field 'densty': did you mean density?"),
    ],
)  # fmt: skip
def test_bad_options_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError) as refused:
        FineTuning(RunConfig(method="salientgrads", options=options), 2)
    assert reason in str(refused.value)
