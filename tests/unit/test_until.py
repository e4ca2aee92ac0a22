"""Waits of tests: they end with what they wait for, and with who is to bring it."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

LONG_S = 600.0
"""Nobody waits it out."""
CODE = "import sys; print('error: it went wrong', flush=True); sys.exit(3)"


@pytest.fixture
def failing() -> subprocess.Popen[str]:
    """One that ends soon, with words."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen([sys.executable, "-c", CODE], text=True, **pipes)


def test_a_wait_ends_with_who_is_waited_for(
    until: Callable[..., Any], failing: subprocess.Popen[str]
) -> None:
    told = "ended with 3, and not a round: error: it went wrong"
    with pytest.raises(AssertionError, match=told):
        until(lambda: False, "a round", LONG_S, failing)


def test_what_came_before_the_end_is_found(
    until: Callable[..., Any], failing: subprocess.Popen[str]
) -> None:
    failing.communicate()
    assert until(lambda: ["a round"], "a round", LONG_S, failing) == ["a round"]
