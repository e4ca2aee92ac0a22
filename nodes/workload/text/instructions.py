"""Instructions with one right answer each, drawn: families of small tasks on letters or numbers.

The shipped model was pretrained on some families, which it answers, and is fine-tuned on others.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from typing import NamedTuple

MOST_DRAWS = 1_000
"""For one example that is not taken."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Example(NamedTuple):
    """Prompt of a user, and the one right answer."""

    prompt: str
    answer: str


def _letters(rng: random.Random) -> list[str]:
    return rng.choices(LETTERS, k=rng.randint(3, 6))


def _numbers(rng: random.Random) -> list[int]:
    return rng.choices(range(100), k=rng.randint(3, 5))


def _reverse(rng: random.Random) -> Example:
    drawn = _letters(rng)
    return Example(f"Reverse: {' '.join(drawn)}", " ".join(reversed(drawn)))


def _sort(rng: random.Random) -> Example:
    drawn = _letters(rng)
    return Example(f"Sort: {' '.join(drawn)}", " ".join(sorted(drawn)))


def _upper(rng: random.Random) -> Example:
    drawn = _letters(rng)
    return Example(f"Write in capitals: {' '.join(drawn)}", " ".join(drawn).upper())


def _count(rng: random.Random) -> Example:
    drawn = _letters(rng)
    return Example(f"How many letters: {' '.join(drawn)}", str(len(drawn)))


def _first(rng: random.Random) -> Example:
    drawn = _letters(rng)
    return Example(f"First letter: {' '.join(drawn)}", drawn[0])


def _last(rng: random.Random) -> Example:
    drawn = _letters(rng)
    return Example(f"Last letter: {' '.join(drawn)}", drawn[-1])


def _add(rng: random.Random) -> Example:
    one, other = rng.randrange(10), rng.randrange(10)
    return Example(f"Add: {one} + {other}", str(one + other))


def _compare(rng: random.Random) -> Example:
    one, other = rng.sample(range(100), 2)
    return Example(f"Which is larger: {one} or {other}", str(max(one, other)))


def _largest(rng: random.Random) -> Example:
    drawn = _numbers(rng)
    return Example(f"Largest of: {' '.join(map(str, drawn))}", str(max(drawn)))


def _next(rng: random.Random) -> Example:
    at = rng.randrange(len(LETTERS) - 1)
    return Example(f"Letter after: {LETTERS[at]}", LETTERS[at + 1])


def _repeat(rng: random.Random) -> Example:
    drawn = _letters(rng)
    return Example(f"Repeat: {' '.join(drawn)}", " ".join(drawn))


def _second(rng: random.Random) -> Example:
    drawn = _letters(rng)
    return Example(f"Second letter: {' '.join(drawn)}", drawn[1])


def _rest(rng: random.Random) -> Example:
    drawn = _letters(rng)
    return Example(f"All but the first: {' '.join(drawn)}", " ".join(drawn[1:]))


def _begin(rng: random.Random) -> Example:
    drawn = _letters(rng)
    return Example(f"All but the last: {' '.join(drawn)}", " ".join(drawn[:-1]))


def _ends(rng: random.Random) -> Example:
    drawn = _letters(rng)
    return Example(f"First and last: {' '.join(drawn)}", f"{drawn[0]} {drawn[-1]}")


def _downwards(rng: random.Random) -> Example:
    drawn = _letters(rng)
    return Example(f"Sort downwards: {' '.join(drawn)}", " ".join(sorted(drawn, reverse=True)))


def _capital(rng: random.Random) -> Example:
    drawn = _letters(rng)
    return Example(f"First in capitals: {' '.join(drawn)}", drawn[0].upper())


def _within(rng: random.Random) -> Example:
    asked, drawn = rng.choice(LETTERS), _letters(rng)
    return Example(f"Is {asked} in: {' '.join(drawn)}", "yes" if asked in drawn else "no")


def _smaller(rng: random.Random) -> Example:
    one, other = rng.sample(range(100), 2)
    return Example(f"Which is smaller: {one} or {other}", str(min(one, other)))


def _subtract(rng: random.Random) -> Example:
    less, more = sorted(rng.choices(range(10), k=2))
    return Example(f"Subtract: {more} - {less}", str(more - less))


PRETRAINED: dict[str, Callable[[random.Random], Example]] = {
    "reverse": _reverse,
    "sort": _sort,
    "upper": _upper,
    "count": _count,
    "first": _first,
    "last": _last,
    "add": _add,
    "compare": _compare,
    "largest": _largest,
    "next": _next,
}
"""Those that the shipped model was pretrained on."""
FAMILIES: dict[str, Callable[[random.Random], Example]] = {
    "repeat": _repeat,
    "second": _second,
    "rest": _rest,
    "begin": _begin,
    "ends": _ends,
    "downwards": _downwards,
    "capital": _capital,
    "within": _within,
    "smaller": _smaller,
    "subtract": _subtract,
}
"""Those of the data set."""


def draw(family: str, count: int, seed: int, without: Collection[Example] = ()) -> list[Example]:
    """``count`` examples of a family, none of ``without``, the same for the same arguments.

    ValueError where there is hardly any other.
    """
    rng, drawn = random.Random(f"{seed} {family}"), (PRETRAINED | FAMILIES)[family]
    found: list[Example] = []
    for _ in range(MOST_DRAWS * count):
        if len(found) == count:
            break
        example = drawn(rng)
        if example not in without:
            found.append(example)
    if len(found) < count:
        raise ValueError(f"family {family} has hardly an example beside the {len(without)} taken")
    return found
