"""Top-k sparsification: of each tensor the values that are largest in magnitude, and their places.

Aji and Heafield, EMNLP 2017 (arXiv 1704.05021); with ``feedback`` what is left out is added to the
next update (Stich et al., NeurIPS 2018, arXiv 1809.07599). Of n values k = max(1, ceil(share n)):
8 k bytes, or where k > n / 32 a bitmap for the places, 4 k + ceil(n / 8).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from methods import payload
from methods.payload import SPARSIFY, VALUES, Part, bits

BITMAP_FROM = 32
"""Share of values from one in so many, from which a bit each is less than four bytes a place."""


class Options(payload.Lossy, frozen=True, forbid_unknown_fields=True, kw_only=True):
    k: Annotated[float, Meta(gt=0, le=1)] = 0.01
    """Share of the values of each tensor."""


class Stage:
    order = SPARSIFY
    lossy = True

    def __init__(self, options: Options) -> None:
        self.options = options

    def kept(self, count: int) -> int:
        """How many of so many values are sent."""
        return payload.kept(self.options.k, count)

    def parts(self, shape: Sequence[int]) -> dict[str, Part]:
        count = math.prod(shape)
        kept = self.kept(count)
        values = {VALUES: Part(torch.float32, kept)}
        if kept * BITMAP_FROM > count:
            return {"bitmap": Part(torch.uint8, bits.packed_bytes(count, 1)), **values}
        return {"places": Part(torch.int32, kept), **values}

    def encode(self, values: Tensor, seed: int, memory: dict[str, Tensor]) -> dict[str, Tensor]:
        flat = values.reshape(-1)
        count = flat.numel()
        places = largest(flat, self.kept(count))
        if len(places) * BITMAP_FROM > count:
            taken = torch.zeros(count, dtype=torch.uint8)
            taken[places] = 1
            return {"bitmap": bits.pack(taken, 1), VALUES: flat[places]}
        return {"places": places.to(torch.int32), VALUES: flat[places]}

    def decode(self, parts: Mapping[str, Tensor], shape: Sequence[int], seed: int) -> Tensor:
        count = math.prod(shape)
        if "bitmap" in parts:
            places = bits.unpack(parts["bitmap"], 1, count).nonzero().reshape(-1)
            if len(places) != self.kept(count):
                raise ValueError(f"{len(places)} places where {self.kept(count)} were expected")
        else:
            places = parts["places"].long()
        if int(places[0]) < 0 or int(places[-1]) >= count or bool((places.diff() <= 0).any()):
            raise ValueError("places that do not rise from 0 on within the tensor")
        values = torch.zeros(count)
        values[places] = parts[VALUES]
        return values.view(tuple(shape))


def largest(values: Tensor, count: int) -> Tensor:
    """int64 (count,): places of the largest magnitudes in ``values`` (n,), in their order.

    What is no number counts as most.
    """
    # Several times as quick as torch's topk, which sorts.
    left_out = len(values) - count
    ranked = np.argpartition(values.abs().numpy(), left_out)
    return torch.from_numpy(np.sort(ranked[left_out:]))
