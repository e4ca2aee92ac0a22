"""The level without privacy: what the others are held against, and do not change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from methods import Fleet, Shard
from methods.shared.averaging import WeightedMean
from methods.shared.local_training import train

if TYPE_CHECKING:
    from methods.fedavg import Config
    from testbed.transport.wire import Message


class Mean(Protocol):
    """The mean of a round's updates, as they come."""

    def add(self, tensors: Mapping[str, Tensor], weight: float) -> None: ...

    def result(self) -> dict[str, Tensor]:
        """The new weights; empty: the old ones stay."""


class ServerSide:
    def __init__(self, config: Config, seed: int) -> None:
        self.config = config
        self.generator = torch.Generator().manual_seed(seed)

    def mean(self, start: Mapping[str, Tensor], fleet: Fleet) -> Mean | None:
        return WeightedMean()

    def take(self, update: Message, fleet: Fleet) -> bool:
        return True

    def metrics(self) -> dict[str, float]:
        return {}


class ClientSide:
    def __init__(self, config: Config, samples: int) -> None:
        self.config = config
        self.details: dict[str, float] = {}

    def train(
        self,
        model: nn.Module,
        shard: Shard,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        epochs: int,
    ) -> None:
        train(
            model,
            shard,
            optimizer,
            epochs=epochs,
            batch_size=self.config.batch_size,
            generator=generator,
            steps=self.config.local_steps,
        )

    def outgoing(self, start: Mapping[str, Tensor], end: dict[str, Tensor]) -> dict[str, Tensor]:
        return end
