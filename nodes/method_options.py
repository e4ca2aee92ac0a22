"""Options of a run's method: what was given, and for the rest the defaults of its kind of task."""

from typing import Any

import methods
from methods.shared.beside import refuse_idle
from nodes.workload.dataset import TEXTS
from testbed.config_error import refusing
from testbed.run.config import RunConfig, convert


def of(config: RunConfig, method: methods.Method) -> Any:
    """The method's Config.

    Raises:
        ConfigError: naming the option, the value and what would be right.
    """
    given = config.options
    on_text = method.on_text(given) if config.dataset in TEXTS else {}
    where = f"options of method {config.method}"
    options = convert({**on_text, **given}, method.Config, where)
    with refusing(where):
        refuse_idle(options, given, on_text)
    return options
