"""Privacy accounting: what noise costs, by opacus' accountant of Renyi differential privacy.

Mironov, Talwar and Zhang, arXiv 1908.10530: each of ``steps`` steps sees every sample (or client)
with probability ``rate``, independently, and adds Gaussian noise of ``noise`` times the L2 norm
that one of them can have. Two data sets are neighbours where one has one more; with clients, where
one's updates are there or are no change, since how many were asked shows.
"""

from __future__ import annotations

import warnings
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from opacus.accountants.analysis import rdp as analysis

if TYPE_CHECKING:
    from methods.privacy import Options

ORDERS = [
    *(1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 4.5),
    *range(5, 17),
    *(20, 24, 28, 32, 40, 48, 64, 96, 128, 256, 512),
]
"""Of the Renyi divergence. Every one gives a bound, the least of which counts; few that are no
whole number, since those take a hundred times as long."""
PRECISION = 1e-3
"""Of a calibrated noise multiplier, relative."""


class Budget:
    """The privacy that one client, or the run, has spent."""

    def __init__(self, options: Options, rate: float, steps: int = 1) -> None:
        """``steps``: in a round, each at this rate; dp_noise absent is calibrated to them."""
        self.epsilon = 0.0
        if options.dp_noise is not None:
            self.noise = options.dp_noise
        else:
            assert options.dp_epsilon is not None  # Options has one of the two.
            rounds = options.dp_rounds or 1
            self.noise = calibrate(options.dp_epsilon, options.dp_delta, rate, steps * rounds)
        self._options = options
        self._steps: Counter[float] = Counter()

    def spend(self, rate: float, steps: int = 1) -> bool:
        """Pay for so many steps; False, with nothing spent, where that is more than is left."""
        after = self._steps + Counter({rate: steps})
        cost = epsilon(self.noise, self._options.dp_delta, after)
        if self._options.dp_epsilon is not None and cost > self._options.dp_epsilon:
            return False
        self._steps, self.epsilon = after, cost
        return True


def epsilon(noise: float, delta: float, steps: Counter[float]) -> float:
    """Epsilon of all steps together; ``steps``: how many, by their rate."""
    total = sum(count * _divergence(noise, rate) for rate, count in steps.items())
    with warnings.catch_warnings():
        # Where the best order is the first or last, a further one would give a tighter bound.
        warnings.filterwarnings("ignore", message="Optimal order is the")
        found, _ = analysis.get_privacy_spent(orders=ORDERS, rdp=total, delta=delta)
    return max(0.0, float(found))


def calibrate(target: float, delta: float, rate: float, steps: int) -> float:
    """The least noise multiplier, up to PRECISION, with which these steps cost at most ``target``.

    Raises ValueError where not even 1e6 suffices.
    """
    plan = Counter({rate: steps})
    low, high = 0.1, 0.1
    while epsilon(high, delta, plan) > target:
        low, high = high, 2 * high
        if high > 1e6:
            raise ValueError(f"dp_epsilon = {target}: no noise suffices for {steps} steps")
    while high - low > PRECISION * high:
        middle = (low + high) / 2
        if epsilon(middle, delta, plan) > target:
            low = middle
        else:
            high = middle
    return high


@cache
def _divergence(noise: float, rate: float) -> NDArray[np.float64]:
    """Renyi divergence of one step, of each order."""
    return np.asarray(analysis.compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=ORDERS))
