"""Packing of small whole numbers, such as codes and masks, into bytes without gaps."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_LANES = (8, 16, 32)
"""Bits of a number that stands by itself, of two beside one another, and of four."""


def packed_bytes(count: int, width: int) -> int:
    """Bytes that ``count`` numbers of ``width`` bits take."""
    return -(-count * width // 8)


def pack(numbers: Tensor, width: int) -> Tensor:
    """uint8 (packed_bytes,) of ``numbers`` below 2 ** ``width``, uint8 (n,); ``width`` 1 to 8.

    The highest bit of the first number is the highest of the first byte. Numbers without values,
    on the meta device, give bytes without values.
    """
    if width == 8:
        return numbers
    if numbers.is_meta:
        return numbers.new_empty(packed_bytes(len(numbers), width))
    if width == 1:
        return torch.as_tensor(np.packbits(numbers.numpy()))
    # Eight numbers, which come to stand in as many bytes as one of them has bits.
    whole = _groups(numbers.numpy(), 8)
    for lane in _LANES:
        used = lane * width // 8
        low = _low_bits(used, 2 * lane)
        whole = whole & low | whole >> np.uint64(lane - used) & low << np.uint64(used)
    packed = _bytes(whole << np.uint64(64 - 8 * width))[:, :width].reshape(-1)
    return torch.as_tensor(packed[: packed_bytes(len(numbers), width)])


def unpack(packed: Tensor, width: int, count: int) -> Tensor:
    """uint8 (count,) that ``pack`` made ``packed`` of."""
    if width == 8:
        return packed
    if width == 1:
        return torch.as_tensor(np.unpackbits(packed.numpy(), count=count))
    whole = _groups(packed.numpy(), width) >> np.uint64(64 - 8 * width)
    for lane in reversed(_LANES):
        used = lane * width // 8
        low = _low_bits(used, 2 * lane)
        whole = whole & low | (whole & low << np.uint64(used)) << np.uint64(lane - used)
    return torch.as_tensor(_bytes(whole).reshape(-1)[:count])


def _groups(data: NDArray[np.uint8], size: int) -> NDArray[np.uint64]:
    """Every ``size`` bytes as the highest of one number."""
    found = np.zeros((-(-len(data) // size), 8), np.uint8)
    full = len(data) // size
    found[:full, :size] = data[: full * size].reshape(-1, size)
    if full < len(found):
        found[-1, : len(data) - full * size] = data[full * size :]
    return found.view(">u8").reshape(-1).astype(np.uint64)


def _bytes(numbers: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """(n, 8), the highest first."""
    return numbers.astype(">u8").view(np.uint8).reshape(-1, 8)


def _low_bits(count: int, of: int) -> np.uint64:
    """A mask with the lowest ``count`` of every ``of`` bits."""
    return np.uint64(sum((1 << count) - 1 << at for at in range(0, 64, of)))
