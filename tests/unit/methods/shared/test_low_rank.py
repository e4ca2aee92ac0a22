"""LoRA of a rank for each client: bytes by formula, which sums are exact, ranks, refusals."""

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from in_process import Network
from made_low_rank import (
    CLASSES,
    HEAD,
    OPTIONS,
    RANKS,
    SAMPLES,
    SHAPE,
    SPEC,
    Played,
    adapters,
    dense,
    weights,
)

import methods
from methods import Missed, fedpeft
from methods.peft import lora
from methods.shared import flops, low_rank
from methods.shared.local_training import learnt, trainable_state
from nodes.program import FineTuning
from nodes.workload.models import VisionTransformer
from testbed.config_error import ConfigError
from testbed.run.config import RunConfig

METHODS = ["flexlora", "flora", "hetlora"]


@pytest.fixture(scope="module", params=METHODS)
def played(request: pytest.FixtureRequest) -> Played:
    return Played(request.param, rounds=3, **OPTIONS)


def test_a_client_sends_what_its_rank_has(played: Played) -> None:
    for name, rank in RANKS.items():
        sent = played.sent("up", name)
        assert [each.payload_bytes for each in sent] == 3 * [adapters(rank) + HEAD]
        assert {each.kind for each in sent} == {"adapter"}


@pytest.mark.parametrize("method", ["flexlora", "hetlora"])
def test_a_client_receives_what_its_rank_has(method: str) -> None:
    played = Played(method, rounds=2, **OPTIONS)
    for name, rank in RANKS.items():
        sent = played.sent("down", name)
        assert [each.payload_bytes for each in sent] == 2 * [adapters(rank) + HEAD]


def test_a_round_makes_the_loss_smaller(played: Played) -> None:
    assert played.loss(played.server.model) < played.loss(played.before) - 0.02


def test_the_classifier_is_the_mean_by_samples(played: Played) -> None:
    last = played.network.of("up")[-len(SAMPLES) :]
    found = trainable_state(played.server.model)
    for name in ("head.classifier.weight", "head.classifier.bias"):
        values = [each.tensors[name].double().numpy() for each in last]
        counts = [SAMPLES[each.sender] for each in last]
        expected = np.average(values, axis=0, weights=counts)
        np.testing.assert_allclose(found[name].numpy(), expected, rtol=1e-6, atol=1e-9)


def test_clients_train_adapters_of_their_own_rank(played: Played) -> None:
    for name, rank in RANKS.items():
        for each in lora.adapters(played.clients[name].model).values():
            assert each.lora_A.shape == (rank, 16) and each.lora_B.shape == (16, rank)
            assert each.scale == played.config.scale(rank)


def test_least_traffic_is_that_of_the_lowest_rank(played: Played) -> None:
    up, down = played.method.traffic(played.config, played.before)
    assert up == adapters(1) + HEAD
    # FLoRA's first round has no stack.
    assert down == (HEAD if played.method.Server.__module__ == "methods.flora" else up)


@pytest.mark.parametrize("method", METHODS)
def test_a_lost_client_is_left_out(method: str) -> None:
    played = Played(method, rounds=0, **OPTIONS)
    network = Network(dies_after={"client-2": 0})
    played.play(1, network=network)
    assert {each.sender for each in network.of("up")} == {"client-1", "client-3"}
    others = Played(method, rounds=0, **OPTIONS)
    others.play(1, "client-1", "client-3")
    found, expected = (learnt(each.server.model) for each in (played, others))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_round_without_updates_leaves_the_model(method: str) -> None:
    played = Played(method, rounds=1, **OPTIONS)
    before = {n: p.detach().clone() for n, p in played.server.model.named_parameters()}
    played.play(1, network=Network(dies_after=dict.fromkeys(SAMPLES, 0)))
    assert all(torch.equal(p, before[n]) for n, p in played.server.model.named_parameters())


# Which means are those of the products


def errors(method: str, scales: dict[str, float], **options: Any) -> float:
    """How far the new weights are from the mean of the clients' weights, relative to the change."""
    # A full batch at a high rate, so that A moves too.
    fast = {"learning_rate": 0.05, "batch_size": 64, "local_epochs": 6}
    played = Played(method, **fast, **options)
    start, found = weights(played.before), weights(played.server.model)
    change = dense(played.network.of("up"), scales)
    return max(
        float(np.abs(found[path] - start[path] - each).max() / np.abs(each).max())
        for path, each in change.items()
    )


def same(scale: float) -> dict[str, float]:
    return dict.fromkeys(SAMPLES, scale)


def test_the_mean_of_products_is_exact_with_one_a_or_stacked_or_summed_and_else_not() -> None:
    whole = {"ranks": "16,4,1"}
    assert errors("flora", same(2.0), **whole) < 1e-5
    # The server's rank is the layers', so that its own truncation leaves nothing out.
    assert errors("flexlora", {"client-1": 1, "client-2": 4, "client-3": 16}, **whole) < 1e-5
    assert errors("hetlora", same(2.0), **whole) > 0.05
    assert errors("fedpeft", same(1.0), variant="lora") > 0.05


def test_with_ffalora_the_mean_of_products_is_exact() -> None:
    config = fedpeft.Config(variant="ffalora", learning_rate=0.05, local_epochs=6)
    played = Played("fedpeft", variant="ffalora", learning_rate=0.05, local_epochs=6)
    kept = {p: each.lora_A.detach() for p, each in lora.adapters(played.before).items()}
    updates = played.network.of("up")
    found, start = weights(played.server.model), weights(played.before)
    for path, a in kept.items():
        b = np.average(
            [each.tensors[f"{path}.lora_B"].double().numpy() @ a.double().numpy()
             for each in updates],
            axis=0,
            weights=[SAMPLES[each.sender] for each in updates],
        )  # fmt: skip
        np.testing.assert_allclose(found[path] - start[path], b, rtol=1e-4, atol=1e-7)
        assert np.abs(b).max() > 0.01
    assert config.lora_alpha / config.rank == 1


# Ranks


def test_ranks_are_dealt_out_in_turn() -> None:
    config = low_rank.Options(ranks="16,8,4")
    assert [config.rank_of(number) for number in range(1, 6)] == [16, 8, 4, 16, 8]
    assert config.rank_of("client-12") == 4 and config.highest == 16
    assert low_rank.Options(ranks=3).rank_of("client-9") == 3


def test_an_adapters_scale_is_one_for_all_ranks_or_lora_alphas() -> None:
    assert [low_rank.Options().scale(rank) for rank in (1, 16)] == [2, 2]
    assert [low_rank.Options(lora_alpha=8).scale(rank) for rank in (2, 16)] == [4, 0.5]
    assert methods.load("flexlora").Config().scale(8) == 2


@pytest.mark.parametrize("width", [2, 5, 8])
def test_padding_undoes_cutting_whatever_the_layers_width(width: int) -> None:
    """Also where a layer is as wide as its rank, so that A and B have one shape."""
    generator = torch.Generator().manual_seed(0)
    state = {
        "query.lora_A": torch.rand(5, width, generator=generator),
        "query.lora_B": torch.rand(width, 5, generator=generator),
        "classifier": torch.rand(5, 5, generator=generator),
    }
    part = low_rank.first(state, 2)
    assert part["query.lora_A"].shape == (2, width) and part["query.lora_B"].shape == (width, 2)
    assert part["classifier"] is state["classifier"]
    whole = low_rank.padded(part, 5)
    assert torch.equal(whole["query.lora_A"][:2], state["query.lora_A"][:2])
    assert torch.equal(whole["query.lora_B"][:, :2], state["query.lora_B"][:, :2])
    assert not whole["query.lora_A"][2:].any() and not whole["query.lora_B"][:, 2:].any()
    assert {name: each.shape for name, each in whole.items()} == {
        name: each.shape for name, each in state.items()
    }


@pytest.mark.parametrize("method", METHODS)
def test_operations_are_the_mean_over_the_ranks(method: str) -> None:
    of = methods.load(method)
    image = torch.zeros(1, *SHAPE)

    def counted(ranks: str) -> float:
        config = of.Config(ranks=ranks, local_epochs=3)
        model = of.adapt(config, VisionTransformer(SPEC, CLASSES))
        before = [each.shape for each in model.parameters()]
        found: float = of.client_flops(config, model, image)
        assert [each.shape for each in model.parameters()] == before
        return found

    assert counted("8,8,2") == (2 * counted("8") + counted("2")) / 3
    model = fedpeft.adapt(fedpeft.Config(rank=8), VisionTransformer(SPEC, CLASSES))
    assert counted("8") == 3 * flops.step(model, image, model)


# Refusals


def refusal(method: str, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        FineTuning(RunConfig(method=method, options=options), clients=3)
    return str(caught.value)


@pytest.mark.parametrize("method", METHODS)
def test_a_rank_larger_than_the_matrix_is_refused_before_the_start(method: str) -> None:
    assert refusal(method, ranks="128,4") == (
        f"method {method} cannot train model vit-glyphs: ranks = '128,4': "
        "blocks.0.attention.query is a matrix of 96 x 96, whose rank is at most 96; take at most "
        "that"
    )
    FineTuning(RunConfig(method=method, options={"ranks": "96,4"}), clients=3)


@pytest.mark.parametrize("method", ["fedpeft", "kdfft"])
def test_so_is_the_one_rank_of_all(method: str) -> None:
    assert "rank = 97: blocks.0.attention.query is a matrix of 96 x 96" in refusal(method, rank=97)
    FineTuning(RunConfig(method=method, options={"rank": 96}), clients=3)


@pytest.mark.parametrize("ranks", ["", "a", "4,,2", "0,4", "4,2.5", 4.5, "-1", 0, "1025"])
def test_ranks_that_are_none_are_refused(ranks: float | str) -> None:
    expected = f"ranks = {ranks!r}: must be whole numbers from 1 to 1024, such as 16,8,4"
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert({"ranks": ranks}, methods.load("flora").Config)
    assert expected in str(caught.value)


def test_an_all_reduce_takes_ffalora_and_none_of_different_ranks() -> None:
    for method in METHODS:
        with pytest.raises(ConfigError, match=f"a round of method {method} is no mean of weights"):
            FineTuning(RunConfig(method=method, transport="gloo"), clients=3)
    FineTuning(RunConfig(transport="gloo", options={"variant": "ffalora"}), clients=3)


def test_answers_come_in_the_order_of_the_clients_numbers_and_without_the_missed() -> None:
    names = ("client-10", "client-9", "client-2", "client-1")
    here = {name: asyncio.Event() for name in names}

    async def ask(client: str) -> low_rank.Update:
        if client == "client-1":
            raise Missed("gone")
        following = names[names.index(client) + 1]
        here[client].set()
        if following != "client-1":
            await here[following].wait()
        return {}

    fleet = SimpleNamespace(clients=names)
    found = asyncio.run(low_rank.answers(fleet, ask))  # type: ignore[arg-type]
    assert list(found) == ["client-2", "client-9", "client-10"]
