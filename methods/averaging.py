"""The weighted mean of updates, taken one at a time as they arrive."""

from collections.abc import Mapping

import torch
from torch import Tensor


class WeightedMean:
    """sum(weight * tensor) / sum(weight), by name; memory does not grow with the clients.

    Sums are float64, so that the order of arrival does not show in a float32 result.
    """

    def __init__(self) -> None:
        self.weight = 0.0
        self._sums: dict[str, Tensor] = {}
        self._dtypes: dict[str, torch.dtype] = {}

    def add(self, tensors: Mapping[str, Tensor], weight: float) -> None:
        """Take one update. All must have the same names and shapes."""
        if not self._sums:
            self._dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
            self._sums = {
                name: torch.zeros_like(tensor, dtype=torch.float64)
                for name, tensor in tensors.items()
            }
        for name, total in self._sums.items():
            total.add_(tensors[name], alpha=weight)
        self.weight += weight

    def result(self) -> dict[str, Tensor]:
        """The mean, in the dtypes of the first update; empty where nothing was taken."""
        return {
            name: (total / self.weight).to(self._dtypes[name]) for name, total in self._sums.items()
        }
