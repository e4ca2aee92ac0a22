"""FLoRA: the stack against numpy's sum, one base everywhere, and who lacks a part of it."""

import numpy as np
import pytest
import torch
from in_process import Network
from made_low_rank import HEAD, LAYERS, OPTIONS, RANKS, SPEC, Played, adapters, dense, weights

from methods import flora
from methods.peft import lora

DENSE = LAYERS * 4 * SPEC.width * SPEC.width
"""Bytes of the adapted layers' weights."""
SCALES = dict.fromkeys(RANKS, 2.0)


def bases(played: Played) -> list[dict[str, torch.Tensor]]:
    nodes = (played.server, *played.clients.values())
    return [{n: each.clone() for n, each in flora.base(node.model).items()} for node in nodes]


def down(played: Played, client: str) -> list[tuple[str, int]]:
    return [(each.kind, each.payload_bytes) for each in played.sent("down", client)]


@pytest.mark.parametrize("scale", [{}, {"lora_alpha": 4.0}])
def test_the_base_gets_the_mean_of_the_products(scale: dict[str, float]) -> None:
    """Also where ranks have scales of their own."""
    played = Played("flora", **OPTIONS, **scale)
    own = {name: 4 / rank for name, rank in RANKS.items()} if scale else SCALES
    start, found = weights(played.before), weights(played.server.model)
    for path, change in dense(played.network.of("up"), own).items():
        np.testing.assert_allclose(found[path] - start[path], change, atol=1e-6)
        assert np.abs(change).max() > 1e-3


def test_what_comes_down_is_the_stack_of_all_ranks() -> None:
    played = Played("flora", rounds=3, **OPTIONS)
    assert adapters(5 + 3 + 1) == LAYERS * 4 * 9 * (16 + 16)
    for name in RANKS:
        stack = ("stack", adapters(5 + 3 + 1))
        assert down(played, name) == [("head", HEAD), *2 * [("head", HEAD), stack]]


def test_every_base_is_the_servers_of_the_round_before_to_the_last_bit() -> None:
    played = Played("flora", rounds=2, **OPTIONS)
    server = bases(played)[0]
    played.play(1)
    for own in bases(played)[1:]:
        assert all(torch.equal(own[name], server[name]) for name in server)


def test_adapters_start_anew_in_each_round_and_apart() -> None:
    played = Played("flora", rounds=1, **OPTIONS | {"optimizer": "sgd", "learning_rate": 1e-9})
    one, other = (
        next(iter(lora.adapters(played.clients[name].model).values())).lora_A.detach().clone()
        for name in ("client-1", "client-2")
    )
    assert not torch.allclose(one[:3], other)
    played.play(1)
    again = next(iter(lora.adapters(played.clients["client-1"].model).values()))
    assert not torch.allclose(again.lora_A, one, atol=1e-3)
    assert bool((again.lora_B.abs() < 1e-6).all())


def test_a_client_that_missed_a_round_gets_the_weights_and_then_stacks_again() -> None:
    played = Played("flora", rounds=1, **OPTIONS)
    played.play(1, "client-1", "client-2")
    assert down(played, "client-1")[1] == ("stack", adapters(9))
    server = bases(played)[0]
    played.play(1)
    assert down(played, "client-1")[1] == ("stack", adapters(8))
    assert down(played, "client-3") == [("head", HEAD), ("weights", DENSE)]
    for own in bases(played)[1:]:
        assert all(torch.equal(own[name], server[name]) for name in server)
    played.play(1)
    assert down(played, "client-3")[1] == ("stack", adapters(9))


@pytest.mark.thorough
def test_who_first_takes_part_in_the_second_round_gets_the_first_stack() -> None:
    played = Played("flora", rounds=0, **OPTIONS)
    played.play(1, "client-1", "client-2")
    played.play(1)
    assert down(played, "client-3")[1] == ("stack", adapters(8))
    played.play(1, "client-1")
    played.play(1)
    assert down(played, "client-3")[1] == ("weights", DENSE)


def test_a_stack_that_is_told_twice_is_merged_once() -> None:
    played = Played("flora", rounds=1, **OPTIONS)
    # All get the stack, and nobody's answer arrives: the server cannot know that they have it.
    played.play(1, network=Network(dies_after=dict.fromkeys(RANKS, 0)))
    server = bases(played)[0]
    assert all(own.version == 1 for own in played.clients.values())
    played.play(1)
    assert down(played, "client-1")[1] == ("stack", adapters(9))
    for own in bases(played)[1:]:
        assert all(torch.equal(own[name], server[name]) for name in server)


@pytest.mark.thorough
def test_after_a_round_that_changed_nothing_who_has_all_gets_no_base() -> None:
    played = Played("flora", rounds=2, **OPTIONS)
    played.play(1, network=Network(dies_after={"client-1": 1, "client-2": 0, "client-3": 0}))
    assert played.server.version == 3
    played.server.versions["client-1"] = 3
    played.play(1)
    assert down(played, "client-1") == [("head", HEAD)]


@pytest.mark.thorough
def test_downlink_least_sends_the_weights_once_the_stack_is_more() -> None:
    # 9 rows of 16 + 16 are more than 16 x 16.
    assert adapters(9) > DENSE > adapters(7)
    for ranks, sent in (("5,3,1", ("weights", DENSE)), ("4,2,1", ("stack", adapters(7)))):
        played = Played("flora", rounds=2, **OPTIONS | {"ranks": ranks, "downlink": "least"})
        assert down(played, "client-2") == [("head", HEAD), ("head", HEAD), sent]
        server = bases(played)[0]
        played.play(1)
        assert all(torch.equal(bases(played)[1][name], server[name]) for name in server)


@pytest.mark.thorough
def test_both_ways_of_the_downlink_give_one_model() -> None:
    one, other = (
        Played("flora", rounds=3, **OPTIONS | {"downlink": downlink})
        for downlink in ("stack", "least")
    )
    ours, theirs = (dict(each.server.model.named_parameters()) for each in (one, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
