"""ConfigError: what was asked for cannot be run; and how a wrong name is worded."""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

MOST_LETTERS = 300
"""Of what a refusal quotes."""
MOST_REFUSAL = 4000
"""Letters of a whole one: the longest lists of what is known fit, and no file's content."""


class ConfigError(ValueError):
    """Refused before anything starts; the text names the field, the value and what is right."""


class Unwritten(ConfigError):
    """A result for which there is no room or no right, known once it is written; a command's exit
    status tells it from a refusal."""


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """A ValueError from within becomes a ConfigError that begins with ``what``."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"{what}: {error}") from error


def closest(wrong: str, known: Iterable[str]) -> str:
    """``: did you mean ...?`` or nothing; a key without its unit finds the one with it."""
    names, low = list(known), wrong.lower()
    stem = low.split("_")[0]
    inside = [name for name in names if stem and stem in name]
    begin = [name for name in inside if name.startswith(stem)]
    close = get_close_matches(low, names, n=3, cutoff=0.6)
    best = list(dict.fromkeys([*begin, *close, *inside]))[:3]
    return f": did you mean {' or '.join(best)}?" if best else ""


def refuse_unknown(prefix: str, table: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse the first key of a TOML table that is not one of ``known``."""
    names = list(known)
    for key, value in table.items():
        if key not in names:
            raise ConfigError(
                f"{prefix}{key} = {value!r}: is no key here{closest(key, names) or '.'} "
                f"It is one of {', '.join(names)}"
            )


def in_words(error: BaseException) -> str:
    """The text of an error for people: the system's without its number."""
    return re.sub(r"^\[Errno -?\d+\] ", "", str(error))


def known_or_named(error: BaseException) -> str:
    """The same of one that nobody expected, with its kind where its text is not for people."""
    if isinstance(error, OSError | ConfigError):
        return in_words(error)
    return f"{type(error).__name__}: {error}"


def excerpt(error: object) -> str:
    """The text of an error that may quote a file, in one line: all of a short one, or its ends."""
    return shortened(" ".join(str(error).split()), MOST_LETTERS)


def shortened(text: str, most: int) -> str:
    """All of a text of at most so many letters, or its ends."""
    half = most // 2
    return text if len(text) <= most else f"{text[:half]} ... {text[-half:]}"
