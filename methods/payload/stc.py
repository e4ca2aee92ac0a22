"""Sparse ternary compression: the largest values of each tensor, as signs of one magnitude.

Sattler et al., IEEE TNNLS 2020 (arXiv 1903.02891). Of n values k = max(1, ceil(share n)), those
largest in magnitude, become the mean of their magnitudes, with their signs. Each place is told by
its gap d from the one before, as a Golomb code: floor((d - 1) / 2^b) ones, a zero, and the rest in
b bits, b = max(0, 1 + floor(log2(log(phi - 1) / log(1 - k / n)))), phi the golden ratio.

4 + ceil(k / 8) bytes and the places', whose number depends on the values: at random places
k (b + 1 / (1 - (1 - k / n)^(2^b))) bits in the mean, and never more than
ceil((k (b + 1) + floor((n - k) / 2^b)) / 8) bytes. That number is told in 4 bytes more. The default
share is our own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from msgspec import Meta
from torch import Tensor

from methods import payload
from methods.payload import QUANTISE, SPARSIFY, Part, bits
from methods.payload.topk import largest

PHI = (1 + math.sqrt(5)) / 2


class Options(payload.Lossy, frozen=True, forbid_unknown_fields=True, kw_only=True):
    k: Annotated[float, Meta(gt=0, le=1)] = 0.01
    """Share of the values of each tensor."""
    feedback: bool = True


class Stage:
    order = SPARSIFY | QUANTISE
    lossy = True

    def __init__(self, options: Options) -> None:
        self.options = options

    def kept(self, count: int) -> int:
        """How many of so many values are sent."""
        return payload.kept(self.options.k, count)

    def parts(self, shape: Sequence[int]) -> dict[str, Part]:
        count = math.prod(shape)
        kept = self.kept(count)
        width = golomb_width(count, kept)
        most = kept * (width + 1) + ((count - kept) >> width)
        return {
            "gaps": Part(torch.uint8, bits.packed_bytes(most, 1), exact=False),
            "signs": Part(torch.uint8, bits.packed_bytes(kept, 1)),
            "magnitude": Part(torch.float32, 1),
        }

    def encode(self, values: Tensor, seed: int, memory: dict[str, Tensor]) -> dict[str, Tensor]:
        flat = values.reshape(-1)
        kept = self.kept(flat.numel())
        places = largest(flat, kept)
        chosen = flat[places]
        gaps = pack_gaps(places.numpy(), golomb_width(flat.numel(), kept))
        return {
            "gaps": torch.from_numpy(gaps),
            "signs": bits.pack((chosen < 0).to(torch.uint8), 1),
            "magnitude": chosen.abs().double().mean().float().view(1),
        }

    def decode(self, parts: Mapping[str, Tensor], shape: Sequence[int], seed: int) -> Tensor:
        count = math.prod(shape)
        kept = self.kept(count)
        if parts["magnitude"] < 0:
            raise ValueError("a magnitude below 0")
        places = unpack_gaps(parts["gaps"].numpy(), golomb_width(count, kept), kept)
        if places[-1] >= count:
            raise ValueError(f"place {places[-1]} in a tensor of {count} values")
        signs = 1 - 2 * bits.unpack(parts["signs"], 1, kept).float()
        values = torch.zeros(count)
        values[torch.from_numpy(places)] = signs * parts["magnitude"]
        return values.view(tuple(shape))


def golomb_width(count: int, kept: int) -> int:
    """Bits of each gap that are told as they are, for the fewest in the mean: the paper's b*."""
    if kept == count:
        return 0
    return max(0, 1 + math.floor(math.log2(math.log(PHI - 1) / math.log1p(-kept / count))))


def pack_gaps(places: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.uint8]:
    """Golomb codes of the gaps between rising places, one after the other."""
    gaps = np.diff(places, prepend=-1) - 1
    ends = np.cumsum((gaps >> width) + 1 + width)
    zeros = ends - width - 1
    stream = np.ones(ends[-1], dtype=np.uint8)
    stream[zeros] = 0
    offsets = np.arange(width)
    stream[zeros[:, None] + 1 + offsets] = gaps[:, None] >> (width - 1 - offsets) & 1
    return np.packbits(stream)


def unpack_gaps(packed: npt.NDArray[np.uint8], width: int, kept: int) -> npt.NDArray[Any]:
    """int64 (kept,): the places that ``pack_gaps`` made ``packed`` of.

    Raises:
        ValueError: it is not so many codes and less than a byte of zeros.
    """
    stream = np.unpackbits(packed)
    text = stream.tobytes()
    zeros, start = np.empty(kept, dtype=np.int64), 0
    for code in range(kept):
        zeros[code] = zero = text.find(0, start)
        if zero < 0:
            raise ValueError(f"gaps end after {code} of {kept}")
        start = zero + 1 + width
    if not 0 <= len(text) - start < 8 or stream[start:].any():
        raise ValueError(f"gaps do not end with the last of {kept}")
    offsets = np.arange(width)
    low = stream[zeros[:, None] + 1 + offsets] @ (1 << (width - 1 - offsets))
    high = np.diff(zeros, prepend=-width - 1) - width - 1
    return np.cumsum((high << width) + low + 1) - 1
