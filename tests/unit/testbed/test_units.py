"""Sizes as people write them."""

import pytest

from testbed.units import byte_count


@pytest.mark.parametrize(("text", "size"), [("500MB", 500_000_000), ("1.5k", 1500), ("7", 7)])
def test_a_size_is_read(text: str, size: int) -> None:
    assert byte_count(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1", "1e3", "nan", "9" * 5000])
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="such as 500MB"):
        byte_count(text)
