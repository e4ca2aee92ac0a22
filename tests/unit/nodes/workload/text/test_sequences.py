"""Packing of documents, and answers that alone are learnt."""

import numpy as np
import pytest

from nodes.workload.text import instructions
from nodes.workload.text.sequences import IGNORED, answered, packed


def test_documents_follow_one_another_with_an_end_between() -> None:
    found = packed([[1, 2, 3], [4], [5, 6, 7, 8]], length=3, end=0)
    assert found.inputs.tolist() == [[1, 2, 3], [0, 4, 0], [5, 6, 7]]
    assert found.targets.tolist() == [[2, 3, 0], [4, 0, 5], [6, 7, 8]]
    assert packed([[1, 2]], length=3, end=0).inputs.shape == (0, 3)
    assert packed([], length=3, end=0).targets.shape == (0, 3)


def test_a_prompt_is_read_and_its_answer_learnt() -> None:
    found, truncated = answered([([1, 2], [3, 4])], length=6, end=0)
    assert found.inputs.tolist() == [[1, 2, 3, 4, 0, 0]]
    assert found.targets.tolist() == [[IGNORED, 3, 4, 0, IGNORED, IGNORED]]
    assert truncated == 0


def test_what_is_too_long_is_cut_and_told() -> None:
    examples = [([1, 2], [3, 4, 5]), ([1] * 6, [2]), ([1], [2, 3, 4])]
    found, truncated = answered(examples, length=4, end=0)
    assert found.inputs.tolist() == [[1, 2, 3, 4], [1, 2, 3, 4]]
    assert found.targets.tolist() == [[IGNORED, 3, 4, 5], [2, 3, 4, 0]]
    assert truncated == 2


@pytest.mark.parametrize("family", instructions.FAMILIES)
def test_instructions_are_their_seeds_and_none_of_those_taken(family: str) -> None:
    one = instructions.draw(family, 20, seed=3)
    assert one == instructions.draw(family, 20, seed=3)
    assert one != instructions.draw(family, 20, seed=4)
    others = instructions.draw(family, 30, seed=4, without=set(one))
    assert len(others) == 30 and not set(one) & set(others)


def test_a_family_that_has_no_other_example_says_so() -> None:
    every = set(instructions.draw("next", 2_000, seed=0))
    assert len(every) == 25
    with pytest.raises(ValueError, match="family next has hardly an example beside the 25 taken"):
        instructions.draw("next", 1, seed=1, without=every)
    assert np.unique([example.prompt for example in every]).size == 25
