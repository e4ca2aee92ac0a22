"""CosSGD: of each value the angle whose cosine it is of the tensor's norm, in a few bits.

He, Zenk and Fritz, arXiv 2012.08241. Of n values v at s bits: N = ||v||, theta = arccos(v / N), in
2^s equal steps from b to pi - b, where b is the angle of the largest magnitude. Without ``clip``
equal steps of the angle are as good as equal steps of the value: where values are small beside
their norm the cosine is straight. With it that share of values, the largest, is cut to the next
one, whose angle b then is. 0 is between two steps, and becomes half of one.

The codes go out without gaps, with them b and N cos b as float32: ceil(n s / 8) + 8 bytes. The
second is our own; the paper has N, which for large values is more than a float32. Codes are the
nearest steps; rounding=random, the paper's other way, takes the step below or above by chance, so
that the mean over draws is the angle (not the value).

Its abstract has both ways coded, gradients up and weights down. What is left of an update at places
drawn from a seed is quantised, and the codes deflated: ``randomk:k=0.05``, ``cossgd:bits=2`` and
``deflate``; down ``cossgd:bits=4,weights=true``. A digest of the paper, which we have not read
whole, gives more than 1,000 times fewer bytes with random sparsification on CIFAR-10. The values
that defaults have are our own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import msgspec
import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from methods import payload
from methods.payload import QUANTISE, Part, bits
from methods.shared.averaging import BY_OTHERS

CLIP = 0.01
"""Of the largest magnitudes, where nothing is said and a value has fewer than 8 bits."""


class Options(payload.Lossy, frozen=True, forbid_unknown_fields=True, kw_only=True):
    bits: Annotated[int, Meta(ge=1, le=8)] = BY_OTHERS
    """Of each value; 4 of weights and 2 of an update if not given."""
    clip: Annotated[float, Meta(ge=0, lt=1)] = BY_OTHERS
    """Share of the values, the largest, that is cut; 0 at 8 bits and 0.01 below if not given."""
    rounding: Literal["nearest", "random"] = "nearest"
    """Of an angle between two steps."""
    weights: bool = False
    """Of what the server sends, whether weights are coded, not what changed in them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits is None:
            msgspec.structs.force_setattr(self, "bits", 4 if self.weights else 2)
        if self.clip is None:
            msgspec.structs.force_setattr(self, "clip", 0.0 if self.bits == 8 else CLIP)
        if self.weights and self.feedback:
            # The server has all of its weights, and codes them anew each time.
            raise ValueError("weights = true goes with feedback = false alone")


class Stage:
    order = QUANTISE
    lossy = True

    def __init__(self, options: Options) -> None:
        self.options = options
        self.last = 2**options.bits - 1

    def parts(self, shape: Sequence[int]) -> dict[str, Part]:
        one = Part(torch.float32, 1)
        codes = Part(torch.uint8, bits.packed_bytes(math.prod(shape), self.options.bits))
        return {"codes": codes, "largest": one, "bound": one}

    def encode(self, values: Tensor, seed: int, memory: dict[str, Tensor]) -> dict[str, Tensor]:
        flat = values.reshape(-1)
        norm = torch.linalg.vector_norm(flat, dtype=torch.float64)
        if 0 < float(norm) < math.inf:
            largest = self._largest(flat.abs())
            bound = _below(torch.arccos(largest / norm))
            # By the angle from pi / 2: next to it an arccosine in float32 errs by more than a step.
            sines = (flat / largest).clamp_(-1, 1).mul_(math.cos(bound))
            steps = torch.arcsin_(sines).div_(math.pi / 2 - float(bound)).neg_().add_(1)
            codes = self._whole(steps.mul_(self.last / 2), seed).to(torch.uint8)
        else:
            codes = torch.zeros(len(flat), dtype=torch.uint8)
            largest, bound = norm.float(), torch.zeros(())
        packed = bits.pack(codes, self.options.bits)
        return {"codes": packed, "largest": largest.view(1), "bound": bound.view(1)}

    def _whole(self, steps: Tensor, seed: int) -> Tensor:
        if self.options.rounding == "nearest":
            return steps.round_()
        draws = torch.rand(len(steps), generator=torch.Generator().manual_seed(seed))
        # In float32 the first is a little less than 0, and the last with a draw next to 1 one more.
        return steps.add_(draws).floor_().clamp_(0, self.last)

    def _largest(self, magnitudes: Tensor) -> Tensor:
        """The largest that is not cut."""
        place = len(magnitudes) - int(self.options.clip * len(magnitudes)) - 1
        found = torch.from_numpy(np.partition(magnitudes.numpy(), place))[place]
        # Of fewer values above 0 than are to be cut none is.
        return found if found > 0 else magnitudes.amax()

    def decode(self, parts: Mapping[str, Tensor], shape: Sequence[int], seed: int) -> Tensor:
        largest, bound = float(parts["largest"]), float(parts["bound"])
        if largest < 0 or not 0 <= bound < math.pi / 2:
            raise ValueError(f"largest {largest:g} and bound {bound:g} are those of no values")
        steps = torch.arange(self.last + 1, dtype=torch.float64) / self.last
        angles = bound + steps * (math.pi - 2 * bound)
        levels = (largest / math.cos(bound) * torch.cos(angles)).float()
        codes = bits.unpack(parts["codes"], self.options.bits, math.prod(shape))
        return levels.index_select(0, codes.int()).view(tuple(shape))


def _below(angle: Tensor) -> Tensor:
    """float32 of an angle, and no more: the nearest of pi / 2 would be."""
    found = angle.float()
    return torch.nextafter(found, torch.zeros(())) if found.double() > angle else found
