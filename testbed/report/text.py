"""Text that comes from outside, made visible."""

import re

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""What a terminal obeys, what turns the order of letters, and halves of letters; not line ends."""


def visible(text: str) -> str:
    r"""With such characters as a string literal has them: "\x1b", "\u202e"."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
