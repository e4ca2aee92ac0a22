"""Checks of arrived tensors: names, shapes, dtypes, finite values, and what a method asks."""

from collections.abc import Mapping

import torch
from torch import Tensor

from methods import Accept


def difference(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> str | None:
    """The difference that keeps ``tensors`` from standing in for ``like``, or None."""
    if tensors.keys() != like.keys():
        odd = sorted(tensors.keys() ^ like.keys())
        return f"tensors differ in {odd[0]!r} and {len(odd) - 1} more names"
    for name, expected in like.items():
        tensor = tensors[name]
        if tensor.shape != expected.shape or tensor.dtype != expected.dtype:
            return (
                f"{name} is {tensor.dtype}{list(tensor.shape)}, "
                f"expected {expected.dtype}{list(expected.shape)}"
            )
    return infinite(tensors)


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
