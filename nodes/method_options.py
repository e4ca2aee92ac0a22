"""Options of a run's method: what was given, and for the rest the defaults of its kind of task."""

from typing import Any

import methods
from nodes.workload.dataset import TEXTS
from testbed.run.config import RunConfig, convert


def of(config: RunConfig, method: methods.Method) -> Any:
    """The method's Config.

    Raises:
        ConfigError: naming the option, the value and what would be right.
    """
    given = config.options
    if config.dataset in TEXTS:
        given = {**method.on_text(given), **given}
    return convert(given, method.Config, f"options of method {config.method}")
