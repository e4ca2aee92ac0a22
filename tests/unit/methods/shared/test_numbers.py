"""Numbers in a row, as an option gives them."""

import pytest

from methods.shared.numbers import whole_numbers


@pytest.mark.parametrize(
    ("given", "found"),
    [("64, 32,16", [64, 32, 16]), (8, [8]), ("8,", []), ("8,-1", []), ("8," + "9" * 5000, [])],
)
def test_they_are_whole_or_none_is_taken(given: str | float, found: list[int]) -> None:
    assert whole_numbers(given) == found
