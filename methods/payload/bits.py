"""Packing of small whole numbers, such as codes and masks, into bytes without gaps."""

import numpy as np
import torch
from torch import Tensor


def packed_bytes(count: int, width: int) -> int:
    """Bytes that ``count`` numbers of ``width`` bits take."""
    return -(-count * width // 8)


def pack(numbers: Tensor, width: int) -> Tensor:
    """uint8 (packed_bytes,) of ``numbers`` below 2 ** ``width``, uint8 (n,); ``width`` 1 to 8."""
    if width == 8:
        return numbers
    if width == 1:
        return torch.from_numpy(np.packbits(numbers.numpy()))
    planes = numbers.numpy()[:, None] >> np.arange(width - 1, -1, -1, dtype=np.uint8) & 1
    return torch.from_numpy(np.packbits(planes.reshape(-1)))


def unpack(packed: Tensor, width: int, count: int) -> Tensor:
    """uint8 (count,) that ``pack`` made ``packed`` of."""
    if width == 8:
        return packed
    found = np.unpackbits(packed.numpy(), count=count * width)
    if width == 1:
        return torch.from_numpy(found)
    weights = (1 << np.arange(width - 1, -1, -1)).astype(np.uint8)
    return torch.from_numpy(found.reshape(count, width) @ weights)
