"""Metrics of a model, as a record has them: numbers by name; which of them leads, and to where."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import NamedTuple

from testbed.units import decimal

LARGEST = 1e300
"""A number that a page can still draw: the difference of two such is a float too."""
MOST_WHOLE = 1e6
"""Numbers from here on are told with an exponent."""
LOWER = ("loss", "perplexity")
"""Metrics, by how their names end, of which less is better; of all others more is."""
SHARES = ("accuracy", "exact_match")
"""Likewise those that are at most 1."""
OWN = "client_"
"""Before a metric's name where it is the mean over clients of their own models'."""
SCORES = ("accuracy", "loss", "perplexity", "exact_match")
"""Metrics that a model's evaluation gives at once; methods have others, some after a round."""
LEADING = ("exact_match", "perplexity", "accuracy")
"""What a run is shown and compared by, the first that it has: text has perplexity, and an exact
match where answers alone count; images have neither."""

Metrics = Mapping[str, float | None]


class Target(NamedTuple):
    """A metric that is to be reached."""

    metric: str
    value: float

    def reached_by(self, value: float | None) -> bool:
        return value is not None and sign(self.metric) * (value - self.value) >= 0

    def __str__(self) -> str:
        return f"{self.metric}={self.value:.12g}"


def target(text: str) -> Target:
    """The target that "perplexity=20" says. ValueError, with what would be right, for another."""
    metric, equals, number = (part.strip() for part in text.partition("="))
    if not equals or not metric or not number:
        raise ValueError("write METRIC=VALUE, such as accuracy=0.9 or perplexity=20")
    if not metric.replace("_", "a").isalnum():
        raise ValueError(f"a metric's name has letters, digits and _, and not {metric!r}")
    if (meant := _meant(metric)) is not None:
        raise ValueError(f"no metric is called {metric}: did you mean {meant}?")
    if (value := decimal(number)) is None:
        raise ValueError(f"{number!r} is no number; write METRIC=VALUE")
    if not abs(value) <= LARGEST:
        raise ValueError(f"{number}: must be a finite number")
    if metric.endswith(SHARES) and not 0 < value <= 1:
        raise ValueError(f"{metric} is a share: must be above 0, and at most 1")
    if metric.endswith("perplexity") and value <= 1:
        raise ValueError(f"{metric} must be above 1, which only a model that is always right has")
    if metric.endswith("loss") and value <= 0:
        raise ValueError(f"{metric} must be above 0, which only a model that is always right has")
    return Target(metric, value)


def _meant(name: str) -> str | None:
    """The usual metric that a name misspells; None where it is one, or a method's own.

    A name that has a usual one in it, such as "accuracy_of_five", may well be a method's own.
    """
    usual = [f"{whose}{each}" for whose in ("", OWN) for each in SCORES]
    if any(each in name for each in usual):
        return None
    return next(iter(get_close_matches(name.lower(), usual, n=1, cutoff=0.8)), None)


def sign(name: str) -> int:
    """1 where more of a metric is better, -1 where less is."""
    return -1 if name.endswith(LOWER) else 1


def leading(found: Iterable[Metrics]) -> str:
    """The metric that a run with these, before and after its rounds, is shown and compared by."""
    names = {name.removeprefix(OWN) for each in found for name in each}
    return next((name for name in LEADING if name in names), "accuracy")


def value(metrics: Metrics, name: str) -> float | None:
    """The server's model's, or the mean of the clients' where each has its own."""
    return metrics.get(name, metrics.get(OWN + name))


def best(values: Iterable[float | None], name: str) -> float | None:
    """The best of a metric's values, of those that are numbers."""
    there = [each for each in values if each is not None and not math.isnan(each)]
    return max(there, key=lambda each: sign(name) * each, default=None)


def words(name: str) -> str:
    """ "exact match" """
    return name.replace("_", " ")


def one_of(name: str) -> str:
    """ "an accuracy" """
    return f"{'an' if name[0] in 'aeiou' else 'a'} {words(name)}"


def metric(value: float | None) -> str:
    """ "0.912", "2.06e+06"; None, as a record has it, is a metric that is no finite number."""
    if value is None:
        return "no number"
    # A perplexity may have hundreds of figures.
    return f"{value:.3f}" if abs(value) < MOST_WHOLE else f"{value:.3g}"
