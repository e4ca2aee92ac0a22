"""Metrics that a method gives, as floats; NaN stands for what is not one number of use.

A record has null in its place, for JSON knows no NaN.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from testbed.metrics import LARGEST

Metrics = dict[str, float]


def numbers(found: object) -> Metrics:
    """Each metric by name; a tensor or an array of one element is its number, None no metrics.

    TypeError where ``found`` holds no metrics by name at all.
    """
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise TypeError(f"evaluate must return metrics by name, not {type(found).__name__}")
    return {str(name): _number(value) for name, value in found.items()}


def mean(values: Iterable[float]) -> float:
    """NaN where one of them is, or where their sum is too large for a float."""
    try:
        return statistics.fmean(values)
    except OverflowError:
        return math.nan


def _number(value: Any) -> float:
    if isinstance(value, str | bytes):
        return math.nan
    try:
        number = float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return math.nan
    return number if abs(number) <= LARGEST else math.nan
