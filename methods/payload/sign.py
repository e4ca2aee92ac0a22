"""Signs: a bit for each value, and the mean magnitude, which all of them get.

EF-signSGD of Karimireddy, Rebjock, Stich and Jaggi, ICML 2019 (arXiv 1901.09847): sign(x) times
||x||_1 / n of each tensor, and what that leaves out is added to the next update; without this it
need not converge. Ours: zero, which a bit cannot say, counts as positive. ceil(n / 8) + 4 bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from methods import payload
from methods.payload import QUANTISE, Part, bits


class Options(payload.Lossy, frozen=True, forbid_unknown_fields=True, kw_only=True):
    feedback: bool = True


class Stage:
    order = QUANTISE
    lossy = True

    def __init__(self, options: Options) -> None:
        self.options = options

    def parts(self, shape: Sequence[int]) -> dict[str, Part]:
        signs = Part(torch.uint8, bits.packed_bytes(math.prod(shape), 1))
        return {"signs": signs, "scale": Part(torch.float32, 1)}

    def encode(self, values: Tensor, seed: int, memory: dict[str, Tensor]) -> dict[str, Tensor]:
        flat = values.reshape(-1)
        scale = flat.abs().mean()
        if scale.isinf():  # The sum may be where the mean is not.
            scale = flat.abs().mean(dtype=torch.float64).float()
        return {"signs": bits.pack((flat < 0).view(torch.uint8), 1), "scale": scale.view(1)}

    def decode(self, parts: Mapping[str, Tensor], shape: Sequence[int], seed: int) -> Tensor:
        negative = bits.unpack(parts["signs"], 1, math.prod(shape)).float()
        return ((1 - 2 * negative) * parts["scale"]).view(tuple(shape))
