"""Loss models: their order of draws as netem's, their mean and the length of their bursts."""

import itertools
from random import Random

import pytest

from testbed.links.queueing.losses import lost_by
from testbed.network.direction import Direction, GilbertElliott


class Drawn(Random):
    """Draws what it is told to."""

    def __init__(self, *draws: float) -> None:
        super().__init__()
        self.draws = list(draws)

    def random(self) -> float:
        return self.draws.pop(0)


def chain(p: float, r: float, **losses: float) -> Direction:
    fields = {"good_to_bad_percent": p, "bad_to_good_percent": r, **losses}
    return Direction(gilbert_elliott=GilbertElliott(**fields))


def losses(direction: Direction, count: int, seed: int) -> list[bool]:
    lost = lost_by(direction, Random(seed))
    assert lost is not None
    return [lost() for _ in range(count)]


def test_without_loss_there_is_no_model():
    assert lost_by(Direction(rate_kbit=1, delay_ms=1), Random(1)) is None


def test_an_outage_loses_all_whatever_else_is_asked():
    assert losses(Direction(outage=True, loss_percent=1), 100, 1) == [True] * 100


def test_independent_losses_have_their_share_and_no_memory():
    found = losses(Direction(loss_percent=10), 100_000, 1)
    # Standard deviations of 95 and 30.
    assert sum(found) == pytest.approx(10_000, abs=300)
    pairs = sum(one and other for one, other in itertools.pairwise(found))
    assert pairs == pytest.approx(1000, abs=110)


def test_the_state_before_the_step_decides_as_in_netem():
    """loss_gilb_ell: at each packet first the draw for the next state, then that for its loss."""
    draws = Drawn(
        *(0.4, 0.1),  # Good, goes to bad; kept, for 0.1 is above good_loss.
        *(0.9, 0.7),  # Bad, stays; lost.
        *(0.2, 0.7),  # Bad, goes to good; lost all the same.
        *(0.6, 0.7),  # Good, stays; kept.
        *(0.6, 0.04),  # Good, stays; lost.
        *(0.4, 0.7),  # Good, goes to bad.
        *(0.9, 0.8),  # Bad, stays; kept.
    )
    lost = lost_by(chain(50, 30, bad_loss_percent=75, good_loss_percent=5), draws)
    assert lost is not None
    assert [lost() for _ in range(7)] == [False, True, True, False, True, False, False]
    assert draws.draws == []


def test_bursts_have_the_mean_and_the_length_of_the_chain():
    direction = chain(1, 25)
    found = losses(direction, 200_000, 2)
    # p/(p+r), with a standard deviation of 0.0011: neighbours are alike.
    assert sum(found) / len(found) == pytest.approx(1 / 26, abs=0.004)
    assert direction.mean_loss_percent == pytest.approx(100 / 26)
    lengths = [len(list(run)) for lost, run in itertools.groupby(found) if lost]
    # 1/r packets, with a standard deviation of 0.08; memoryless.
    assert sum(lengths) / len(lengths) == pytest.approx(4, abs=0.3)
    assert lengths.count(1) / len(lengths) == pytest.approx(0.25, abs=0.04)


def test_losses_in_both_states_follow_an_independent_chain():
    p, r, bad, good = 0.05, 0.2, 0.6, 0.01
    found = losses(
        chain(100 * p, 100 * r, bad_loss_percent=100 * bad, good_loss_percent=100 * good),
        200_000,
        3,
    )
    # Chances of (state, lost) carried forward by the chain's matrix, from the stationary state.
    stationary = r / (p + r), p / (p + r)
    mean = stationary[0] * good + stationary[1] * bad
    after = (
        stationary[0] * good * (1 - p) + stationary[1] * bad * r,
        stationary[0] * good * p + stationary[1] * bad * (1 - r),
    )
    both = after[0] * good + after[1] * bad
    assert sum(found) / len(found) == pytest.approx(mean, abs=0.006)
    pairs = sum(one and other for one, other in itertools.pairwise(found))
    assert pairs / len(found) == pytest.approx(both, abs=0.005)


def test_the_seed_fixes_the_losses():
    direction = chain(5, 20)
    assert losses(direction, 1000, 4) == losses(direction, 1000, 4) != losses(direction, 1000, 5)
