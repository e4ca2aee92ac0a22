"""Text as sequences of ids: packed to one length, or an example each whose answers are learnt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nodes.workload.text.tokens import Segment

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
    stream = _stream(documents, end)
    count = max(0, len(stream) - 1) // length
    ids = stream[: count * length + 1]
    return Sequences(ids[:-1].reshape(count, length), ids[1:].reshape(count, length))


def packed_whole(documents: Iterable[Sequence[int]], length: int, end: int) -> Sequences:
    """Documents as `packed` has them, and the last piece padded with ``end``: no id is lost."""
    stream = _stream(documents, end)
    count = -(-max(0, len(stream) - 1) // length)
    inputs = np.full(count * length, end)
    targets = np.full(count * length, IGNORED)
    inputs[: len(stream)] = stream[: len(inputs)]
    targets[: max(0, len(stream) - 1)] = stream[1:]
    return Sequences(inputs.reshape(count, length), targets.reshape(count, length))


def _stream(documents: Iterable[Sequence[int]], end: int) -> NDArray[np.int64]:
    parts = [np.array([*document, end], np.int64) for document in documents]
    return np.concatenate([*parts, np.empty(0, np.int64)])


class Example(NamedTuple):
    """An example's ids, not yet padded."""

    ids: NDArray[np.int64]
    """(tokens,), at most one more than a sequence has."""
    learnt: NDArray[np.bool_]
    """(tokens,): which of them a model should say."""
    is_truncated: bool


def example(parts: Sequence[Segment], length: int) -> Example | None:
    """Segments in a row, cut at their end for sequences of ``length``.

    None: nothing of it is learnt, or nothing is left of what is.
    """
    ids = [number for part in parts for number in part.ids]
    learnt = [part.learnt for part in parts for _ in part.ids]
    # The first id has nothing before it to be told from.
    if not any(learnt[1 : length + 1]):
        return None
    return Example(
        np.array(ids[: length + 1], np.int64),
        np.array(learnt[: length + 1], np.bool_),
        len(ids) > length + 1,
    )


def padded(examples: Sequence[Example], length: int, end: int) -> Sequences:
    """An example a sequence: shorter ones are followed by ``end``, which is not learnt."""
    inputs = np.full((len(examples), length), end)
    targets = np.full((len(examples), length), IGNORED)
    for row, each in enumerate(examples):
        read = each.ids[:length]
        inputs[row, : len(read)] = read
        targets[row, : len(each.ids) - 1] = np.where(each.learnt, each.ids, IGNORED)[1:]
    return Sequences(inputs, targets)


def merged(examples: Iterable[Example], length: int) -> list[Example]:
    """Examples one after another, as many as fit whole into each sequence of ``length``.

    One reads those before it as if they were its own beginning.
    """
    found: list[Example] = []
    for each in examples:
        if found and len(found[-1].ids) + len(each.ids) <= length + 1:
            last = found[-1]
            # What begins an example is no answer to the one before.
            learnt = each.learnt.copy()
            learnt[0] = False
            found[-1] = Example(
                np.concatenate([last.ids, each.ids]),
                np.concatenate([last.learnt, learnt]),
                last.is_truncated or each.is_truncated,
            )
        else:
            found.append(each)
    return found
