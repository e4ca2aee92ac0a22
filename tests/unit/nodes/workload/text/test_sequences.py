"""Packing of documents, and answers that alone are learnt."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodes.workload.text import instructions
from nodes.workload.text.sequences import (
    IGNORED,
    Example,
    example,
    merged,
    packed,
    packed_whole,
    padded,
)
from nodes.workload.text.tokens import Segment

END = 1
IDS = st.lists(st.integers(2, 50), max_size=12)
LENGTHS = st.integers(1, 16)
DIALOGUES = st.lists(st.builds(Segment, IDS, st.booleans()), max_size=6)


def pairs(sequences: object) -> list[tuple[int, int]]:
    """Each id that is learnt, after the one before it."""
    inputs, targets = sequences  # type: ignore[misc]
    asked = targets != IGNORED
    return list(zip(inputs[asked].tolist(), targets[asked].tolist(), strict=True))


def test_documents_follow_one_another_with_an_end_between() -> None:
    found = packed([[1, 2, 3], [4], [5, 6, 7, 8]], length=3, end=0)
    assert found.inputs.tolist() == [[1, 2, 3], [0, 4, 0], [5, 6, 7]]
    assert found.targets.tolist() == [[2, 3, 0], [4, 0, 5], [6, 7, 8]]
    assert packed([[1, 2]], length=3, end=0).inputs.shape == (0, 3)
    assert packed([], length=3, end=0).targets.shape == (0, 3)


def test_a_prompt_is_read_and_its_answer_learnt() -> None:
    made = example([Segment([1, 2], False), Segment([3, 4, 0], True)], length=6)
    assert made is not None and not made.is_truncated
    found = padded([made], length=6, end=0)
    assert found.inputs.tolist() == [[1, 2, 3, 4, 0, 0]]
    assert found.targets.tolist() == [[IGNORED, 3, 4, 0, IGNORED, IGNORED]]


@pytest.mark.parametrize("family", [*instructions.PRETRAINED, *instructions.FAMILIES])
def test_instructions_are_their_seeds_and_none_of_those_taken(family: str) -> None:
    one = instructions.draw(family, 20, seed=3)
    assert one == instructions.draw(family, 20, seed=3)
    assert one != instructions.draw(family, 20, seed=4)
    others = instructions.draw(family, 30, seed=4, without=set(one))
    assert len(others) == 30 and not set(one) & set(others)


def test_no_family_of_the_data_set_is_one_that_the_model_was_pretrained_on() -> None:
    known, asked = (
        {example.prompt.partition(":")[0] for family in own for example in draw(family)}
        for own in (instructions.PRETRAINED, instructions.FAMILIES)
    )
    assert not {each for each in asked if not each.startswith("Is ")} & known
    assert len(known) == 10 and len(asked - {e for e in asked if e.startswith("Is ")}) == 9


def draw(family: str) -> list[instructions.Example]:
    return instructions.draw(family, 20, seed=1)


def test_a_family_that_has_no_other_example_says_so() -> None:
    every = set(instructions.draw("next", 2_000, seed=0))
    assert len(every) == 25
    with pytest.raises(ValueError, match="family next has hardly an example beside the 25 taken"):
        instructions.draw("next", 1, seed=1, without=every)
    assert np.unique([example.prompt for example in every]).size == 25


@settings(deadline=None)
@given(st.lists(IDS, max_size=6), LENGTHS)
def test_packing_whole_keeps_every_id_in_order(documents: list[list[int]], length: int) -> None:
    stream = [number for document in documents for number in (*document, END)]
    found = packed_whole(documents, length, END)
    assert pairs(found) == list(itertools.pairwise(stream))
    assert found.inputs.shape == found.targets.shape
    assert found.inputs.shape[1] == length or not len(found.inputs)
    cut = packed(documents, length, END)
    assert len(cut.inputs) == max(0, len(stream) - 1) // length
    assert np.array_equal(cut.inputs, found.inputs[: len(cut.inputs)])
    assert np.array_equal(cut.targets, found.targets[: len(cut.inputs)])


@settings(deadline=None)
@given(DIALOGUES, LENGTHS)
def test_an_example_learns_what_is_learnt_and_lies_within(
    parts: list[Segment], length: int
) -> None:
    flat = [(number, part.learnt) for part in parts for number in part.ids]
    expected = [
        (before, number) for (before, _), (number, learnt) in itertools.pairwise(flat) if learnt
    ]
    within = sum(learnt for _, learnt in flat[1 : length + 1])
    found = example(parts, length)
    assert (found is None) == (within == 0)
    if found is not None:
        assert pairs(padded([found], length, END)) == expected[:within]
        assert found.is_truncated == (len(flat) > length + 1)


@pytest.mark.thorough
@settings(deadline=None)
@given(st.lists(DIALOGUES, max_size=8), LENGTHS)
def test_merged_examples_learn_the_same_in_fewer_sequences(
    dialogues: list[list[Segment]], length: int
) -> None:
    kept = [found for parts in dialogues if (found := example(parts, length)) is not None]
    together = merged(kept, length)
    assert pairs(padded(together, length, END)) == pairs(padded(kept, length, END))
    sizes = [len(each.ids) for each in together]
    assert all(size <= length + 1 for size in sizes)
    assert all(one + len(other.ids) > length + 1 for one, other in firsts(together, kept))


def test_what_begins_an_example_is_no_answer_to_the_one_before() -> None:
    one = example([Segment([5, 6], True)], 4)
    assert one is not None
    (both,) = merged([one, one], 4)
    assert both.ids.tolist() == [5, 6, 5, 6] and both.learnt.tolist() == [True, True, False, True]


def firsts(together: list[Example], kept: list[Example]) -> list[tuple[int, Example]]:
    """The size of each merged sequence, and the example that begins the next."""
    found, at = [], 0
    for each in together[:-1]:
        size = 0
        while size < len(each.ids):
            size += len(kept[at].ids)
            at += 1
        found.append((len(each.ids), kept[at]))
    return found
