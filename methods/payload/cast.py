"""Casts of values to a float type of two bytes, which fp16 and bf16 share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from methods import payload
from methods.payload import QUANTISE, Part


class Cast:
    """A stage that sends values as ``dtype``, 2 n bytes; what is beyond it as its largest."""

    order = QUANTISE
    lossy = True
    dtype: torch.dtype

    def __init__(self, options: payload.Lossy) -> None:
        self.options = options

    def parts(self, shape: Sequence[int]) -> dict[str, Part]:
        return {"cast": Part(self.dtype, math.prod(shape))}

    def encode(self, values: Tensor, seed: int, memory: dict[str, Tensor]) -> dict[str, Tensor]:
        flat, largest = values.reshape(-1), torch.finfo(self.dtype).max
        found = flat.to(self.dtype)
        least, greatest = found.aminmax()
        # Infinity stays what it is: who takes it is to see that training has failed.
        if not (-largest <= least and greatest <= largest):
            inside = flat.clamp(-largest, largest)
            found = torch.where(flat.isinf(), flat, inside).to(self.dtype)
        return {"cast": found}

    def decode(self, parts: Mapping[str, Tensor], shape: Sequence[int], seed: int) -> Tensor:
        return parts["cast"].float().view(tuple(shape))
