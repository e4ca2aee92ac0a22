"""Checks of arrived tensors: names, shapes, dtypes, and finite values."""

from collections.abc import Mapping

import torch
from torch import Tensor


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
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return f"{name} holds values that are not finite"
    return None
