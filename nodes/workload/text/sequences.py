"""Text as sequences of ids: packed to one length, or an example each whose answer is learnt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

IGNORED = -100
"""A target that no loss and no metric counts: padding, and what a user says."""


class Sequences(NamedTuple):
    """Ids that a model reads, and those that it should read next."""

    inputs: NDArray[np.int64]
    """(n, length)."""
    targets: NDArray[np.int64]
    """(n, length), IGNORED where nothing is asked."""

    def first(self, count: int) -> Sequences:
        return Sequences(self.inputs[:count], self.targets[:count])

    @staticmethod
    def joined(parts: Sequence[Sequences]) -> Sequences:
        return Sequences(
            np.concatenate([part.inputs for part in parts]),
            np.concatenate([part.targets for part in parts]),
        )


def packed(documents: Iterable[Sequence[int]], length: int, end: int) -> Sequences:
    """Documents one after another, ``end`` after each, cut into sequences of ``length``.

    The last piece is left out where it is shorter: n may be 0.
    """
    stream = [number for document in documents for number in (*document, end)]
    count = max(0, len(stream) - 1) // length
    ids = np.array(stream[: count * length + 1], np.int64)
    return Sequences(ids[:-1].reshape(count, length), ids[1:].reshape(count, length))


class Examples(NamedTuple):
    """Examples as sequences, and how many were too long to be whole."""

    sequences: Sequences
    truncated: int


def answered(
    examples: Iterable[tuple[Sequence[int], Sequence[int]]], length: int, end: int
) -> Examples:
    """An example a row: what is asked, then the answer and ``end``, which alone are learnt.

    One that is too long is cut at its end; where nothing is left to learn of it, it is left out.
    Shorter ones are padded with ``end``.
    """
    inputs, targets, truncated = [], [], 0
    for prompt, answer in examples:
        ids = [*prompt, *answer, end]
        truncated += len(ids) > length + 1
        asked = len(prompt) - 1
        ids = ids[: length + 1]
        if len(ids) <= len(prompt):
            continue
        padding = length + 1 - len(ids)
        following = [IGNORED] * asked + ids[asked + 1 :]
        inputs.append((ids + [end] * padding)[:length])
        targets.append((following + [IGNORED] * padding)[:length])
    return Examples(
        Sequences(
            np.array(inputs, np.int64).reshape(-1, length),
            np.array(targets, np.int64).reshape(-1, length),
        ),
        truncated,
    )
