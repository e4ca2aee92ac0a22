"""KD-FFT and what distillation shares: losses and means by hand, and whole rounds in process."""

import math
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from copied import copied
from in_process import Network, play, shards
from told import Told
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from methods import Peer, Shard, kdfft
from methods.distillation import Public, PublicImages, kd_loss, predict, traffic
from methods.shared import flops
from methods.shared.local_training import trainable_state
from methods.shared.objective import scores
from nodes.program import FineTuning
from nodes.workload.models import ModelSpec, VisionTransformer
from testbed.config_error import ConfigError
from testbed.run.config import RunConfig, convert
from testbed.run.feasible import Traffic

CLASSES = 3
SPEC = ModelSpec(side=4, patch=2, width=8, depth=2, heads=2)
SAMPLES = {"client-1": 5, "client-2": 9, "client-3": 2}
PUBLIC, BATCH = 12, 7
SEED = 4
BYTES = BATCH * CLASSES * 4 + 8


def config(**options: Any) -> kdfft.Config:
    small = {"rank": 2, "public_samples": PUBLIC, "public_batch": BATCH, "local_epochs": 1}
    return kdfft.Config(**{**small, "batch_size": 4, "digest_batch_size": 4, **options})


def model(options: kdfft.Config) -> nn.Module:
    torch.manual_seed(2)
    return kdfft.adapt(options, VisionTransformer(SPEC, CLASSES))


def public() -> Tensor:
    return torch.rand(PUBLIC, 1, 4, 4, generator=torch.Generator().manual_seed(8))


def parts() -> dict[str, Shard]:
    found = shards(SAMPLES, (1, 4, 4), CLASSES)
    return {name: shard._replace(public=public()) for name, shard in found.items()}


def server_of(options: kdfft.Config, start: nn.Module) -> kdfft.Server:
    nothing = shards({"server": 0}, (1, 4, 4), 1)["server"]._replace(public=public(), client=0)
    return kdfft.Server(options, copied(start), nothing, SEED)


class Played(SimpleNamespace):
    server: kdfft.Server
    clients: dict[str, kdfft.Client]
    network: Network


def played(options: kdfft.Config, rounds: int = 1, network: Network | None = None) -> Played:
    start = model(options)
    server = server_of(options, start)
    clients = {
        name: kdfft.Client(options, copied(start), shard, 10 + shard.client)
        for name, shard in parts().items()
    }
    network = play(server, clients, SAMPLES, rounds, network)
    return Played(server=server, clients=clients, network=network)


class Says:
    """A client that hears the labels and answers with logits that a test made."""

    def __init__(self, answer: Callable[[int], Mapping[str, Tensor]]) -> None:
        self.heard: list[Any] = []
        self._answer = answer
        self._public = Public(config(), public(), CLASSES)

    def round(self, peer: Peer) -> None:
        self.heard.append(self._public.receive_labels(peer)[1])
        peer.send("logits", self._answer(peer.round))


def rows(*values: float, seed: int = SEED) -> dict[str, Tensor]:
    """Logits that are the same for every image."""
    logits = torch.tensor([values], dtype=torch.float32).repeat(BATCH, 1)
    return {"seed": torch.tensor([seed]), "logits": logits}


def answered(
    options: kdfft.Config,
    answers: list[Callable[[int], Mapping[str, Tensor]]],
    rounds: int = 1,
) -> tuple[kdfft.Server, list[Says], Network]:
    server = server_of(options, model(options))
    clients = {f"client-{k}": Says(answer) for k, answer in enumerate(answers, start=1)}
    samples = {name: 10**k for k, name in enumerate(clients)}
    network = play(server, clients, samples, rounds)
    return server, list(clients.values()), network


# The loss


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_kd_loss_against_torchs_own(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    scores, labels = (4 * torch.randn(6, CLASSES, generator=generator) for _ in range(2))
    expected = temperature**2 * F.kl_div(
        F.log_softmax(scores / temperature, dim=1),
        F.softmax(labels / temperature, dim=1),
        reduction="batchmean",
    )
    torch.testing.assert_close(kd_loss(scores, labels, temperature), expected)


def test_kd_loss_against_a_value_by_hand() -> None:
    # At T = 2 the labels are 3/4 and 1/4, the scores 1/2 each.
    labels, scores = torch.tensor([[2 * math.log(3), 0.0]]), torch.zeros(1, 2)
    expected = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert kd_loss(scores, labels, 2.0).item() == pytest.approx(expected, rel=1e-6)
    assert kd_loss(labels, labels, 2.0).item() == 0.0


# The mean


def test_the_mean_of_logits_by_hand_whatever_the_samples() -> None:
    answers = [lambda _: rows(2, 0, 1), lambda _: rows(0, 4, 1), lambda _: rows(1, -1, 4)]
    server, _, _ = answered(config(), answers)
    assert server.labels is not None and server.labels.round == 1
    assert torch.equal(server.labels.logits, torch.tensor([[1.0, 1.0, 2.0]]).repeat(BATCH, 1))


def test_sharpening_by_hand() -> None:
    # Probabilities (1/2, 1/4, 1/4) and (1/4, 1/4, 1/2): at T = 1/8 their mean differs by 1.
    answers = [lambda _: rows(math.log(2), 0, 0), lambda _: rows(0, 0, math.log(2))]
    server, _, _ = answered(config(sharpen=True, sharpen_temperature=0.125), answers)
    assert server.labels is not None
    weights = torch.tensor([math.e, 1.0, math.e])
    expected = (weights / weights.sum()).expand(BATCH, -1)
    torch.testing.assert_close(server.labels.logits.softmax(dim=1), expected)


@pytest.mark.parametrize("options", [{}, {"temperature": 2.0}, {"temperature": 0.5}])
def test_what_digests_sharpened_labels_ends_at_them(options: dict[str, float]) -> None:
    """DS-FL's target is softmax(mean probability / 0.1), of whatever T the loss is."""
    plain = {"temperature": 1.0, **options}["temperature"]
    settings = kdfft.Config(public_samples=BATCH, public_batch=BATCH, sharpen=True, **options)
    answers = [lambda _: rows(math.log(2), 0, 0), lambda _: rows(0, 0, math.log(2))]
    server, _, _ = answered(settings, answers)
    assert server.labels is not None and settings.temperature == plain
    mean = torch.tensor([0.375, 0.25, 0.375], dtype=torch.float64).expand(BATCH, -1)
    target = (mean / settings.sharpen_temperature).softmax(dim=1)
    scores = (plain * target.log()).requires_grad_()
    loss = kd_loss(scores, server.labels.logits.double(), settings.temperature)
    loss.backward()
    assert scores.grad is not None
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert float(scores.grad.abs().max()) < 1e-6


def test_a_client_that_is_gone_is_left_out_of_the_mean() -> None:
    found = played(config(), network=Network(dies_after={"client-2": 0}))
    sent = {m.sender: m.tensors["logits"] for m in found.network.of("up", "logits")}
    assert sent.keys() == {"client-1", "client-3"}
    assert found.server.labels is not None
    expected = torch.stack(list(sent.values())).mean(dim=0)
    torch.testing.assert_close(found.server.labels.logits, expected)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (rows(1, 2), "logits is"),
        (rows(1, 2, math.nan), "not finite"),
        ({"logits": rows(1, 2, 3)["logits"]}, "differ in 'seed'"),
        ({**rows(1, 2, 3), "logits": torch.zeros(BATCH, 3, dtype=torch.float64)}, "logits is"),
        ({**rows(1, 2, 3), "logits": torch.zeros(BATCH + 1, 3)}, "logits is"),
        (rows(1, 2, 3, seed=SEED + 1), "another seed"),
    ],
)
def test_logits_that_are_not_as_they_should_be_are_left_out(
    answer: dict[str, Tensor], reason: str
) -> None:
    server, _, network = answered(config(), [lambda _: answer, lambda _: rows(3, 2, 1)])
    assert server.labels is not None
    assert torch.equal(server.labels.logits, rows(3, 2, 1)["logits"])
    ((client, why),) = network.missed()
    assert client == "client-1" and reason in why


def test_a_round_without_updates_leaves_the_labels_and_the_student() -> None:
    def answer(number: int) -> Mapping[str, Tensor]:
        return rows(1, 2, 3 if number == 1 else math.inf)

    options = config()
    server, (client,), _ = answered(options, [answer], rounds=3)
    once, _, _ = answered(options, [answer])
    assert server.labels is not None and server.labels.round == 1
    assert client.heard[0] is None and [labels.round for labels in client.heard[1:]] == [1, 1]
    assert torch.equal(client.heard[2].logits, rows(1, 2, 3)["logits"])
    assert server.model is not None and once.model is not None
    assert_equal(trainable_state(server.model), trainable_state(once.model))


def assert_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# The subset


def test_a_subset_is_drawn_anew_each_round_and_by_seed() -> None:
    images = torch.arange(PUBLIC).float()
    one, other = (Public(config(), images, CLASSES) for _ in range(2))
    draws = [one.subset(seed, number) for seed in (0, 1) for number in (1, 2, 3)]
    assert all(len(draw.unique()) == BATCH for draw in draws)
    assert len({tuple(sorted(draw.tolist())) for draw in draws}) == len(draws)
    again = [other.subset(seed, number) for seed in (0, 1) for number in (1, 2, 3)]
    assert all(torch.equal(*pair) for pair in zip(draws, again, strict=True))


@pytest.mark.parametrize("seed", [-1, -(2**63), 2**63 - 1])
def test_any_seed_that_a_message_can_hold_names_a_subset(seed: int) -> None:
    assert len(Public(config(), public(), CLASSES).subset(seed, 1)) == BATCH


def test_clients_predict_on_the_subset_of_their_round() -> None:
    found = played(config(), rounds=2)
    last = found.network.of("up", "logits")[-len(SAMPLES) :]
    for message in last:
        subset = found.server.public.subset(SEED, 2)
        own = predict(found.clients[message.sender].model, subset)
        assert torch.equal(message.tensors["logits"], own)
        assert message.tensors["seed"].tolist() == [SEED]


# Digesting


def client_of(options: kdfft.Config) -> kdfft.Client:
    return kdfft.Client(options, model(options), parts()["client-2"], 12)


def test_digesting_moves_a_clients_predictions_to_the_labels_of_an_earlier_round() -> None:
    options = config(learning_rate=1e-12, digest_epochs=40, digest_learning_rate=0.03)
    client = client_of(options)
    subset = client.public.subset(SEED, 3)
    # A different class for every second image: nothing that a bias could do.
    labels = 4 * F.one_hot(torch.arange(BATCH) % 2, CLASSES).float()
    before = kd_loss(predict(client.model, subset), labels, 2.0).item()
    client.round(Told(5, SEED, 3, labels))
    after = kd_loss(predict(client.model, subset), labels, 2.0).item()
    assert after < before / 4
    assert (predict(client.model, subset).argmax(1) == labels.argmax(1)).all()


@pytest.mark.parametrize("labels_of", [0, -1, 2, 7, "1", 1.5, None])
def test_a_client_that_is_told_of_no_labels_digests_none(labels_of: Any) -> None:
    told, first = client_of(config()), client_of(config())
    one, other = Told(2, SEED, labels_of), Told(2, SEED, 0)
    told.round(one)
    first.round(other)
    assert_equal(one.sent, other.sent)


def test_the_temperature_is_the_losss() -> None:
    labels = 4 * F.one_hot(torch.arange(BATCH) % 2, CLASSES).float()
    sent = []
    for temperature in (1.0, 4.0):
        peer = Told(2, SEED, 1, labels)
        client_of(config(temperature=temperature)).round(peer)
        sent.append(peer.sent["logits"])
    assert not torch.equal(*sent)


# Whole rounds


def test_bytes_are_the_formulas_and_rank_does_not_move_them() -> None:
    rounds, clients = 3, len(SAMPLES)
    for rank in (1, 8):
        options = config(rank=rank)
        found = played(options, rounds)
        assert found.network.payload() == {
            "up": {"logits": rounds * clients * BYTES},
            # In round 1 there are no labels, and the seed alone goes down.
            "down": {"logits": clients * ((rounds - 1) * BYTES + 8)},
        }
        assert (
            traffic(options, model(options))
            == (BYTES, BYTES)
            == kdfft.traffic(options, model(options))
        )
    assert BYTES == 7 * 3 * 4 + 8


def test_the_same_seed_gives_the_same_result() -> None:
    one, other = played(config(), rounds=2), played(config(), rounds=2)
    assert one.server.model is not None and other.server.model is not None
    assert_equal(trainable_state(one.server.model), trainable_state(other.server.model))
    for name, client in one.clients.items():
        assert_equal(trainable_state(client.model), trainable_state(other.clients[name].model))


def test_a_clients_operations_are_those_of_its_round(monkeypatch: pytest.MonkeyPatch) -> None:
    # In inference mode a linear layer is one operator, which nobody has a formula for.
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)
    options = config(local_epochs=3, digest_epochs=2)
    client, shard = client_of(options), parts()["client-2"]
    # Else the same work is counted, or not, by which kernel the processor takes.
    with sdpa_kernel(SDPBackend.MATH), flops.Counter() as counter:
        client.round(Told(2, SEED, 1, torch.zeros(BATCH, CLASSES)))
    image = public()[:1]
    own = kdfft.client_flops(options, client.model, image)
    assert counter.flops == len(shard.targets) * own + kdfft.fixed_flops(
        options, client.model, image
    )


def test_every_client_keeps_a_model_of_its_own_under_one_frozen_backbone() -> None:
    # A second step: in the first LoRA's one factor is zero, and the other has no gradient.
    options = config(local_epochs=2)
    found = played(options)
    start = dict(model(options).named_parameters())
    learnt = [dict(client.model.named_parameters()) for client in found.clients.values()]
    for name, parameter in start.items():
        values = [parameter, *(one[name] for one in learnt)]
        pairs = [torch.equal(a, b) for k, a in enumerate(values) for b in values[:k]]
        assert all(pairs) if not parameter.requires_grad else not any(pairs), name


def shades(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images whose class is how bright they are."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    noise = torch.rand(count, 1, 4, 4, generator=generator)
    return 0.1 * noise + labels[:, None, None, None] / CLASSES, labels


@pytest.mark.thorough
def test_the_student_learns_what_no_client_knows_whole() -> None:
    images, labels = shades(45, seed=1)
    test, truth = shades(30, seed=2)
    options = config(public_samples=30, public_batch=24, local_epochs=6, learning_rate=0.02)
    start = model(options)
    shard = Shard(images, labels, test, 0)
    server = kdfft.Server(options, copied(start), shard, SEED)
    clients = {}
    for missing in range(CLASSES):
        mine = labels != missing
        part = Shard(images[mine], labels[mine], test, missing + 1)
        own = copied(start)
        clients[f"client-{missing + 1}"] = kdfft.Client(options, own, part, missing)
    play(server, clients, dict.fromkeys(clients, 30), rounds=3)
    found = server.evaluate(test, truth)
    assert found["accuracy"] > 0.9 > scores(start, test, truth)["accuracy"]
    one = clients["client-1"]
    assert one.evaluate(test, truth) == scores(one.model, test, truth)


def test_without_a_student_the_server_has_no_model() -> None:
    found = played(config(student=False))
    assert found.server.model is None and found.server.labels is not None
    assert found.server.evaluate(public(), torch.zeros(PUBLIC, dtype=torch.int64)) == {}


# Options, and what a run makes of them


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"public_batch": 401}, "public_batch = 401: must be at most the public_samples = 400"),
        ({"temperature": 0}, "temperature = 0: "),
        ({"temperature": -1.0}, "temperature = -1.0: "),
        ({"sharpen_temperature": 0.0}, "sharpen_temperature = 0.0: "),
        ({"public_samples": 0, "public_batch": 0}, "public_samples = 0: "),
        ({"public_source": "cifar"}, "must be one of held-out, glyphs"),
        ({"rank": 0}, "rank = 0: "),
    ],
)
def test_an_option_that_cannot_be_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        convert(options, kdfft.Config, "options of method kdfft")
    assert text in str(caught.value)


def test_a_public_set_larger_than_the_data_is_refused_unless_it_is_drawn() -> None:
    options = {"public_samples": 1400}
    with pytest.raises(ConfigError, match="1400 public images: digits has 1437 training images"):
        FineTuning(RunConfig(method="kdfft", options=options), clients=20)
    FineTuning(RunConfig(method="kdfft", options={**options, "public_source": "glyphs"}), 20)


@pytest.mark.parametrize(("source", "private"), [("held-out", 1037), ("glyphs", 1437)])
def test_where_public_images_come_from(source: str, private: int) -> None:
    options = {"public_source": source}
    program = FineTuning(RunConfig(method="kdfft", options=options), clients=2)
    assert program.prepare() == Traffic(200 * 10 * 4 + 8, 200 * 10 * 4 + 8)
    nodes = [program._shard(number) for number in range(3)]
    assert len(nodes[0].targets) == 0
    assert sum(len(node.targets) for node in nodes) == private
    own = {image.numpy().tobytes() for node in nodes for image in node.inputs}
    shared = {image.numpy().tobytes() for image in nodes[0].public}
    assert len(shared) == 400 and own.isdisjoint(shared)
    assert all(torch.equal(node.public, nodes[0].public) for node in nodes)


def test_the_options_of_public_images_are_shared_by_methods() -> None:
    assert set(PublicImages.__struct_fields__) < set(kdfft.Config.__struct_fields__)
    assert msgspec.structs.asdict(kdfft.Config())["public_source"] == "held-out"
