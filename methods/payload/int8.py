"""8-bit quantisation: a whole number from -127 to 127 for each value, and a scale.

The scale is the largest magnitude, which 127 stands for, of the whole tensor or of each of its
rows. n + 4 bytes, or n + 4 for each row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from methods import payload
from methods.payload import QUANTISE, Part

LARGEST = 127


class Options(payload.Lossy, frozen=True, forbid_unknown_fields=True, kw_only=True):
    per: Literal["tensor", "row"] = "tensor"
    """What has a scale of its own; a row is all that has one first index."""


class Stage:
    order = QUANTISE
    lossy = True

    def __init__(self, options: Options) -> None:
        self.options = options

    def _rows(self, shape: Sequence[int]) -> int:
        return shape[0] if self.options.per == "row" and len(shape) > 1 else 1

    def check(self, shapes: Sequence[Sequence[int]]) -> None:
        if self.options.per == "row" and all(self._rows(shape) == 1 for shape in shapes):
            raise ValueError("per = 'row': no tensor has more than one; leave it out")

    def parts(self, shape: Sequence[int]) -> dict[str, Part]:
        scales = Part(torch.float32, self._rows(shape))
        return {"codes": Part(torch.int8, math.prod(shape)), "scales": scales}

    def encode(self, values: Tensor, seed: int, memory: dict[str, Tensor]) -> dict[str, Tensor]:
        rows = values.reshape(self._rows(values.shape), -1)
        scales = rows.abs().amax(dim=1)
        # Zero of zero, and what is not finite, is none: 0 stands for it.
        codes = (rows / scales[:, None]).mul_(LARGEST).round_().nan_to_num_(0).to(torch.int8)
        return {"codes": codes.view(-1), "scales": scales}

    def decode(self, parts: Mapping[str, Tensor], shape: Sequence[int], seed: int) -> Tensor:
        # In this order no product is larger than its scale, which is finite.
        rows = parts["codes"].view(self._rows(shape), -1).float().div_(LARGEST)
        return rows.mul_(parts["scales"][:, None]).view(tuple(shape))
