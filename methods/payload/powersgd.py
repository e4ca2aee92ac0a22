"""PowerSGD: of each matrix a product P Q^T of low rank, by one step of power iteration.

Vogels et al., NeurIPS 2019 (arXiv 1905.13727). A tensor is a matrix M of m = shape[0] rows and n
columns; P = M Q with the Q of the last message, at first drawn; P is made orthonormal; Q = M^T P.
P and Q go out: 4 r (m + n) bytes at rank r. Tensors of fewer than two dimensions, and those where
2 r (m + n) is not below m n, go out as they are: 4 bytes a value.

The paper averages P over all workers before it is made orthonormal, and then Q; in a star each
client sends its own. Our own is that both are scaled to one largest magnitude, P by s and Q by
1 / s: their product is the same, and a quantiser that comes after takes both alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor

from methods import payload
from methods.payload import SPARSIFY, VALUES, Part

LEAST_SAVING = 2
"""How many times fewer values P and Q must have than their matrix."""
LARGEST = torch.finfo(torch.float32).max


class Options(payload.Lossy, frozen=True, forbid_unknown_fields=True, kw_only=True):
    rank: Annotated[int, Meta(ge=1)] = 4
    """Columns of P and of Q."""
    feedback: bool = True


class Stage:
    order = SPARSIFY
    lossy = True

    def __init__(self, options: Options) -> None:
        self.options = options

    def _matrix(self, shape: Sequence[int]) -> tuple[int, int] | None:
        """Rows and columns of a tensor that goes out as P and Q; None where it does not."""
        if len(shape) < 2:
            return None
        rows, columns = shape[0], math.prod(shape[1:])
        return (rows, columns) if self.options.rank <= highest(shape) else None

    def check(self, shapes: Sequence[Sequence[int]]) -> None:
        if any(self._matrix(shape) for shape in shapes):
            return
        most = max(map(highest, shapes), default=0)
        right = f"take at most {most}" if most else "none would be by any rank; leave the stage out"
        raise ValueError(
            f"rank = {self.options.rank}: no tensor is {LEAST_SAVING} times as many values as its "
            f"P and Q; {right}"
        )

    def parts(self, shape: Sequence[int]) -> dict[str, Part]:
        matrix = self._matrix(shape)
        length = self.options.rank * sum(matrix) if matrix else math.prod(shape)
        return {VALUES: Part(torch.float32, length)}

    def encode(self, values: Tensor, seed: int, memory: dict[str, Tensor]) -> dict[str, Tensor]:
        matrix = self._matrix(values.shape)
        if matrix is None:
            return {VALUES: values.reshape(-1)}
        rows, columns = matrix
        unit, peak = _unit(values.reshape(rows, columns))
        if not math.isfinite(peak):
            # LAPACK would be given it, and the next message's start with it.
            return {VALUES: torch.full((self.options.rank * (rows + columns),), math.nan)}
        start = memory.get("q")
        if start is None or len(start) != columns:
            generator = torch.Generator().manual_seed(seed)
            start = torch.randn(columns, self.options.rank, generator=generator)
        p = torch.linalg.qr(unit @ start).Q
        q, largest_q = _unit(unit.T @ p)
        if q.any():
            memory["q"] = q
        p, largest_p = _unit(p)
        scale = math.sqrt(peak * largest_p * largest_q)
        return {VALUES: torch.cat([p, q]).mul_(scale).reshape(-1)}

    def decode(self, parts: Mapping[str, Tensor], shape: Sequence[int], seed: int) -> Tensor:
        matrix = self._matrix(shape)
        if matrix is None:
            return parts[VALUES].view(tuple(shape))
        p, q = parts[VALUES].view(-1, self.options.rank).split(matrix)
        values: Tensor = p @ q.T
        return values.clamp_(-LARGEST, LARGEST).view(tuple(shape))


def highest(shape: Sequence[int]) -> int:
    """The highest rank at which a tensor goes out as P and Q; 0 where none is."""
    if len(shape) < 2:
        return 0
    rows, columns = shape[0], math.prod(shape[1:])
    return (rows * columns - 1) // (LEAST_SAVING * (rows + columns))


def _unit(matrix: Tensor) -> tuple[Tensor, float]:
    """A matrix by its largest magnitude, so that products with it do not overflow, and that.

    1 where all of it is zero.
    """
    largest = float(matrix.abs().amax()) or 1.0
    return matrix / largest, largest
