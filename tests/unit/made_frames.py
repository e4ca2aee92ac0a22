"""Frames of messages, whole and made up, as they arrive."""

import contextlib
import resource
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import settings
from torch import Tensor

from testbed.transport.wire import (
    DTYPES,
    Header,
    WireError,
    decode,
    encode_header,
    encode_tensors,
)

SPARE_BYTES = 24 << 20
fuzz = settings(derandomize=True, deadline=None, max_examples=60)


def arrived(data: bytes | memoryview) -> memoryview:
    """A frame as ZeroMQ hands it over: memory of its own."""
    return memoryview(bytearray(data))


def deflated(data: bytes) -> memoryview:
    """A first frame with ``data`` in it."""
    return arrived(zlib.compress(data))


class Owner(bytearray):
    """Memory of which it can be told whether somebody holds it."""


def message(tensors: dict[str, Tensor]) -> list[memoryview]:
    """The frames of a valid message."""
    entries, buffers = encode_tensors(tensors)
    header = encode_header(Header("model", 3, 17, {"samples": 5}, entries))
    return [arrived(frame) for frame in (header, *buffers)]


def packed(*entries: object, **fields: object) -> bytes:
    """A header before it is deflated, with fields of any type, right or wrong."""
    values = {"kind": "model", "round": 1, "sent_ns": 0, "details": {}, "tensors": list(entries)}
    return msgspec.msgpack.encode(list((values | fields).values()))


def header(*entries: object, **fields: object) -> memoryview:
    return deflated(packed(*entries, **fields))


def raw_bytes(tensor: Tensor) -> bytes:
    return bytes(encode_tensors({"t": tensor})[1][0])


def of_every_dtype(name: str) -> Tensor:
    """Six values, of which some are negative, large or not finite where the dtype has them."""
    dtype = DTYPES[name]
    if dtype == torch.bool:
        return torch.tensor([True, False, True, True, False, False])
    if dtype.is_floating_point:
        return torch.tensor([0.1, -2.5, torch.inf, torch.nan, 3e4, -0.0], dtype=dtype)
    limits = torch.iinfo(dtype)
    return torch.tensor([0, 1, limits.max, limits.min, 7, 100], dtype=dtype)


@contextlib.contextmanager
def scarce_memory() -> Iterator[None]:
    """No more than SPARE_BYTES can be allocated, by Python, numpy or torch."""
    if sys.platform != "linux":
        yield
        return
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + SPARE_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def take(frames: Sequence[memoryview]) -> dict[str, Tensor] | None:
    """What decoding gives, None for a WireError; tensors must be no larger than their frames."""
    with scarce_memory():
        try:
            found, tensors = decode(frames)
        except WireError:
            return None
    assert len(found.tensors) == len(tensors) == len(frames) - 1
    for tensor, frame in zip(tensors.values(), frames[1:], strict=True):
        assert tensor.untyped_storage().nbytes() <= len(frame)
        assert tensor.nbytes == len(frame)
    return tensors


def refusal(*frames: memoryview) -> str:
    with scarce_memory(), pytest.raises(WireError) as caught:
        decode(frames)
    return str(caught.value)
