"""Sizes as people write them."""

import pytest

from testbed.units import byte_count, whole


@pytest.mark.parametrize(("text", "size"), [("500MB", 500_000_000), ("1.5k", 1500), ("7", 7)])
def test_a_size_is_read(text: str, size: int) -> None:
    assert byte_count(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1", "1e3", "nan", "9" * 5000])
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="such as 500MB"):
        byte_count(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("0", 0), ("007", 7), ("-1", None), ("1.0", None), ("", None), ("\u0663", None)),
        *(("9" * 18, 10**18 - 1), ("9" * 19, None), ("9" * 5000, None)),
    ],
)
def test_a_whole_number_is_digits_that_python_reads(text: str, number: int | None) -> None:
    assert whole(text) == number
