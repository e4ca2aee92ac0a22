"""Deflate (RFC 1951) of bytes: of each part all first ones, then all second, and so on (shuffled).

Those of one place within an element are more alike. Raw float32 values hardly become fewer; codes
and places do, by how much depends on the values.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from methods.payload import PACK, Part


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    level: Annotated[int, Meta(ge=1, le=9)] = 6
    """1: fastest; 9: fewest bytes."""
    shuffle: bool = True


class Stage:
    order = PACK
    lossy = False

    def __init__(self, options: Options) -> None:
        self.options = options

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        packer = zlib.compressobj(self.options.level, wbits=-zlib.MAX_WBITS)
        pieces = [packer.compress(shuffled(each, self.options.shuffle)) for each in tensors]
        whole = b"".join([*pieces, packer.flush()])
        return torch.from_numpy(np.frombuffer(whole, dtype=np.uint8).copy())

    def unpack(self, packed: Tensor, layout: Sequence[Part]) -> list[Tensor]:
        expected = sum(part.length * part.dtype.itemsize for part in layout)
        unpacker = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
        try:
            # No more than is expected, and one byte by which too many are told.
            whole = unpacker.decompress(packed.numpy().data, expected + 1)
        except zlib.error as error:
            raise ValueError(f"cannot be inflated: {error}") from error
        if len(whole) != expected or not unpacker.eof or unpacker.unused_data:
            raise ValueError(f"does not inflate to {expected} bytes")
        return split(whole, layout, self.options.shuffle)


def shuffled(tensor: Tensor, wanted: bool) -> bytes:
    """All bytes of a tensor, those of one place within an element beside one another."""
    raw = tensor.contiguous().view(torch.uint8).numpy()
    width = tensor.dtype.itemsize
    return raw.reshape(-1, width).T.tobytes() if wanted and width > 1 else raw.tobytes()


def split(whole: bytes, layout: Sequence[Part], was_shuffled: bool) -> list[Tensor]:
    """Tensors of that layout whose bytes, shuffled or not, are ``whole``."""
    found, start = [], 0
    for part in layout:
        width = part.dtype.itemsize
        raw = np.frombuffer(whole, np.uint8, part.length * width, start)
        start += len(raw)
        if was_shuffled and width > 1:
            raw = np.ascontiguousarray(raw.reshape(width, -1).T).reshape(-1)
        found.append(torch.from_numpy(raw.copy()).view(part.dtype))
    return found
