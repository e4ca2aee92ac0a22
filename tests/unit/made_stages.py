"""Tensors through a payload stage, for tests of one stage; ``test_stages`` holds all of them."""

from typing import Any

import torch
from torch import Tensor

from nodes.workload.models import skeleton

SEED = 17
SHIPPED = [tuple(each.shape) for each in skeleton("vit-glyphs", classes=10).parameters()]
"""Shapes of the shipped model's tensors: 303,658 values."""


def gaussian(*shape: int, seed: int = SEED) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def encoded(
    stage: Any, values: Tensor, seed: int = SEED, memory: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    parts: dict[str, Tensor] = stage.encode(values, seed, {} if memory is None else memory)
    return parts


def through(
    stage: Any, values: Tensor, seed: int = SEED, memory: dict[str, Tensor] | None = None
) -> Tensor:
    found: Tensor = stage.decode(encoded(stage, values, seed, memory), values.shape, seed)
    return found


def byte_count(stage: Any, *shapes: tuple[int, ...]) -> int:
    """Bytes of all parts of tensors of these shapes; the most, where they are not exact."""
    parts = [part for shape in shapes for part in stage.parts(shape).values()]
    return sum(part.length * part.dtype.itemsize for part in parts)


def error_share(values: Tensor, found: Tensor) -> float:
    """Squared error, of the squares' sum."""
    return float((found.double() - values.double()).square().sum() / values.double().square().sum())
