"""Instructions with one right answer each, drawn: families of small tasks on letters or numbers."""

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


FAMILIES: dict[str, Callable[[random.Random], Example]] = {
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


def draw(family: str, count: int, seed: int, without: Collection[Example] = ()) -> list[Example]:
    """``count`` examples of a family, none of ``without``, the same for the same arguments.

    ValueError where there is hardly any other.
    """
    rng = random.Random(f"{seed} {family}")
    found: list[Example] = []
    for _ in range(MOST_DRAWS * count):
        if len(found) == count:
            break
        example = FAMILIES[family](rng)
        if example not in without:
            found.append(example)
    if len(found) < count:
        raise ValueError(f"family {family} has hardly an example beside the {len(without)} taken")
    return found
