"""Weighted averaging, and the options of local training."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

import msgspec
import torch
from torch import Tensor

from methods.shared.beside import only_with

BY_OTHERS = cast(Any, None)
"""Default of a number that other options decide where it is not given, so that it is never None."""


class Training(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    local_epochs: Annotated[int, msgspec.Meta(ge=1, le=1000), only_with("local_steps", None)] = 2
    """E: passes over a client's samples a round."""
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 16
    """B, samples."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """A client's; its state begins anew each round. sgd has Nesterov momentum 0.9."""
    learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 1e-3
    weight_decay: Annotated[float, msgspec.Meta(ge=0)] = 1e-4
    cosine_rounds: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    """T: rounds over which the learning rate falls by a cosine, one rate a round; absent: never."""
    final_learning_rate: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """With cosine_rounds: where it ends, from round T + 1 on."""

    def __post_init__(self) -> None:
        if self.final_learning_rate and self.cosine_rounds is None:
            raise ValueError(
                f"final_learning_rate = {self.final_learning_rate:g}: the learning rate falls to "
                "it over cosine_rounds, which are not given"
            )

    def round_rate(self, number: int) -> float:
        """The learning rate of a round, from 1."""
        if self.cosine_rounds is None:
            return self.learning_rate
        done = min(1.0, (number - 1) / self.cosine_rounds)
        above = self.learning_rate - self.final_learning_rate
        return self.final_learning_rate + above * (1 + math.cos(math.pi * done)) / 2


class LocalTraining(Training, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Training of a client by itself."""

    local_steps: Annotated[int, msgspec.Meta(ge=1, le=100_000)] | None = None
    """Batches a round, all full, in place of local_epochs: where one epoch ends, another begins."""


class WeightedMean:
    """sum(weight * tensor) / sum(weight), by name, of updates taken one at a time as they arrive.

    Memory does not grow with the clients. Sums are float64, so that the order of arrival does not
    show in a float32 result.
    """

    def __init__(self) -> None:
        self.weight = 0.0
        self._sums: dict[str, Tensor] = {}
        self._dtypes: dict[str, torch.dtype] = {}

    def add(self, tensors: Mapping[str, Tensor], weight: float) -> None:
        """Take one update. All must have the same names and shapes."""
        if not self._sums:
            self._dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
            for name, tensor in tensors.items():
                exact = torch.complex128 if tensor.is_complex() else torch.float64
                self._sums[name] = torch.zeros_like(tensor, dtype=exact)
        for name, total in self._sums.items():
            total.add_(tensors[name], alpha=weight)
        self.weight += weight

    def result(self) -> dict[str, Tensor]:
        """The mean, in the dtypes of the first update, of integers the nearest one.

        Empty where nothing was taken.
        """
        return {
            name: rounded(total / self.weight, self._dtypes[name])
            for name, total in self._sums.items()
        }


def with_unsaid(
    found: dict[str, Tensor], state: Mapping[str, Tensor], sent: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """New weights ``found``, with what payload stages left out as ``state`` was sent as ``sent``.

    Steps too small to be sent at once thereby add up to one that is.
    """
    if sent is state:
        return found
    return {
        name: rounded(each.double() + state[name].double() - sent[name].double(), each.dtype)
        for name, each in found.items()
    }


def rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in this dtype; integers the nearest, where ``to`` would cut the fraction off."""
    if tensor.is_floating_point() and not (dtype.is_floating_point or dtype.is_complex):
        tensor = tensor.round()
    return tensor.to(dtype)
