"""Dataset: what clients train on and what models are evaluated on, of images or of text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TEXTS = ("docs", "instructions", "text")
"""Names of the data sets of text; the others are images."""


@dataclass(frozen=True)
class Dataset:
    """Samples with their targets.

    Images are float32 (n, channels, height, width) in 0..1, or uint8 in 0..255, a quarter of the
    memory, with labels int64 (n,) in 0..outputs-1. Text is ids int64 (n, tokens), with the ids that
    come next as targets, of the same shape.
    """

    name: str
    outputs: int
    """Classes, or tokens of the vocabulary."""
    train_inputs: NDArray[np.float32] | NDArray[np.uint8] | NDArray[np.int64]
    train_targets: NDArray[np.int64]
    test_inputs: NDArray[np.float32] | NDArray[np.int64]
    """What models are evaluated on: of the test split, or of the validation split."""
    test_targets: NDArray[np.int64]
    groups: NDArray[np.int64] | None = None
    """Whose text each training sample is, (n,); None: images, which go by their classes."""

    @property
    def train_groups(self) -> NDArray[np.int64]:
        """The group of each training sample, (n,), which partitions go by."""
        return self.train_targets if self.groups is None else self.groups
