"""DP-FedAvg: McMahan et al., Learning Differentially Private Recurrent Language Models, ICLR 2018.

Round t, with m clients asked and d_k what client k would change, over all that is trained:

    w_{t+1} = w_t + (sum_k d_k * min(1, clip / |d_k|) + Normal(0, (noise * clip)^2)) / m.

The paper's estimator with a fixed denominator, every client of weight one: who does not answer
counts as no change. Clients clip, and the server clips again what it was sent. Whoever sees the
models, but no single update, learns no more of a client's updates than epsilon allows. Its taking
part is not hidden: the noise's deviation, noise * clip / m, tells m, and neighbours are two runs
of the same m in which a client's updates are there or count as no change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from methods import Fleet
from methods.privacy import none
from methods.privacy.budget import Budget

if TYPE_CHECKING:
    from methods.fedavg import Config


class ServerSide(none.ServerSide):
    """Adds the noise and keeps the account, of each round by the share that it drew."""

    def __init__(self, config: Config, seed: int) -> None:
        super().__init__(config, seed)
        self.budget: Budget | None = None

    def mean(self, start: Mapping[str, Tensor], fleet: Fleet) -> none.Mean | None:
        asked = len(fleet.clients)
        if not asked:
            return None
        rate = fleet.sampling_rate
        if self.budget is None:
            self.budget = Budget(self.config, rate)
        if not self.budget.spend(rate):
            return None
        return NoisyMean(start, self.config.dp_clip, self.budget.noise, asked, self.generator)

    def metrics(self) -> dict[str, float]:
        return {"epsilon": self.budget.epsilon if self.budget else 0.0}


class ClientSide(none.ClientSide):
    def outgoing(self, start: Mapping[str, Tensor], end: dict[str, Tensor]) -> dict[str, Tensor]:
        change = clipped_change(start, end, self.config.dp_clip)
        return {name: (start[name] + each).to(end[name].dtype) for name, each in change.items()}


class NoisyMean:
    """The mean of updates that count alike, each clipped; memory does not grow with the clients."""

    def __init__(
        self,
        start: Mapping[str, Tensor],
        clip: float,
        noise: float,
        expected: int,
        generator: torch.Generator,
    ) -> None:
        """``expected``: the denominator, however many updates come."""
        self._start = start
        self._clip = clip
        self._deviation = noise * clip
        self._expected = expected
        self._generator = generator
        self._sums = {
            name: torch.zeros_like(each, dtype=torch.float64) for name, each in start.items()
        }

    def add(self, tensors: Mapping[str, Tensor], weight: float) -> None:
        """Take one update; its weight does not count."""
        for name, change in clipped_change(self._start, tensors, self._clip).items():
            self._sums[name] += change

    def result(self) -> dict[str, Tensor]:
        """The new weights; noise is drawn anew at each call."""
        return {name: self._noisy(start, self._sums[name]) for name, start in self._start.items()}

    def _noisy(self, start: Tensor, total: Tensor) -> Tensor:
        drawn = torch.randn(total.shape, generator=self._generator, dtype=torch.float64)
        return (start + (total + self._deviation * drawn) / self._expected).to(start.dtype)


def clipped_change(
    start: Mapping[str, Tensor], end: Mapping[str, Tensor], clip: float
) -> dict[str, Tensor]:
    """``end - start`` by name, float64, scaled so that its L2 norm is at most ``clip``."""
    # In float64 the square of no finite float32 overflows.
    change = {name: end[name].double() - each.double() for name, each in start.items()}
    norm = torch.stack([each.square().sum() for each in change.values()]).sum().sqrt()
    scale = (clip / norm).clamp(max=1)
    return {name: each * scale for name, each in change.items()}
