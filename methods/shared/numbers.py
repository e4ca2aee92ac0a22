"""Numbers in a row, as an option gives them: 64,32,16."""

from testbed.units import whole


def whole_numbers(given: float | str) -> list[int]:
    """The numbers between commas; empty where one of them is no whole number, or below 0."""
    found = [whole(part.strip()) for part in str(given).split(",")]
    return [number for number in found if number is not None] if None not in found else []
