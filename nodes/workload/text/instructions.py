"""Instructions with one right answer each, drawn: families of small tasks on letters or numbers."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Example(NamedTuple):
    """What a user asks, and what is to be answered."""

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


def draw(family: str, count: int, seed: int) -> list[Example]:
    """``count`` examples of a family, the same for the same arguments."""
    rng = random.Random(f"{seed} {family}")
    return [FAMILIES[family](rng) for _ in range(count)]
