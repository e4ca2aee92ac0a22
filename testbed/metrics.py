"""Metrics of a model, as a record has them: finite numbers by name, or null."""

from collections.abc import Mapping

LARGEST = 1e300
"""A number that a page can still draw: the difference of two such is a float too."""


def accuracy(metrics: Mapping[str, float | None]) -> float | None:
    """The server's model's, or the mean of the clients' where each has its own."""
    return metrics.get("accuracy", metrics.get("client_accuracy"))


def metric(value: float | None) -> str:
    """ "0.912"; None, as a record has it, is a metric that is not one finite number."""
    return "no number" if value is None else f"{value:.3f}"
