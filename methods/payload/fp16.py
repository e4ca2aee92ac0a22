"""fp16: 11 significant bits, 6e-8 to 65,504; what is beyond is sent as 65,504. 2 n bytes.

What is less than 6e-5 has fewer bits, and less than 3e-8 none: of small updates bf16 keeps more.
"""

import torch

from methods.payload import Lossy as Options
from methods.payload.cast import Cast

__all__ = ["Options", "Stage"]


class Stage(Cast):
    dtype = torch.float16
