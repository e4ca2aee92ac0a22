"""Confidence intervals of shares: 99 % of binomial draws, and of a chain's losses."""

import math

from testbed.network.direction import GilbertElliott

CONFIDENCE = 0.99
Z = 2.5758293
"""A normal variable stays within this many standard deviations with that probability."""


def binomial(trials: int, chance: float) -> tuple[int, int]:
    """The central range that holds a binomial count with ``CONFIDENCE``, ends included."""
    if chance <= 0 or chance >= 1:
        sure = 0 if chance <= 0 else trials
        return sure, sure
    tail = (1 - CONFIDENCE) / 2
    spread = 12 * math.sqrt(trials * chance * (1 - chance)) + 20
    # Nothing below this adds to a sum of doubles.
    count = max(0, math.floor(trials * chance - spread))
    summed, low = 0.0, None
    while count < trials:
        summed += _probability(trials, chance, count)
        if low is None and summed >= tail:
            low = count
        if summed >= 1 - tail:
            break
        count += 1
    return (count if low is None else low), count


def _probability(trials: int, chance: float, count: int) -> float:
    logarithm = (
        math.lgamma(trials + 1)
        - math.lgamma(count + 1)
        - math.lgamma(trials - count + 1)
        + count * math.log(chance)
        + (trials - count) * math.log1p(-chance)
    )
    return math.exp(logarithm)


def chain(trials: int, loss: GilbertElliott) -> tuple[float, float]:
    """The range that holds the count of a Gilbert-Elliott chain's losses with ``CONFIDENCE``.

    The chain's states are correlated by ``1 - p - r`` a step, which inflates the variance of
    independent losses by ``2 * g * b * (loss_b - loss_g)^2 * c / (1 - c)`` a packet, with g and b
    the shares of the states and c that correlation. A normal approximation: ask ``bursts`` first.
    """
    p, r = loss.good_to_bad_percent / 100, loss.bad_to_good_percent / 100
    mean = loss.mean_loss_percent / 100
    bad = p / (p + r)
    apart = (loss.bad_loss_percent - loss.good_loss_percent) / 100
    correlation = 1 - p - r
    shared = 2 * bad * (1 - bad) * apart**2 * correlation / (p + r)
    spread = Z * math.sqrt(trials * max(0.0, mean * (1 - mean) + shared))
    return trials * mean - spread, trials * mean + spread


def bursts(trials: int, loss: GilbertElliott) -> float:
    """How often the chain is expected to enter its bad state."""
    p, r = loss.good_to_bad_percent / 100, loss.bad_to_good_percent / 100
    return trials * p * r / (p + r)
