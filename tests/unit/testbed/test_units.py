"""Sizes as people write them."""

import math

import pytest

from testbed.units import byte_count, decimal, whole


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


@pytest.mark.parametrize(
    "text", ["", "1_0", "٣", "１", "²", "0x10", "1e", "1,5", "--1", "1 0", "\u0131nf"]
)
def test_what_is_no_number_in_ascii_digits_is_none(text: str) -> None:
    assert (whole(text), decimal(text)) == (None, None)


def test_other_numbers_are_read_and_ranges_are_their_readers() -> None:
    read = [decimal(text) for text in ("7", " .5", "-2.", "1E-3", "inf", "9" * 5000)]
    assert read == [7, 0.5, -2, 0.001, math.inf, math.inf]
    assert math.isnan(decimal("nan") or 0.0)
