"""bf16: 8 significant bits, and float32's range. 2 n bytes."""

import torch

from methods.payload import Lossy as Options
from methods.payload.cast import Cast

__all__ = ["Options", "Stage"]


class Stage(Cast):
    dtype = torch.bfloat16
