"""HetLoRA's padded mean against numpy's, and clients that prune their ranks by themselves."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from in_process import Network
from made_low_rank import HEAD, OPTIONS, RANKS, SAMPLES, Played, adapters

from methods import Peer, hetlora
from methods.peft import lora
from methods.shared.local_training import trainable_state
from nodes.checkpoint import Snapshot


def test_the_mean_is_padded_with_zeros_and_weighted_by_the_products_norms() -> None:
    played = Played("hetlora", rounds=2, **OPTIONS)
    updates = {each.sender: each.tensors for each in played.network.of("up")[-3:]}
    found = trainable_state(played.server.model)
    paths = list(lora.adapters(played.before))

    def norm(name: str) -> float:
        own = {key: each.double().numpy() for key, each in updates[name].items()}
        each = [own[f"{path}.lora_B"] @ own[f"{path}.lora_A"] for path in paths]
        return float(np.linalg.norm(np.concatenate(each)))

    norms = {name: norm(name) for name in updates}
    assert len({round(each, 6) for each in norms.values()}) == 3
    for path in paths:
        for factor, shape in (("lora_A", (5, 16)), ("lora_B", (16, 5))):
            expected = np.zeros(shape)
            for name, own in updates.items():
                each = own[f"{path}.{factor}"].double().numpy()
                expected[: each.shape[0], : each.shape[1]] += norms[name] * each
            expected /= sum(norms.values())
            got = found[f"{path}.{factor}"].numpy()
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-8)


def test_where_no_product_has_a_norm_samples_are_the_weights() -> None:
    played = Played("hetlora", rounds=0, **OPTIONS)
    played.play(0)
    state = trainable_state(played.before)
    # B is zero before it is trained.
    updates = {name: hetlora.first(state, rank) for name, rank in RANKS.items()}
    merged = played.server.merged(updates, SAMPLES)
    for path, each in lora.adapters(played.before).items():
        found, a = merged[f"{path}.lora_A"], each.lora_A.detach()
        shares = {name: count / sum(SAMPLES.values()) for name, count in SAMPLES.items()}
        rows = [sum(shares[n] for n, rank in RANKS.items() if row < rank) for row in range(5)]
        torch.testing.assert_close(found, a * torch.tensor(rows)[:, None])


# Pruning

PRUNING = OPTIONS | {"self_prune": True, "prune_gamma": 0.7, "prune_lambda": 5.0}
"""5, 3 and 1 become 3, 2 and 1."""


@pytest.mark.parametrize(
    ("gamma", "rank", "left"), [(0.99, 8, 7), (0.99, 100, 99), (0.99, 1, 1), (0.3, 2, 1)]
)
def test_a_pruning_leaves_a_share_of_the_rank_and_at_least_one(
    gamma: float, rank: int, left: int
) -> None:
    assert hetlora.Config(prune_gamma=gamma).pruned(rank) == left


def pruned() -> Played:
    """After a round, in which B was zero at first and nobody pruned, and one in which all did."""
    return Played("hetlora", rounds=2, **PRUNING, learning_rate=0.02)


def test_who_has_pruned_sends_and_gets_less_from_then_on() -> None:
    played = pruned()
    assert played.server.ranks == {"client-1": 3, "client-2": 2, "client-3": 1}
    for name, (whole, left) in {"client-1": (5, 3), "client-2": (3, 2), "client-3": (1, 1)}.items():
        up = [each.payload_bytes for each in played.sent("up", name) if each.kind == "adapter"]
        down = [each.payload_bytes for each in played.sent("down", name) if each.kind == "adapter"]
        assert up == [adapters(whole) + HEAD, adapters(left) + HEAD]
        assert down == 2 * [adapters(whole) + HEAD]
        ranks = [each for each in played.sent("up", name) if each.kind == "rank"]
        assert [each.details["rank"] for each in ranks] == [whole, left]
        assert [each.payload_bytes for each in ranks] == [0, 0]
    played.play(1, "client-1")
    rank, adapter = played.sent("down", "client-1")
    assert rank.details["rank"] == 3 and adapter.payload_bytes == adapters(3) + HEAD


def test_what_was_pruned_stays_zero_and_is_not_trained() -> None:
    played = pruned()
    left = played.server.ranks["client-1"]
    assert left < 5
    played.play(1, "client-1")
    for each in lora.adapters(played.clients["client-1"].model).values():
        assert each.lora_A[:left].any() and each.lora_B[:, :left].any()
        assert not each.lora_A[left:].any() and not each.lora_B[:, left:].any()


def test_nobody_prunes_what_has_grown() -> None:
    played = Played("hetlora", rounds=2, **PRUNING | {"prune_lambda": 0.0})
    assert played.server.ranks == RANKS


def test_the_penalty_is_the_norms_of_what_could_be_pruned() -> None:
    played = Played("hetlora", rounds=1, **PRUNING)
    client = played.clients["client-1"]
    expected = 0.0
    for each in lora.adapters(client.model).values():
        a, b = each.lora_A.detach().numpy(), each.lora_B.detach().numpy()
        expected += float(np.linalg.norm(a[3:5]) * np.linalg.norm(b[:, 3:5]))
    assert float(client.tail(3, 5).detach()) == pytest.approx(expected, rel=1e-5)
    client.tail(3, 5).backward()
    fresh = Played("hetlora", rounds=0, **PRUNING).clients["client-1"]
    # Where B is zero its norm has no slope, and must not give one that is no number.
    fresh.tail(3, 5).backward()
    for each in lora.adapters(fresh.model).values():
        assert each.lora_A.grad.isfinite().all() and each.lora_B.grad.isfinite().all()


@pytest.mark.thorough
def test_a_run_goes_on_with_the_ranks_that_were_pruned() -> None:
    whole, first = pruned(), pruned()
    second = Played("hetlora", rounds=0, **PRUNING, learning_rate=0.02)
    second.done = 2
    for old, new in ((first.server, second.server), *zip(
        first.clients.values(), second.clients.values(), strict=True
    )):  # fmt: skip
        shard = first.parts["client-1"]
        tensors, told = Snapshot(old, first.config, getattr(old, "shard", shard)).take()
        tensors = {name: each.clone() for name, each in tensors.items()}
        Snapshot(new, second.config, getattr(new, "shard", shard)).put(tensors, told)
    whole.play(1)
    second.play(1)
    assert whole.network.payload() == second.network.payload()
    mine, theirs = (trainable_state(each.server.model) for each in (whole, second))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


class Liar(hetlora.Client):
    """Tells a rank that it cannot have."""

    rank_told: Any = 4

    def round(self, peer: Peer) -> None:
        peer.receive("rank", like={})
        start = peer.receive("adapter").tensors
        peer.send("rank", {}, rank=self.rank_told)
        peer.send("adapter", start)


@pytest.mark.parametrize("told", [4, 6, 0, -1, 2.5, "3"])
def test_a_rank_that_is_neither_the_old_nor_the_pruned_one_is_refused(told: Any) -> None:
    played = Played("hetlora", rounds=0, **PRUNING)
    liar = Liar(played.config, copy.deepcopy(played.before), played.parts["client-1"], 0)
    liar.rank_told = told
    played.clients["client-1"] = liar
    network = played.play(1, network=Network())
    ((client, reason),) = network.missed()
    assert client == "client-1"
    assert reason == f"its update was not taken: rank = {told!r}: must be 5, or 3 if pruned"
    assert "client-1" not in played.server.ranks
