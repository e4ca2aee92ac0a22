"""Random-k sparsification: of each tensor values at places that are drawn, and no places.

Both ends draw the places from the same seed, anew for each tensor and message (Konecny et al.,
arXiv 1610.05492, "random mask"). Of n values k = max(1, ceil(share n)): 4 k bytes. ``unbiased``
multiplies what arrives by n / k, so that its mean over draws is what was meant, and its variance
n / k times as large (Stich et al., NeurIPS 2018, arXiv 1809.07599). The default share is our own.
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
from methods.payload import SPARSIFY, VALUES, Part


class Options(payload.Lossy, frozen=True, forbid_unknown_fields=True, kw_only=True):
    k: Annotated[float, Meta(gt=0, le=1)] = 0.1
    """Share of the values of each tensor."""
    unbiased: bool = False
    """Whether what arrives is n / k times what was sent; not with ``feedback``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unbiased and self.feedback:
            # What is left out would come back n / k times as large, message after message.
            raise ValueError("unbiased = true goes with feedback = false alone")


class Stage:
    order = SPARSIFY
    lossy = True

    def __init__(self, options: Options) -> None:
        self.options = options

    def kept(self, count: int) -> int:
        """How many of so many values are sent."""
        return payload.kept(self.options.k, count)

    def _places(self, count: int, seed: int) -> Tensor:
        # Several times as quick as torch's randperm.
        source = np.random.default_rng(seed)
        return torch.from_numpy(
            source.choice(count, self.kept(count), replace=False, shuffle=False)
        )

    def parts(self, shape: Sequence[int]) -> dict[str, Part]:
        return {VALUES: Part(torch.float32, self.kept(math.prod(shape)))}

    def encode(self, values: Tensor, seed: int, memory: dict[str, Tensor]) -> dict[str, Tensor]:
        taken = values.reshape(-1)[self._places(values.numel(), seed)]
        # What is not finite is to be heard of wherever it is.
        return {VALUES: taken if values.isfinite().all() else torch.full_like(taken, math.nan)}

    def decode(self, parts: Mapping[str, Tensor], shape: Sequence[int], seed: int) -> Tensor:
        count = math.prod(shape)
        factor = count / self.kept(count) if self.options.unbiased else 1.0
        values = torch.zeros(count)
        values[self._places(count, seed)] = parts[VALUES] * factor
        return values.view(tuple(shape))
