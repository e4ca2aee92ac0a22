"""Options of methods at both ends of the numbers that models are computed in."""

from typing import Any

import pytest

import methods
from nodes import method_options
from testbed.config_error import ConfigError
from testbed.run.config import RunConfig


def of(**options: Any) -> Any:
    return method_options.of(RunConfig(method="fedavg", options=options), methods.load("fedavg"))


@pytest.mark.parametrize("value", [1e308, 1e39, 1e19, 1e-45, 1e-320])
def test_what_float32_does_not_hold_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=r"learning_rate = [0-9.]*e.*: must be what float32"):
        of(learning_rate=value)


@pytest.mark.parametrize("value", [1e18, 1e-3, 2e-38])
def test_what_it_holds_is_taken(value: float) -> None:
    assert of(learning_rate=value).learning_rate == value


def test_nothing_is_held_too() -> None:
    assert of(weight_decay=0.0).weight_decay == 0
