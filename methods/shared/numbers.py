"""Numbers in a row, as an option gives them: 64,32,16."""


def whole_numbers(given: float | str) -> list[int]:
    """The numbers between commas; empty where one of them is no whole number, or below 0."""
    parts = str(given).split(",")
    return [int(part) for part in parts] if all(part.strip().isdecimal() for part in parts) else []
