"""Numbers as people read them."""

LARGEST = 1e300
"""A number that a page can still draw: the difference of two such is a float too."""


def human_seconds(seconds: float) -> str:
    """ "3.2 s", "12 min", "4.1 h" """
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def metric(value: float | None) -> str:
    """ "0.912"; None, as a record has it, is a metric that is not one finite number."""
    return "no number" if value is None else f"{value:.3f}"
