"""Splits of a training set by index: what is held out of it before clients get theirs."""

from __future__ import annotations

from collections.abc import Sequence

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


def left(samples: int, local_test: float | None) -> int:
    """How many of its samples a client trains on where that share is held back: at least 1."""
    if local_test is None:
        return samples
    return max(1, min(samples - 1, samples - round(local_test * samples)))


def local_tests(
    parts: Sequence[NDArray[np.int64]], share: float | None, *, seed: int
) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """Clients' samples, at least 2 each, as those to train on and random ones to test on.

    ``share``: of each client's, and at least 1; None: none.
    """
    if share is None:
        return list(parts), [part[:0] for part in parts]
    train, test = [], []
    for client, part in enumerate(parts, start=1):
        order = np.random.default_rng(derive(seed, "local test", client)).permutation(part)
        count = left(len(part), share)
        train.append(np.sort(order[:count]))
        test.append(np.sort(order[count:]))
    return train, test


def hold_out(samples: int, held: int, *, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sorted indices of ``held`` random ones of ``samples``, and of all the others.

    ValueError where there are not so many.
    """
    if held > samples:
        raise ValueError(f"{held} public images cannot be held out of {samples}")
    order = np.random.default_rng(derive(seed, "held out", held)).permutation(samples)
    return np.sort(order[:held]), np.sort(order[held:])
