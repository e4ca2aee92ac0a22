"""The range of counts that chance allows, against scipy and against a chain that is played out."""

import random

import heavy
import pytest

from testbed.calibration import confidence
from testbed.network.direction import GilbertElliott


@pytest.mark.parametrize("trials", [1, 20, 1000, 10_000, 200_000])
@pytest.mark.parametrize("chance", [0.0002, 0.002, 0.05, 0.5, 0.97])
def test_the_binomial_range_is_scipys(trials: int, chance: float) -> None:
    low, high = heavy.stats.binom.ppf([0.005, 0.995], trials, chance)
    assert confidence.binomial(trials, chance) == (low, high)


def test_what_is_certain_has_no_range() -> None:
    assert confidence.binomial(1000, 0.0) == (0, 0)
    assert confidence.binomial(1000, 1.0) == (1000, 1000)


BURSTS = GilbertElliott(
    good_to_bad_percent=2, bad_to_good_percent=20, bad_loss_percent=60, good_loss_percent=1
)


def losses(chain: GilbertElliott, trials: int, draws: random.Random) -> int:
    bad, lost = False, 0
    for _ in range(trials):
        leave = chain.bad_to_good_percent if bad else chain.good_to_bad_percent
        bad = bad != (100 * draws.random() < leave)
        lost += 100 * draws.random() < (chain.bad_loss_percent if bad else chain.good_loss_percent)
    return lost


def test_a_chains_range_holds_99_of_100_of_its_samples() -> None:
    trials, samples, draws = 1000, 300, random.Random(5)
    low, high = confidence.chain(trials, BURSTS)
    assert (low + high) / 2 == pytest.approx(trials * BURSTS.mean_loss_percent / 100)
    inside = sum(low <= losses(BURSTS, trials, draws) <= high for _ in range(samples))
    assert 0.975 * samples <= inside
    # Independent losses of the same share would scatter half as much.
    narrow = confidence.binomial(trials, BURSTS.mean_loss_percent / 100)
    assert high - low > 1.8 * (narrow[1] - narrow[0])


def test_a_chain_without_memory_scatters_as_independent_losses_do() -> None:
    forgetful = GilbertElliott(good_to_bad_percent=10, bad_to_good_percent=90)
    low, high = confidence.chain(100_000, forgetful)
    assert (low, high) == pytest.approx(confidence.binomial(100_000, 0.1), abs=2)


def test_how_often_a_chain_turns_bad() -> None:
    assert confidence.bursts(1100, BURSTS) == pytest.approx(1100 * 0.02 * 0.2 / 0.22)
