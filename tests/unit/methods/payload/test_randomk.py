"""Random-k: places that both ends draw, and what arrives at them."""

import math

import pytest
import torch
from made_stages import SHIPPED, byte_count, gaussian, through

from methods.payload import load
from testbed.config_error import ConfigError


def test_bytes_of_the_shipped_model() -> None:
    """4 bytes a value: of all at once 1 % is 3,037 values, of each tensor by itself some more."""
    assert byte_count(load("randomk:k=0.01"), (303_658,)) == 4 * 3_037
    kept = sum(-(-math.prod(shape) // 100) for shape in SHIPPED)
    assert byte_count(load("randomk:k=0.01"), *SHIPPED) == 4 * kept == 12_240


def test_what_arrives_is_what_was_there_at_as_many_places() -> None:
    values = gaussian(40, 50)
    found = through(load("randomk:k=0.1"), values)
    taken = found != 0
    assert int(taken.sum()) == 200
    assert torch.equal(found[taken], values[taken])


def test_places_are_of_the_seed() -> None:
    stage, values = load("randomk:k=0.1"), gaussian(40, 50)
    one, other = through(stage, values, seed=1), through(stage, values, seed=2)
    assert torch.equal(one, through(stage, values, seed=1))
    # Of 200 places in 2,000 one draw shares some 20 with another.
    assert 0 < int(((one != 0) & (other != 0)).sum()) < 60


@pytest.mark.thorough
def test_every_place_has_the_same_chance() -> None:
    stage, ones = load("randomk:k=0.25"), torch.ones(8)
    drawn = sum(through(stage, ones, seed=seed) for seed in range(4000))
    assert (drawn - 1000).abs().max() < 5 * math.sqrt(4000 * 0.25 * 0.75)


@pytest.mark.thorough
def test_unbiased_has_the_mean_that_was_meant() -> None:
    stage, values = load("randomk:k=0.25,unbiased=true"), torch.arange(1.0, 9.0)
    mean = sum(through(stage, values, seed=seed) for seed in range(4000)) / 4000
    spread = values * math.sqrt(3 / 4000)
    assert ((mean - values).abs() < 5 * spread).all()


def test_what_is_not_finite_is_told_wherever_it_is() -> None:
    values = torch.ones(1000)
    values[3] = math.inf
    assert through(load("randomk:k=0.001"), values, seed=1).isnan().any()


def test_unbiased_with_feedback_is_refused() -> None:
    with pytest.raises(ConfigError, match="unbiased = true goes with feedback = false alone"):
        load("randomk:unbiased=true,feedback=true")
