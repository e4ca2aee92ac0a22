"""FedSP: who gets what in a round, what it learns, and that the model itself stays where it is."""

import math
from typing import Any

import pytest
import torch
from copied import copied
from in_process import Network, play
from made_text import language_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from methods import Shard, fedsp
from methods.shared.local_training import trainable_state
from methods.shared.objective import IGNORED
from methods.shared.prefix import Prefixed
from nodes.compute import Modelled, noise
from nodes.workload.models import ModelSpec, VisionTransformer
from testbed.config_error import ConfigError
from testbed.run.config import convert

SPEC = {"vocabulary": 16, "width": 8, "depth": 3, "heads": 2, "mlp_width": 12, "context": 8}
SAMPLES = {"client-1": 12, "client-2": 20, "client-3": 3}
TOKENS = 8
AUXILIARY = 4 * (16 * 8 + (4 * 8 * 8 + 3 * 8 * 12 + 2 * 8) + 8)
"""Bytes of the embedding, which the classifier is tied to, one block and the norm."""


def config(**options: Any) -> fedsp.Config:
    small = {"prefix_length": 4, "batch_size": 4, "local_steps": 3, "align_steps": 5}
    return fedsp.Config(**{**small, "server_samples": 10} | options)


def model(options: fedsp.Config, device: str = "cpu", **spec: Any) -> Prefixed:
    found = fedsp.adapt(options, language_model(device, **{**SPEC, **spec}))
    assert isinstance(found, Prefixed)
    return found


def text(count: int, seed: int, tokens: int = TOKENS) -> tuple[Tensor, Tensor]:
    """Ids of which only a few come, and those that follow them."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, (count, tokens + 1), generator=generator)
    return ids[:, :-1], ids[:, 1:]


PUBLIC = text(10, seed=99)[0]


def shards() -> dict[str, Shard]:
    return {
        name: Shard(*text(count, seed=number), PUBLIC, number)
        for number, (name, count) in enumerate(SAMPLES.items(), start=1)
    }


NOTHING = Shard(PUBLIC[:0], PUBLIC[:0], PUBLIC, 0)


class Played:
    """A server and clients after some rounds."""

    def __init__(self, rounds: int = 1, device: str = "cpu", **options: Any) -> None:
        self.config = config(**options)
        before = model(self.config, device=device)
        self.server = fedsp.Server(self.config, copied(before), NOTHING, 0)
        self.clients = {
            name: fedsp.Client(self.config, copied(before), shard, shard.client)
            for name, shard in shards().items()
        }
        self.before = before
        self.done = 0
        self.network = Network()
        if rounds:
            self.play(rounds)

    def play(self, rounds: int, *names: str, **more: Any) -> Network:
        some = {name: self.clients[name] for name in names or self.clients}
        first, self.done = self.done + 1, self.done + rounds
        self.network = more.pop("network", None) or Network()
        return play(self.server, some, SAMPLES, self.done, self.network, first=first, **more)

    def down(self, client: str) -> list[str]:
        return [
            each.message.kind
            for each in self.network.log
            if each[:2] == ("down", client) and each.message.kind != "start"
        ]


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def frozen(own: Prefixed) -> dict[str, Tensor]:
    parameters = own.named_parameters()
    return {name: each for name, each in parameters if not name.startswith("prefix.")}


# Bytes, and who gets what


@pytest.mark.parametrize(("projection", "values"), [(None, 4 * 3 * 2 * 8), (5, None)])
def test_payload_is_that_of_the_formula(projection: int | None, values: int | None) -> None:
    played = Played(rounds=3, projection=projection)
    if values is None:
        values = 4 * 8 + 8 * 5 + 5 + 5 * 2 * 3 * 8 + 2 * 3 * 8
    sent = played.network.payload()
    assert sent["up"] == {"prefix": 3 * 3 * 4 * values}
    assert sent["down"] == {"prefix": 3 * 3 * 4 * values, "auxiliary": 3 * AUXILIARY, "start": 0}
    assert fedsp.traffic(played.config, played.server.model) == (4 * values, 4 * values)


def test_published_sizes() -> None:
    """40 places of GPT2-XL's 48 layers of 1600 features, and OPT-1.3B's 24 of 2048."""
    for layers, width, heads, expected in ((48, 1600, 25, 24_576_000), (24, 2048, 32, 15_728_640)):
        spec = {"vocabulary": 8, "width": width, "depth": layers, "heads": heads, "mlp_width": 1}
        options = fedsp.Config(prefix_length=40)
        whole = model(options, "meta", **spec)
        assert fedsp.traffic(options, whole) == (expected, expected)


def test_an_untied_classifier_travels_with_the_auxiliary_model() -> None:
    own = config(align_steps=0)
    untied = model(own, tied=False)
    server = fedsp.Server(own, untied, NOTHING, 0)
    assert sum(each.nbytes for each in server._aligned().values()) == AUXILIARY + 4 * 16 * 8


@pytest.mark.thorough
@pytest.mark.parametrize("projection", [None, 5])
def test_modelled_compute_has_the_same_bytes(projection: int | None) -> None:
    real = Played(rounds=2, projection=projection)
    modelled = Played(rounds=0, device="meta", projection=projection)
    values = noise(0)
    for node in (modelled.server, *modelled.clients.values()):
        node.shard = node.shard._replace(inputs=node.shard.inputs.to("meta"))
    found = modelled.play(2, compute=lambda: Modelled(1e15, values))
    assert found.payload() == real.network.payload() and found.missed() == set()


def test_the_auxiliary_model_comes_once_and_the_model_never() -> None:
    played = Played(rounds=2)
    assert played.down("client-1") == ["auxiliary", "prefix", "prefix"]
    for message in played.network.of("down", "auxiliary"):
        assert message.tensors.keys() == played.server.auxiliary.keys()
        assert not any(name.startswith(("blocks.1.", "blocks.2.")) for name in message.tensors)
    ours, theirs = frozen(played.server.model), frozen(played.before)
    assert equal(ours, theirs)


@pytest.mark.thorough
def test_who_comes_later_gets_it_then() -> None:
    played = Played(rounds=0)
    played.play(1, "client-1", "client-2")
    played.play(1, "client-2", "client-3")
    assert played.down("client-2") == ["prefix"]
    assert played.down("client-3") == ["auxiliary", "prefix"]
    assert played.server.heard == ["client-1", "client-2", "client-3"]


@pytest.mark.thorough
def test_some_of_the_clients_take_part_in_each_round() -> None:
    played = Played(rounds=0)
    network = played.play(4, per_round=2)
    sent = network.of("up", "prefix")
    assert len(sent) == 8
    whole = network.payload()["down"]["auxiliary"]
    assert whole == AUXILIARY * len({message.sender for message in sent})


@pytest.mark.thorough
def test_a_client_that_dies_is_left_out_and_gets_it_again() -> None:
    played, dies = Played(rounds=0), Network(dies_after={"client-2": 0})
    network = played.play(1, network=dies)
    assert ("client-2", "killed") in network.missed()
    assert played.server.heard == ["client-1", "client-3"]
    # Its process goes on here: the server cannot know what arrived.
    played.play(1)
    assert played.down("client-2") == ["auxiliary", "prefix"]
    assert played.down("client-1") == ["prefix"]


def test_a_round_without_updates_leaves_the_prefix() -> None:
    played = Played(rounds=0)
    before = trainable_state(played.server.model)
    played.play(1, network=Network(dies_after=dict.fromkeys(SAMPLES, 0)))
    assert equal(trainable_state(played.server.model), before)


def test_a_prefix_of_another_length_is_refused() -> None:
    played = Played(rounds=0)
    other = config(prefix_length=5)
    played.clients["client-2"] = fedsp.Client(other, model(other), shards()["client-2"], 2)
    network = played.play(1)
    assert {peer for peer, _ in network.missed()} == {"client-2"}


# A round


def test_the_mean_is_weighted_and_goes_on_at_the_server() -> None:
    # So small a rate that the server's own steps move nothing.
    played = Played(rounds=1, prefix_learning_rate=1e-12)
    sent = {each.sender: each.tensors["prefix.places"] for each in played.network.of("up")}
    total = sum(SAMPLES.values())
    mean = sum(SAMPLES[name] / total * each.double() for name, each in sent.items())
    found = trainable_state(played.server.model)["prefix.places"]
    assert isinstance(mean, Tensor)
    torch.testing.assert_close(found.double(), mean, atol=1e-6, rtol=1e-6)
    moved = Played(rounds=1, prefix_learning_rate=0.1)
    sent = {each.sender: each.tensors["prefix.places"] for each in moved.network.of("up")}
    mean = sum(SAMPLES[name] / total * each.double() for name, each in sent.items())
    assert isinstance(mean, Tensor)
    found = trainable_state(moved.server.model)["prefix.places"]
    assert float((found - mean).abs().max()) > 0.1


def steps_by_hand(
    own: Prefixed, whole: Shard, parts: list[nn.Module], steps: int, rate: float, seed: int
) -> None:
    """Full batches of plain code, in the order that a client draws."""
    generator = torch.Generator().manual_seed(seed)
    count, batch = len(whole.targets), 4
    orders = [torch.randperm(count, generator=generator) for _ in range(-(-steps * batch // count))]
    parameters = list({id(p): p for part in parts for p in part.parameters()}.values())
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)
    for chosen in torch.cat(orders)[: steps * batch].split(batch):
        logits = own(whole.inputs[chosen])
        loss = F.cross_entropy(logits.transpose(1, 2), whole.targets[chosen])
        for each, gradient in zip(
            parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True
        ):
            each.grad = gradient
        optimizer.step()


def test_a_client_trains_the_auxiliary_model_then_the_prefix() -> None:
    played = Played(rounds=0, learning_rate=0.01, prefix_learning_rate=0.02)
    hand = fedsp.auxiliary_of(model(played.config))
    played.play(1, "client-1")
    state = {**played.server.auxiliary}
    own = dict(hand.named_parameters())
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)
    hand.requires_grad_(True)
    shard = shards()["client-1"]
    # One epoch is 3 batches of its 12 samples, so the second phase draws a second order.
    steps_by_hand(hand, shard, hand.base, 3, 0.01, seed=1)
    generator = torch.Generator().manual_seed(1)
    torch.randperm(12, generator=generator)
    again = shard.inputs, shard.targets
    order = torch.randperm(12, generator=generator)
    optimizer = torch.optim.AdamW(hand.prefix.parameters(), lr=0.02, weight_decay=0.01)
    for chosen in order.split(4):
        loss = F.cross_entropy(hand(again[0][chosen]).transpose(1, 2), again[1][chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    (sent,) = played.network.of("up", "prefix")
    torch.testing.assert_close(sent.tensors["prefix.places"], hand.prefix.places.detach())
    kept = frozen(played.clients["client-1"].model)
    for name, each in frozen(hand).items():
        torch.testing.assert_close(kept[name], each)


@pytest.mark.thorough
def test_the_auxiliary_model_stays_at_the_client_as_it_left_it() -> None:
    played = Played(rounds=1)
    first = {name: each.clone() for name, each in frozen(played.clients["client-1"].model).items()}
    assert not equal(first, played.server.auxiliary)
    sent = played.network.of("down", "auxiliary")[0].tensors
    assert equal(dict(sent), played.server.auxiliary)
    played.play(1)
    second = frozen(played.clients["client-1"].model)
    assert not equal(first, second)
    # A tenth of AdamW's rate a step and parameter, and not from the start again.
    moved = max(float((second[name] - first[name]).abs().max()) for name in first)
    assert 0 < moved < 3 * 1.1 * 5e-4


@pytest.mark.thorough
def test_the_auxiliary_model_is_aligned_by_its_hidden_states_alone() -> None:
    def apart(steps: int) -> float:
        own = config(align_steps=steps, align_learning_rate=2e-2)
        whole = model(own)
        server = fedsp.Server(own, whole, NOTHING, 0)
        student = fedsp.auxiliary_of(whole)
        parameters = dict(student.named_parameters())
        aligned = server._aligned()
        with torch.no_grad():
            for name, tensor in aligned.items():
                parameters[name].copy_(tensor)
            none = whole.prefix()[..., :0, :]
            gap = student.hidden(PUBLIC, none) - whole.hidden(PUBLIC, none)
        return float(gap.square().mean())

    assert apart(60) < 0.5 * apart(0)


def test_it_begins_as_the_models_first_block_for_every_layer() -> None:
    own = config()
    whole = model(own)
    student = fedsp.auxiliary_of(whole)
    shared = Prefixed(whole, nn.ModuleList([whole.blocks[0]] * 3), whole.prefix)
    torch.testing.assert_close(student(PUBLIC), shared(PUBLIC))


# What it learns


@pytest.mark.thorough
def test_the_loss_falls_over_rounds() -> None:
    played = Played(
        rounds=0, prefix_learning_rate=0.02, learning_rate=5e-3, local_steps=5, align_steps=20
    )
    inputs, targets = text(50, seed=7)
    before = played.server.evaluate(inputs, targets)
    losses = [before["loss"]]
    for _ in range(3):
        played.play(2)
        losses.append(played.server.evaluate(inputs, targets)["loss"])
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.3
    assert before["perplexity"] == pytest.approx(math.exp(losses[0]))


@pytest.mark.thorough
def test_a_client_without_some_tokens_takes_part() -> None:
    played = Played(rounds=0)
    client = played.clients["client-3"]
    client.shard = client.shard._replace(
        inputs=torch.zeros_like(client.shard.inputs), targets=torch.zeros_like(client.shard.targets)
    )
    played.play(2)
    assert played.network.missed() == set()


# The server's text, and rates


def test_what_follows_in_text_without_targets() -> None:
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 2, 2], [2, 2, 2, 2], [5, 2, 2, 6]])
    assert fedsp.following(ids).tolist() == [
        [6, 7, 8, IGNORED],
        [6, 2, IGNORED, IGNORED],
        [IGNORED] * 4,
        [2, 2, 6, IGNORED],
    ]


def test_rates_go_up_for_a_tenth_and_down_for_the_rest() -> None:
    found = [fedsp.rate_at(done) for done in (0, 0.05, 0.1, 0.55, 1, 2)]
    assert found == pytest.approx([0, 0.5, 1, 0.5, 0, 0])


@pytest.mark.thorough
def test_rates_of_a_round() -> None:
    played = Played(rounds=2, rate_rounds=10, learning_rate=0.4, prefix_learning_rate=0.2)
    client = played.clients["client-1"]
    # The second of ten rounds is at 0.15 of all.
    share = 0.85 / 0.9
    rates = [
        each.param_groups[0]["lr"]
        for each in (client.optimizer, client.prefix_optimizer, played.server.optimizer)
    ]
    assert rates == pytest.approx([0.4 * share, 0.2 * share, 0.2 * share])


# Operations, and what is refused


def test_operations_of_a_client_are_those_of_its_steps() -> None:
    own = config()
    whole = model(own)
    image = PUBLIC[:1]
    assert fedsp.client_flops(own, whole, image) == 0
    student = fedsp.auxiliary_of(whole)
    samples = own.local_steps * own.batch_size
    ids, targets = text(samples, seed=3)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        for parts in (student.base, [student.prefix]):
            fedsp.train_only(student, *parts)
            F.cross_entropy(student(ids).transpose(1, 2), targets).backward()
    assert fedsp.fixed_flops(own, whole, image) == counter.get_total_flops() > 0


def test_a_model_of_images_is_refused() -> None:
    vit = VisionTransformer(ModelSpec(side=4, patch=2, width=16, depth=2, heads=4), 3)
    with pytest.raises(ValueError, match=r"causal language model.*variant=prompt"):
        fedsp.check(fedsp.Config(), vit)
    fedsp.check(fedsp.Config(), language_model("meta", **SPEC))


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        ("prefix_length", 0, ">= 1"),
        ("projection", 0, ">= 1"),
        ("local_steps", 0, ">= 1"),
        ("learning_rate", 0.0, "> 0"),
        ("prefix_deviation", -1.0, ">= 0"),
        ("server_samples", 0, ">= 1"),
    ],
)
def test_bad_options_are_refused(name: str, value: float, right: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} = .*{right}"):
        convert({name: value}, fedsp.Config, "options of method fedsp")
