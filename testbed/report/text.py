"""Text for people: what comes from outside made visible, long lists cut."""

import re
from collections.abc import Sequence

FEW = 5

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""What a terminal obeys, what turns the order of letters, and halves of letters; not line ends."""
_BREAKS = {"\t": r"\t", "\n": r"\n"}


def visible(text: str) -> str:
    r"""The text with such characters as a string literal has them: "\x1b", "\u202e"."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """The text visible, and in one line whatever is in it."""
    return "".join(_BREAKS.get(each, each) for each in visible(text))


def few(names: Sequence[str]) -> str:
    """ "a, b, c, d, e and 2 more" """
    more = f" and {len(names) - FEW} more" if len(names) > FEW else ""
    return ", ".join(names[:FEW]) + more


def counted(amount: int, noun: str) -> str:
    """ "1 round", "1,200 rounds" """
    return f"{amount:,} {noun}{'' if amount == 1 else 's'}"


def shortened(text: str, most: int) -> str:
    """ "python3 -m htt…" """
    return text if len(text) <= most else f"{text[: most - 1]}…"


def ranges(numbers: Sequence[int]) -> str:
    """Ranges: [1, 2, 3, 5] to "1-3, 5"."""
    parts: list[list[int]] = []
    for each in numbers:
        if parts and parts[-1][1] == each - 1:
            parts[-1][1] = each
        else:
            parts.append([each, each])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in parts) or "none"
