"""DP-SGD: gradients against one sample at a time, clipping, noise, sampling, and whole rounds."""

import copy
from collections.abc import Iterator
from typing import Any

import heavy
import pytest
import torch
from copied import copied
from in_process import play, shards
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from methods import Shard, fedpeft, peft
from methods.shared import local_training
from methods.shared.local_training import trainable_state
from nodes.workload.models import ModelSpec, VisionTransformer

CLASSES = 3
SPEC = ModelSpec(side=4, patch=2, width=16, depth=3, heads=2)
SAMPLES = {"client-1": 12, "client-2": 20, "client-3": 8}
VARIANTS = peft.names()


def adapted(variant: str) -> nn.Module:
    """Moved away from where it starts, so that every trained tensor has a gradient."""
    torch.manual_seed(0)
    config = fedpeft.Config(variant=variant)  # type: ignore[arg-type]
    model = fedpeft.adapt(config, VisionTransformer(SPEC, CLASSES))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def some(count: int) -> Shard:
    return shards({"client-1": count}, (1, 4, 4), CLASSES)["client-1"]


def one_by_one(model: nn.Module, shard: Shard) -> list[dict[str, Tensor]]:
    """Each sample's gradient, by autograd."""
    found = []
    for image, label in zip(shard.inputs, shard.targets, strict=True):
        model.zero_grad()
        F.cross_entropy(model(image[None]), label[None]).backward()
        found.append(
            {
                name: each.grad.clone()
                for name, each in model.named_parameters()
                if each.grad is not None
            }
        )
    return found


@pytest.mark.thorough
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_by_sample_are_those_of_single_samples(variant: str) -> None:
    model, shard = adapted(variant), some(5)
    found = heavy.dp_sample.gradients(model, shard.inputs, shard.targets)
    assert found.keys() == trainable_state(model).keys()
    for number, expected in enumerate(one_by_one(model, shard)):
        for name, each in expected.items():
            assert torch.allclose(found[name][number], each, atol=2e-6), name
            assert name.endswith("key.bias") or each.abs().max() > 1e-5, name


@pytest.mark.thorough
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_model_keeps_its_own_parameters(variant: str) -> None:
    model, shard = adapted(variant), some(2)
    before = {name: (each, each.clone()) for name, each in model.named_parameters()}
    places = [id(own) for each in model.modules() for own in each.parameters(recurse=False)]
    heavy.dp_sample.gradients(model, shard.inputs, shard.targets)
    for name, each in model.named_parameters():
        assert each is before[name][0] and torch.equal(each, before[name][1])
    assert places == [id(own) for each in model.modules() for own in each.parameters(recurse=False)]


@pytest.mark.parametrize("count", [1, 5, None], ids=["one", "five", "more than at once"])
def test_a_clipped_sum_by_hand(count: int | None) -> None:
    model, shard = adapted("adapter"), some(count or 2 * heavy.dp_sample.AT_ONCE + 3)
    alone = one_by_one(model, shard)
    norms = [torch.cat([each.flatten() for each in one.values()]).norm().item() for one in alone]
    # Of five samples two or three are clipped.
    clip = sorted(norms)[len(norms) // 2] * 0.99
    found = heavy.dp_sample.clipped_sum(model, shard.inputs, shard.targets, clip)
    for name in found:
        expected = sum(
            one[name] * min(1.0, clip / norm) for one, norm in zip(alone, norms, strict=True)
        )
        assert torch.allclose(found[name], expected, atol=1e-5), name


def test_one_sample_moves_the_sum_by_no_more_than_the_clip() -> None:
    model, shard = adapted("lora"), some(6)
    clip = 0.01
    whole = heavy.dp_sample.clipped_sum(model, shard.inputs, shard.targets, clip)
    less = heavy.dp_sample.clipped_sum(model, shard.inputs[1:], shard.targets[1:], clip)
    change = torch.cat([(whole[name] - less[name]).flatten() for name in whole])
    # Any sample's gradient is longer than this clip, so it is met.
    assert change.norm().item() == pytest.approx(clip, rel=1e-4)


def test_the_sum_over_no_sample_is_zero() -> None:
    model, shard = adapted("head"), some(1)
    found = heavy.dp_sample.clipped_sum(model, shard.inputs[:0], shard.targets[:0], 1.0)
    assert found.keys() == trainable_state(model).keys()
    assert not any(each.any() for each in found.values())


@pytest.mark.parametrize("variant", ["lora", "adapter", "full"])
def test_without_noise_and_clipping_it_is_ordinary_training(variant: str) -> None:
    shard, steps = some(10), 3
    ours, ordinary = adapted(variant), adapted(variant)
    heavy.dp_sample.descend(
        ours,
        shard,
        torch.optim.SGD(ours.parameters(), lr=0.1),
        steps=steps,
        rate=1.0,
        clip=1e6,
        noise=0.0,
        generator=torch.Generator().manual_seed(0),
    )
    local_training.train(
        ordinary,
        shard,
        torch.optim.SGD(ordinary.parameters(), lr=0.1),
        epochs=steps,
        batch_size=10,
        generator=torch.Generator().manual_seed(0),
    )
    expected, before = trainable_state(ordinary), trainable_state(adapted(variant))
    for name, each in trainable_state(ours).items():
        assert torch.allclose(each, expected[name], atol=2e-6), name
        assert name.endswith("key.bias") or not torch.equal(each, before[name])


def step_of(noise: float, clip: float, seed: int = 0) -> Tensor:
    """What one step of rate 1 on four samples gives the optimizer, all in one row."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 100))
    images = torch.rand(4, 1, 8, 8)
    shard = Shard(images, torch.arange(4), images[:0], 1)
    heavy.dp_sample.descend(
        model,
        shard,
        torch.optim.SGD(model.parameters(), lr=0.0),
        steps=1,
        rate=1.0,
        clip=clip,
        noise=noise,
        generator=torch.Generator().manual_seed(seed),
    )
    return torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None])


@pytest.mark.parametrize(("noise", "clip"), [(1.0, 1.0), (3.0, 0.5)])
def test_the_noise_has_the_deviation_that_was_asked_for(noise: float, clip: float) -> None:
    drawn = step_of(noise, clip) - step_of(0.0, clip)
    expected = noise * clip / 4
    # Of 6,500 values; four standard errors.
    assert drawn.std().item() == pytest.approx(expected, rel=4 / (2 * len(drawn)) ** 0.5)
    assert abs(drawn.mean().item()) < 4 * expected / len(drawn) ** 0.5
    assert torch.equal(step_of(noise, clip), step_of(noise, clip))
    assert not torch.equal(step_of(noise, clip), step_of(noise, clip, seed=1))


@pytest.mark.thorough
def test_samples_are_drawn_independently(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[list[int]] = []

    def keep(model: nn.Module, images: Tensor, labels: Tensor, clip: float) -> dict[str, Tensor]:
        batches.append(labels.tolist())
        return {name: torch.zeros_like(each) for name, each in model.named_parameters()}

    monkeypatch.setattr(heavy.dp_sample, "clipped_sum", keep)
    model, count, rate, steps = nn.Linear(1, 1), 20, 0.25, 2000
    shard = Shard(torch.zeros(count, 1), torch.arange(count), torch.empty(0), 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    generator = torch.Generator().manual_seed(0)
    kwargs: dict[str, Any] = {"steps": steps, "rate": rate, "clip": 1.0, "noise": 0.0}
    heavy.dp_sample.descend(model, shard, optimizer, generator=generator, **kwargs)
    sizes = torch.tensor([float(len(batch)) for batch in batches])
    assert len(sizes) == steps
    # Binomial: a batch of fixed size would have no variance at all.
    assert sizes.mean().item() == pytest.approx(count * rate, rel=0.02)
    assert sizes.var().item() == pytest.approx(count * rate * (1 - rate), rel=0.1)
    times = torch.bincount(torch.tensor([one for batch in batches for one in batch]))
    assert len(times) == count and (times / steps - rate).abs().max() < 4 * (0.1875 / steps) ** 0.5


# Rounds


@pytest.fixture
def plain_attention() -> Iterator[None]:
    """Which kernel computes attention is set for all threads at once; a node is alone with it."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


class Rounds:
    """Two rounds of three clients."""

    def __init__(self, rounds: int = 2, **options: Any) -> None:
        self.config = fedpeft.Config(variant="head", batch_size=4, dp="sample", **options)
        self.model = adapted("head")
        self.parts = shards(SAMPLES, (1, 4, 4), CLASSES)
        server = fedpeft.Server(self.config, copy.deepcopy(self.model), self.parts["client-1"], 0)
        self.epsilons = [self.epsilon(server)]
        self.states = [trainable_state(server.model)]

        def note(number: int) -> None:
            self.epsilons.append(self.epsilon(server))
            self.states.append(trainable_state(server.model))

        clients = {
            name: fedpeft.Client(self.config, copy.deepcopy(self.model), shard, number)
            for number, (name, shard) in enumerate(self.parts.items())
        }
        self.network = play(server, clients, SAMPLES, rounds, after_round=note)

    def epsilon(self, server: fedpeft.Server) -> float:
        part = self.parts["client-1"]
        return server.evaluate(part.inputs, part.targets)["epsilon"]


@pytest.mark.thorough
@pytest.mark.usefixtures("plain_attention")
def test_the_result_has_the_greatest_epsilon_of_any_client() -> None:
    played = Rounds(dp_noise=2.0)
    assert played.epsilons[0] == 0
    for number in (1, 2):
        expected = []
        for count in SAMPLES.values():
            accountant = heavy.accountants.RDPAccountant()
            batches = count // 4
            accountant.history = [(2.0, 1 / batches, 2 * batches * number)]
            expected.append(accountant.get_epsilon(1e-3))
        # The smallest shard: each of its samples is drawn most often.
        assert max(expected) == expected[2]
        assert played.epsilons[number] == pytest.approx(max(expected), rel=0.01)


@pytest.mark.thorough
@pytest.mark.usefixtures("plain_attention")
def test_epsilon_adds_no_payload_and_the_same_seed_gives_the_same_model() -> None:
    once, again = Rounds(dp_noise=2.0), Rounds(dp_noise=2.0)
    bytes_each = 4 * (SPEC.width * CLASSES + CLASSES)
    assert once.network.payload() == {
        "up": {"head": 6 * bytes_each},
        "down": {"head": 6 * bytes_each},
    }
    for first, second in zip(once.states, again.states, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.thorough
@pytest.mark.usefixtures("plain_attention")
def test_without_budget_nobody_trains() -> None:
    played = Rounds(rounds=3, dp_epsilon=4.0, dp_rounds=2)
    assert 0 < played.epsilons[1] < played.epsilons[2] <= 4.0
    assert played.epsilons[3] == played.epsilons[2]
    same = [
        all(torch.equal(before[name], after[name]) for name in before)
        for before, after in zip(played.states, played.states[1:], strict=False)
    ]
    assert same == [False, False, True]
    assert not played.network.missed()


@pytest.mark.usefixtures("plain_attention")
@pytest.mark.parametrize("said", [None, "5", -1.0, float("inf"), float("nan")])
def test_an_update_without_a_credible_epsilon_is_refused(said: object) -> None:
    config = fedpeft.Config(variant="head", dp="sample", dp_noise=1.0)
    parts = shards(SAMPLES, (1, 4, 4), CLASSES)
    model = adapted("head")
    clients = {}
    for number, (name, shard) in enumerate(parts.items()):
        clients[name] = fedpeft.Client(config, copied(model), shard, number)
    liar = clients["client-2"].privacy
    train = liar.train

    def lie(*args: Any, **options: Any) -> None:
        train(*args, **options)
        liar.details = {} if said is None else {"epsilon": said}

    liar.train = lie  # type: ignore[method-assign]
    server = fedpeft.Server(config, copied(model), parts["client-1"], 0)
    network = play(server, clients, SAMPLES)
    ((peer, reason),) = network.missed()
    assert peer == "client-2" and "must be a number, at least 0" in reason
