"""Numbers as people read and write them."""

import math
import re

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(|k|K|M|G|T)B?")
_DECIMAL = re.compile(
    r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|[+-]?(?:inf|nan)", re.I | re.A
)
_POWERS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
MOST_DIGITS = 18
"""Of a whole number that somebody types: more than any here needs. int() refuses thousands of
digits with an error of its own."""


def whole(text: str) -> int | None:
    """The whole number that these digits are, or None."""
    decimal = text.isascii() and text.isdecimal() and len(text) <= MOST_DIGITS
    return int(text) if decimal else None


def decimal(text: str) -> float | None:
    """The number that a text from outside is, which may be infinite or none (nan); None: none."""
    text = text.strip()
    return float(text) if _DECIMAL.fullmatch(text) else None


def byte_count(text: str) -> int:
    """Bytes of a size such as ``500MB``, by powers of 1,000. Raises ValueError where it is none."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r}: must be a size such as 500MB")
    size = float(found[1]) * _POWERS[found[2]]
    if math.isinf(size):
        raise ValueError(f"a size of {len(text)} letters: must be one such as 500MB")
    return round(size)


def human_seconds(seconds: float) -> str:
    """ "3.2 s", "12 min", "4.1 h" """
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
