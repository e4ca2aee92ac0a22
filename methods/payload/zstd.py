"""Zstandard (RFC 8878) of what is left, the bytes of each part shuffled before.

All first bytes of a part's elements are a block with a code of its own, all second ones the next,
and so on. How few they become depends on the values; raw float32 values hardly do.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from methods.payload import PACK, Part
from methods.payload.deflate import shuffled, split
from testbed.config_error import ConfigError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    try:
        from backports import zstd
    except ImportError:
        zstd = None  # type: ignore[assignment]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    level: Annotated[int, Meta(ge=1, le=22)] = 3
    """1: fastest; 22: fewest bytes."""
    shuffle: bool = True


class Stage:
    order = PACK
    lossy = False

    def __init__(self, options: Options) -> None:
        if zstd is None:
            raise ConfigError(
                "stage zstd: Python has it from 3.14 on, before that the package backports.zstd, "
                "which is not installed; pip install it, or take the stage deflate"
            )
        self.options = options

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        packer = zstd.ZstdCompressor(self.options.level)
        # A frame that tells its length asks for a window that is no larger.
        packer.set_pledged_input_size(sum(each.nbytes for each in tensors))
        blocks = (block for each in tensors for block in self._blocks(each))
        pieces = [packer.compress(block, packer.FLUSH_BLOCK) for block in blocks]
        whole = b"".join([*pieces, packer.flush()])
        return torch.from_numpy(np.frombuffer(whole, dtype=np.uint8).copy())

    def _blocks(self, tensor: Tensor) -> list[bytes]:
        raw = shuffled(tensor, self.options.shuffle)
        length = len(tensor) if self.options.shuffle else len(raw)
        return [raw[start : start + length] for start in range(0, len(raw), length)]

    def unpack(self, packed: Tensor, layout: Sequence[Part]) -> list[Tensor]:
        expected = sum(part.length * part.dtype.itemsize for part in layout)
        # A window is memory that is taken before anything is unpacked.
        limit = zstd.DecompressionParameter.window_log_max
        least, most = limit.bounds()
        window = min(max(least, expected.bit_length()), most)
        unpacker = zstd.ZstdDecompressor(options={limit: window})
        try:
            # No more than is expected, and one byte by which too many are told.
            whole = unpacker.decompress(packed.numpy().data, expected + 1)
        except zstd.ZstdError as error:
            raise ValueError(f"cannot be decompressed: {error}") from error
        if len(whole) != expected or not unpacker.eof or unpacker.unused_data:
            raise ValueError(f"does not decompress to {expected} bytes")
        return split(whole, layout, self.options.shuffle)
