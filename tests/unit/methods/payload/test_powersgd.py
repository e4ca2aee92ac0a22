"""PowerSGD: products of low rank, against the best there are and what they take."""

import math
from itertools import pairwise

import pytest
import torch
from made_stages import SHIPPED, byte_count, encoded, error_share, gaussian, through

from methods.payload import VALUES, load


@pytest.mark.parametrize("shape", [(), (1,), (500,), (1, 500), (500, 1), (16, 16), (2, 3, 4)])
def test_what_saves_less_than_half_goes_out_as_it_is(shape: tuple[int, ...]) -> None:
    stage, values = load("powersgd"), gaussian(*shape)
    assert byte_count(stage, shape) == 4 * math.prod(shape)
    assert torch.equal(through(stage, values), values)


def test_half_is_not_less_than_half() -> None:
    # 2 * 4 * (16 + 16) = 16 * 16.
    assert byte_count(load("powersgd:rank=4"), (16, 16)) == 4 * 16 * 16
    assert byte_count(load("powersgd:rank=4"), (16, 17)) == 4 * 4 * 33


def test_bytes_of_the_shipped_model() -> None:
    """Its 26 matrices by their sizes, and all else as it is."""
    attention, perceptron = 16 * (96 + 96), 16 * (96 + 192)
    matrices = 4 * (4 * attention + 2 * perceptron) + 16 * (96 + 16) + 16 * (10 + 96)
    assert byte_count(load("powersgd"), *SHIPPED) == matrices + 4 * 6_250 == 114_504


@pytest.mark.parametrize("scale", [1e-36, 1e-6, 1.0, 1e36])
def test_a_matrix_of_that_rank_arrives_whole(scale: float) -> None:
    values = gaussian(40, 4) @ gaussian(4, 50, seed=3) * scale
    assert error_share(values, through(load("powersgd:rank=4"), values)) < 1e-10


@pytest.mark.parametrize("seed", range(20))
def test_the_largest_floats_arrive_finite(seed: int) -> None:
    """Where the product is larger than they are, and where parts of it are."""
    signs, most = gaussian(40, 50, seed=seed).sign(), torch.finfo(torch.float32).max
    for values in (most * signs, most * torch.ones(40, 50), most * signs[:, :1] * signs[:1]):
        found = through(load("powersgd"), values, seed)
        assert found.isfinite().all() and error_share(values, found) < 1


def test_the_error_is_less_than_the_matrix_and_comes_down_to_the_best() -> None:
    values, stage, memory = gaussian(40, 50), load("powersgd:rank=4"), {}
    singular = torch.linalg.svdvals(values.double()).square()
    best = float(singular[4:].sum() / singular.sum())
    errors = [error_share(values, through(stage, values, seed, memory)) for seed in range(60)]
    assert errors[0] < 1
    assert all(later < earlier + 1e-6 for earlier, later in pairwise(errors))
    assert errors[-1] == pytest.approx(best, rel=1e-2)
    # Without what was kept no message is better than the first.
    assert error_share(values, through(stage, values, 59)) > 1.05 * best


def test_q_of_the_last_message_is_not_written_over() -> None:
    stage, memory = load("powersgd"), {}
    encoded(stage, gaussian(40, 50), memory=memory)
    kept, before = memory["q"], memory["q"].clone()
    encoded(stage, gaussian(40, 50, seed=2), memory=dict(memory))
    assert memory["q"] is kept and torch.equal(kept, before)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf, -math.inf])
def test_what_is_kept_outlasts_an_update_that_says_nothing(value: float) -> None:
    stage, memory = load("powersgd"), {}
    encoded(stage, gaussian(40, 50), memory=memory)
    before = memory["q"].clone()
    encoded(stage, torch.full((40, 50), value), memory=memory)
    assert torch.equal(memory["q"], before)


def test_the_first_q_is_of_the_seed() -> None:
    stage, values = load("powersgd"), gaussian(40, 50)
    one, other = through(stage, values, seed=1), through(stage, values, seed=2)
    assert torch.equal(one, through(stage, values, seed=1)) and not torch.equal(one, other)


def test_a_quantiser_after_it_takes_p_and_q_alike() -> None:
    values = gaussian(40, 4) @ gaussian(4, 50, seed=3) * 1e-4
    stage, int8 = load("powersgd:rank=4"), load("int8")
    parts = encoded(stage, values)
    coarse = through(int8, parts[VALUES])
    p, q = parts[VALUES].split([160, 200])
    assert float(p.abs().amax()) == pytest.approx(float(q.abs().amax()), rel=1e-5)
    assert error_share(values, stage.decode({VALUES: coarse}, values.shape, 0)) < 1e-2


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_reaches_no_decomposition(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch.linalg, "qr")
    values, stage = gaussian(40, 50), load("powersgd")
    values[7, 9] = value
    assert encoded(stage, values)[VALUES].isnan().all()
    assert through(stage, values).isnan().all()


def test_feedback_is_the_default() -> None:
    assert load("powersgd").options.feedback
    assert not load("powersgd:feedback=false").options.feedback
