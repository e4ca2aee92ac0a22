"""Checks of arrived tensors: names, shapes, dtypes, finite values, and what a method asks."""

from collections.abc import Mapping

import torch
from torch import Tensor

from methods import Accept
from methods.shared import layout


def difference(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> str | None:
    """The difference that keeps ``tensors`` from standing in for ``like``, or None."""
    return layout.difference(tensors, like) or infinite(tensors)


def infinite(tensors: Mapping[str, Tensor]) -> str | None:
    """The tensor that holds values that are not finite, or None."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return f"{name} holds values that are not finite"
    return None


def objection(
    tensors: Mapping[str, Tensor], like: Mapping[str, Tensor] | None, accept: Accept | None
) -> str | None:
    """Why a method cannot take these tensors, or None."""
    reason = infinite(tensors) if like is None else difference(tensors, like)
    if reason is None and accept is not None:
        try:
            accept(tensors)
        except ValueError as error:
            return str(error)
    return reason
