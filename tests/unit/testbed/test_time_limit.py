"""Limit of computing: it holds in what goes on after an error, too."""

import contextlib

import pytest

from testbed import time_limit
from testbed.time_limit import TooLong


def test_what_takes_no_heed_of_an_error_ends_all_the_same() -> None:
    """As a template's compiler, which tries what is constant and takes any error for a no."""
    with pytest.raises(TooLong), time_limit.computing(0.05):
        with contextlib.suppress(TooLong):
            _compute()
        _compute()


def _compute() -> None:
    for _ in range(100_000_000):
        pass
