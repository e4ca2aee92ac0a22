"""Optimizers of torch without its compiler, whose import takes most of a second."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

_HIDDEN = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
"""What torch hides from its compiler, and imports the compiler to hide it from."""
_BREAKS = "_use_grad"
"""The name of torch's function around a step, which imports the compiler to break its graph."""


def without_compiler() -> None:
    """Take off of torch's optimizers what is there for its compiler; nothing here is compiled.

    For a process that has made no optimizer yet. Where torch has other names for it, all stays.
    """
    for name in _HIDDEN:
        method = getattr(Optimizer, name)
        setattr(Optimizer, name, getattr(method, "__wrapped__", method))
    for kind in vars(torch.optim).values():
        step = vars(kind).get("step") if isinstance(kind, type) else None
        if step is not None and step.__code__.co_name == _BREAKS:
            setattr(kind, "step", _eager(step.__wrapped__))  # noqa: B010


def _eager(step: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(step)
    def eager(self: Optimizer, *arguments: Any, **named: Any) -> Any:
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return step(self, *arguments, **named)

    return eager
