"""FedDF: its server's distilling by another loop, and what is refused."""

import copy
import math
from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from copied import copied
from made_rounds import CLASSES, PUBLIC, Rounds, linear, same
from torch import Tensor, nn
from torch.nn import functional as F

from methods import fedavg, feddf, fedpeft
from nodes.program import FineTuning
from nodes.workload.models import ModelSpec, VisionTransformer
from testbed.config_error import ConfigError
from testbed.run.config import RunConfig
from testbed.run.feasible import Traffic

SPEC = ModelSpec(side=4, patch=2, width=16, depth=2, heads=2)
TRAINING = {"learning_rate": 0.05, "batch_size": 4}


def of(state: Mapping[str, Tensor]) -> nn.Module:
    model = linear()
    model.load_state_dict({name: each.clone() for name, each in state.items()})
    return model


@pytest.mark.parametrize("lost", [{}, {"client-2": 1}])
def test_three_rounds_against_another_loop(lost: dict[str, int]) -> None:
    """Full batches of the public images, so that no draw shows."""
    steps, rate = 6, 0.03
    played = Rounds(
        feddf,
        dies_after=lost,
        distill_epochs=steps,
        distill_batch_size=len(PUBLIC),
        distill_learning_rate=rate,
        **TRAINING,
    )
    for number in (1, 2, 3):
        came = [message for message in played.network.of("up") if message.round == number]
        assert len(came) == (2 if lost and number > 1 else 3)
        with torch.no_grad():
            teacher = torch.stack([of(each.tensors)(PUBLIC) for each in came]).mean(dim=0)
        mean = {name: torch.from_numpy(each) for name, each in played.mean(number).items()}
        student = of(mean)
        optimizer = torch.optim.Adam(student.parameters())
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.zero_grad()
            own = F.log_softmax(student(PUBLIC), dim=1)
            F.kl_div(own, teacher.softmax(dim=1), reduction="batchmean").backward()
            optimizer.step()
        for name, expected in student.state_dict().items():
            found = played.states[number][name]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_student_comes_nearer_to_the_teacher_than_the_mean_is() -> None:
    played = Rounds(feddf, rounds=1, distill_learning_rate=0.01, distill_batch_size=4, **TRAINING)
    models = [of(each.tensors) for each in played.network.of("up")]
    mean = of({name: torch.from_numpy(each) for name, each in played.mean(1).items()})
    with torch.no_grad():
        teacher = torch.stack([each(PUBLIC) for each in models]).mean(dim=0).softmax(dim=1)
        far, near = (
            float(F.kl_div(model(PUBLIC).log_softmax(dim=1), teacher, reduction="batchmean"))
            for model in (mean, played.server.model)
        )
    assert 0 <= near < far


def _broken(*, also: bool) -> SimpleNamespace:
    """The method, with a client-3 whose weights are the contrary of what it learnt."""

    class Client(feddf.Client):
        def trained(self, start: Mapping[str, Tensor]) -> dict[str, Tensor]:
            end = super().trained(start)
            return {n: -each for n, each in end.items()} if self.shard.client == 3 else end

    own = {"adapt": feddf.adapt, "Config": feddf.Config, "Server": feddf.Server}
    return SimpleNamespace(__name__="methods.feddf", Client=Client if also else feddf.Client, **own)


def test_who_is_no_better_than_chance_is_dropped_if_asked() -> None:
    """In both means: as if it had not answered."""
    options = {"rounds": 1, "learning_rate": 1e-3}
    dropped = Rounds(_broken(also=True), drop_worst=True, **options)
    kept = Rounds(_broken(also=True), **options)
    without = Rounds(feddf, dies_after={"client-3": 0}, **options)
    assert len(dropped.network.of("up")) == 3
    assert same(dropped.states, without.states) and not same(kept.states, without.states)


def test_whoever_is_better_than_chance_stays() -> None:
    dropping, plain = (Rounds(feddf, drop_worst=each, learning_rate=1e-3) for each in (True, False))
    assert same(dropping.states, plain.states)


def test_agreement_by_hand() -> None:
    """Labels of the mean are 0, 1, 1 and 2; a third of four is less than two."""
    logits = [[0, 1, 1, 2], [0, 1, 1, 2], [0, 1, 0, 0], [0, 2, 2, 1], [2, 0, 0, 0]]
    updates = [
        feddf.Update({}, 1, F.one_hot(torch.tensor(each), 3).float() * scale)
        for each, scale in zip(logits, (2, 2, 1, 1, 1), strict=True)
    ]
    assert feddf.better_than_chance(updates) == updates[:3]
    assert feddf.better_than_chance([]) == []
    # Two who agree nowhere: with the mean's first class each does half the time, or never.
    apart = [feddf.Update({}, 1, torch.eye(3)[[k, k]]) for k in (0, 1)]
    assert feddf.better_than_chance(apart[1:]) == apart[1:]


def test_without_gain_on_what_is_held_out_the_student_stays_the_mean() -> None:
    """Steps far too long: two passes of three batches of its eight images, and then no more."""
    steps: list[int] = []

    class Server(feddf.Server):
        def distil(self, logits: Tensor) -> None:
            seen = self.generator.get_state()
            super().distil(logits)
            alike = torch.Generator()
            alike.set_state(seen)
            while not torch.equal(alike.get_state(), self.generator.get_state()):
                torch.randperm(8, generator=alike)
                steps.append(1)

    watched = _broken(also=False)
    watched.Server = Server
    played = Rounds(
        watched,
        rounds=1,
        distill_patience=2,
        distill_epochs=50,
        distill_learning_rate=1e3,
        **TRAINING,
    )
    assert len(steps) == 2
    for name, mean in played.mean(1).items():
        np.testing.assert_allclose(played.states[1][name].numpy(), mean, rtol=1e-6, atol=1e-7)


def test_with_gain_it_distils_on_the_rest_of_the_images() -> None:
    """Full batches of the first eight images, so that no draw shows."""
    steps, rate = 4, 0.01
    more = {"distill_batch_size": 8, "distill_learning_rate": rate, **TRAINING}
    played = Rounds(feddf, rounds=1, distill_patience=4, distill_epochs=steps, **more)
    models = [of(each.tensors) for each in played.network.of("up")]
    with torch.no_grad():
        teacher = torch.stack([each(PUBLIC) for each in models]).mean(dim=0).softmax(dim=1)
    student = of({name: torch.from_numpy(each) for name, each in played.mean(1).items()})
    optimizer, best = torch.optim.Adam(student.parameters()), student.state_dict()
    lowest = math.inf
    for step in range(steps + 1):
        with torch.no_grad():
            own = student(PUBLIC[8:]).log_softmax(dim=1)
        if (loss := float(F.kl_div(own, teacher[8:], reduction="batchmean"))) < lowest:
            lowest, best = loss, copy.deepcopy(student.state_dict())
        optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad()
        own = student(PUBLIC[:8]).log_softmax(dim=1)
        F.kl_div(own, teacher[:8], reduction="batchmean").backward()
        optimizer.step()
    for name, expected in best.items():
        torch.testing.assert_close(played.states[1][name], expected, rtol=1e-4, atol=1e-5)
    start = played.mean(1)["1.weight"]
    assert float((best["1.weight"] - torch.from_numpy(start)).abs().max()) > 1e-3


def test_a_round_without_updates_leaves_the_model() -> None:
    played = Rounds(feddf, rounds=2, dies_after={f"client-{k}": 1 for k in (1, 2, 3)})
    assert same(played.states[1:2], played.states[2:])
    assert not same(played.states[:1], played.states[1:2])


def test_its_bytes_are_fedavgs_and_fedpefts() -> None:
    assert Rounds(feddf).network.payload() == Rounds(fedavg).network.payload()
    torch.manual_seed(0)
    model = VisionTransformer(SPEC, CLASSES)
    ours, theirs = (Rounds(each, rounds=2, model=model) for each in (feddf, fedpeft))
    assert ours.network.payload() == theirs.network.payload()


def test_what_is_frozen_stays_though_clients_weights_were_in_the_servers_model() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(SPEC, CLASSES)
    played = Rounds(feddf, rounds=1, model=model)
    before = dict(fedpeft.adapt(played.config, copied(model)).named_parameters())
    for name, after in played.server.model.named_parameters():
        assert torch.equal(after, before[name]) != after.requires_grad, name


def test_privacy_by_sample_is_fedavgs_and_by_client_refused() -> None:
    ours, theirs = (
        Rounds(each, rounds=2, dp="sample", dp_noise=1.0, **TRAINING) for each in (feddf, fedavg)
    )
    some = ours.parts["client-1"]
    spent = [each.server.evaluate(some.inputs, some.targets)["epsilon"] for each in (ours, theirs)]
    assert spent[0] == spent[1] > 0
    config = feddf.Config(dp="client", dp_noise=1.0)
    with pytest.raises(ValueError, match=r"dp = 'client'.*take dp=sample"):
        feddf.check(config, VisionTransformer(SPEC, CLASSES))


@pytest.mark.parametrize(("source", "private"), [("held-out", 1037), ("glyphs", 1437)])
def test_where_public_images_come_from(source: str, private: int) -> None:
    options = {"public_source": source, "variant": "head"}
    program = FineTuning(RunConfig(method="feddf", options=options), clients=2)
    assert program.prepare() == Traffic(4 * 970, 4 * 970)
    nodes = [program._shard(number) for number in range(3)]
    assert len(nodes[0].public) == 400
    assert sum(len(node.targets) for node in nodes) == private


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("public_samples", 0, "public_samples = 0: Expected `int` >= 1"),
        ("public_samples", 100_000, "ask for 100000 public images: digits has"),
        ("public_source", "web", "public_source = 'web': must be one of held-out, glyphs"),
        ("distill_patience", 0, "distill_patience = 0: Expected `int` >= 1"),
        ("distill_epochs", 0, "distill_epochs = 0: Expected `int` >= 1"),
        ("distill_learning_rate", 0.0, "distill_learning_rate = 0.0: Expected `float` > 0"),
    ],
)
def test_bad_options_are_refused(option: str, value: object, reason: str) -> None:
    config = RunConfig(method="feddf", options={option: value})  # type: ignore[dict-item]
    with pytest.raises(ConfigError) as refused:
        FineTuning(config, 2)
    assert reason in str(refused.value)


def test_a_fifth_of_too_few_images_is_none() -> None:
    options = {"distill_patience": 2, "public_samples": 4}
    with pytest.raises(ConfigError, match=r"public_samples = 4: with distill_patience"):
        FineTuning(RunConfig(method="feddf", options=options), 2)  # type: ignore[arg-type]
