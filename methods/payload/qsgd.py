"""QSGD: a sign and a level for each value, rounded by chance to the one below or above it.

Alistarh, Grubic, Li, Tomioka and Vojnovic, NeurIPS 2017 (arXiv 1610.02132). Values stand in buckets
of consecutive ones; a bucket has one scale and ``levels`` levels above zero. The mean over draws is
the value itself. As in the paper's experiments the scale is the largest magnitude of a bucket, and
not its 2-norm, of which its theory is. Ours is the packing: codes of one length in the place of
Elias's. Of n values 1 + ceil(log2(levels + 1)) bits each and 4 bytes a bucket.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor

from methods import payload
from methods.payload import QUANTISE, Part, bits


class Options(payload.Lossy, frozen=True, forbid_unknown_fields=True, kw_only=True):
    levels: Annotated[int, Meta(ge=1, le=127)] = 7
    """Above zero; 2^b - 1 of them fill b bits."""
    bucket: Annotated[int, Meta(ge=1)] = 512
    """Values that share a scale."""


class Stage:
    order = QUANTISE
    lossy = True

    def __init__(self, options: Options) -> None:
        self.options = options
        self._sign = options.levels.bit_length()
        """Place of the sign's bit, above those of the level."""

    def _buckets(self, count: int) -> tuple[int, int]:
        """How many there are of so many values, and how many values each of them has."""
        length = min(self.options.bucket, count)
        return -(-count // length), length

    def parts(self, shape: Sequence[int]) -> dict[str, Part]:
        count = math.prod(shape)
        return {
            "codes": Part(torch.uint8, bits.packed_bytes(count, 1 + self._sign)),
            "scales": Part(torch.float32, self._buckets(count)[0]),
        }

    def encode(self, values: Tensor, seed: int, memory: dict[str, Tensor]) -> dict[str, Tensor]:
        flat, levels = values.reshape(-1), self.options.levels
        count = len(flat)
        buckets, length = self._buckets(count)
        rows = torch.zeros(buckets * length)
        torch.abs(flat, out=rows[:count])
        rows = rows.view(buckets, length)
        scales = rows.amax(dim=1)
        at = rows.div_(scales[:, None]).mul_(levels).view(-1)[:count]
        at += torch.rand(count, generator=torch.Generator().manual_seed(seed))
        # Zero of zero, and what is not finite, is none: 0 stands for it.
        codes = at.nan_to_num_(0).clamp_max_(levels).to(torch.uint8)
        codes |= (flat < 0).view(torch.uint8) << self._sign
        return {"codes": bits.pack(codes, 1 + self._sign), "scales": scales}

    def decode(self, parts: Mapping[str, Tensor], shape: Sequence[int], seed: int) -> Tensor:
        count = math.prod(shape)
        buckets, length = self._buckets(count)
        codes = bits.unpack(parts["codes"], 1 + self._sign, count)
        rows = torch.zeros(buckets * length)
        rows[:count] = (codes & (1 << self._sign) - 1).float().div_(self.options.levels)
        rows = rows.view(buckets, length).mul_(parts["scales"][:, None])
        found = rows.view(-1)[:count]
        found *= 1 - 2 * (codes >> self._sign).float()
        return found.view(tuple(shape))
