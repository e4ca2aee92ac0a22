"""Options of a run's method: what was given, and for the rest the defaults of its kind of task."""

from typing import Any

import msgspec

import methods
from methods.shared.beside import refuse_idle
from nodes.workload.dataset import TEXTS
from testbed.config_error import ConfigError, refusing
from testbed.run.config import RunConfig, convert

LEAST, MOST = 2.0**-126, 2.0**60
"""Of float32's normal numbers the least, and what has a product of two options be one of them, by
ten times as much: an optimizer divides by what is left of its moments' decay."""


def of(config: RunConfig, method: methods.Method) -> Any:
    """The method's Config.

    Raises:
        ConfigError: naming the option, the value and what would be right.
    """
    given = config.options
    on_text = method.on_text(given) if config.dataset in TEXTS else {}
    where = f"options of method {config.method}"
    options = convert({**on_text, **given}, method.Config, where)
    _refuse_beyond_float32(options, where)
    with refusing(where):
        refuse_idle(options, given, on_text)
    return options


def _refuse_beyond_float32(options: Any, where: str) -> None:
    """Models are computed in float32: what it does not hold would be 0 there, or an error."""
    for name, value in msgspec.structs.asdict(options).items():
        if isinstance(value, float) and value and not LEAST <= abs(value) <= MOST:
            raise ConfigError(
                f"{where}: {name} = {value:g}: must be what float32 holds, with products of two, "
                f"from {LEAST:.1e} to {MOST:.1e}"
            )
