"""Options of methods with few of all that they repeat, for tests of what is sent and not learnt."""

from collections.abc import Mapping
from typing import Any

import msgspec

import methods

MOST = {
    **{"local_epochs": 1, "first_epochs": 2, "cluster_epochs": 1, "distill_epochs": 1},
    **{"student_epochs": 1, "server_epochs": 2, "iterations": 3, "local_steps": 3, "steps": 5},
    **{"match_steps": 2, "unrolled_steps": 2, "align_steps": 3},
}


def options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What is given, and of what is not at most so many."""
    usual = methods.load(name).Config()
    found = {
        field: most
        for field, most in MOST.items()
        if isinstance(value := getattr(usual, field, None), int) and value > most
    }
    found |= given
    if "local_steps" in found and "local_epochs" not in given:
        found.pop("local_epochs", None)
    return found


def config(name: str, given: Mapping[str, Any]) -> Any:
    """The method's Config of these."""
    return msgspec.convert(options(name, given), methods.load(name).Config)
