"""Splits of a training set by index: what is held out of it before clients get theirs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from testbed.seeds import derive

TEST_SEED = 1_000_003
"""Draws what must be the same for every seed of a run: test and validation images."""
HELD_SHARE = 5
"""One of so many images is a test image of the digits, or one of the validation split."""


def validation(labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the training images that are held out for tuning, and of those that are left."""
    return stratified(labels, derive(TEST_SEED, "validation images"))


def stratified(
    labels: NDArray[np.int64], stream: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of a fifth of each class, drawn at random, and of the rest, both class by class."""
    shuffled = np.random.default_rng(stream).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    held = np.arange(len(labels)) % HELD_SHARE == 0
    return by_class[held], by_class[~held]


def hold_out(samples: int, held: int, *, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sorted indices of ``held`` random ones of ``samples``, and of all the others.

    ValueError where there are not so many.
    """
    if held > samples:
        raise ValueError(f"{held} public images cannot be held out of {samples}")
    order = np.random.default_rng(derive(seed, "held out", held)).permutation(samples)
    return np.sort(order[:held]), np.sort(order[held:])
