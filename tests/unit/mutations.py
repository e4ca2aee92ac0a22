"""Mutations: bytes, and the frames of a message, changed as a stranger or a faulty disk would."""

import random
import resource
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from testbed.transport.wire import Header, TensorHeader, encode_header, encode_tensors

Frames = list[bytes]
CLAIMS = (-1, 0, 1, 2**15, 2**31, 2**32, 2**32 + 1, 2**63 - 1, 2**64 - 1)
"""Numbers of elements, rounds and times, gigabytes of them among that."""
FOREIGN = (None, True, -1, 2**31, 1e308, "", "x" * 300, b"\xff", [], {}, [[]], float("nan"))


def mutated(random: random.Random, data: bytes, others: Sequence[bytes] = (b"",)) -> bytes:
    """Bits flipped, parts cut out, doubled, overwritten, or put in from one of ``others``."""
    found = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4, 16))):
        size = len(found)
        begin = random.randrange(size + 1)
        end = min(size, begin + random.choice((1, 1, 2, 4, 16, 64, size)))
        kind = random.randrange(7)
        if kind == 0 and size:
            found[min(begin, size - 1)] ^= 1 << random.randrange(8)
        elif kind == 1:
            del found[begin:end]
        elif kind == 2:
            found[begin:begin] = found[begin:end]
        elif kind == 3:
            found[begin:end] = random.randbytes(end - begin)
        elif kind == 4:
            found[begin:begin] = random.choice(_NUMBERS)
        elif kind == 5:
            other = random.choice(others)
            cut = random.randrange(len(other) + 1)
            found[begin:end] = other[cut : cut + random.choice((1, 8, 64, 512))]
        else:
            found[begin:end] = random.choice((b"\x00", b"\xff", b"\x91", b"[", b'"', b"\n")) * 40
    return bytes(found)


_NUMBERS = (
    *(b"\xdd\xff\xff\xff\xff", b"\xcf" + b"\xff" * 8, b"\xd3\x80" + bytes(7), b"\xca\x7f\xc0\x00"),
    *(b"99999999999999999999", b"-1", b"1e999", b"NaN", b"\xc1", b"\xed\xa0\x80"),
)


def mutated_frames(random: random.Random, frames: Frames, others: Sequence[Frames]) -> Frames:
    """A message that was changed: its header, deflated or not, its fields, or its frames."""
    header, *buffers = frames
    kind = random.randrange(8)
    if kind == 0:
        header = mutated(random, header)
    elif kind == 1:
        header = zlib.compress(mutated(random, zlib.decompress(header)), 1)
    elif kind in (2, 3):
        fields = msgspec.msgpack.decode(zlib.decompress(header))
        _change(random, fields)
        header = zlib.compress(msgspec.msgpack.encode(fields), 1)
    elif kind == 4 and buffers:
        place = random.randrange(len(buffers))
        buffers[place] = mutated(random, buffers[place])
    elif kind == 5:
        buffers = random.choice(
            (
                buffers[1:],
                buffers * 2,
                [*buffers, b""],
                random.sample(buffers, len(buffers)),
                [b"x"] * random.choice((1, 100, 300)),
            )
        )
    elif kind == 6:
        other = random.choice(others)
        header, buffers = (header, other[1:]) if random.random() < 0.5 else (other[0], buffers)
    else:
        return [mutated(random, each) for each in frames][: random.randrange(len(frames) + 1)]
    return [header, *buffers]


def _change(random: random.Random, fields: list[Any]) -> None:
    """One field of a header, or of one of its tensors."""
    tensors = fields[-1]
    place = random.randrange(len(fields) + 3)
    if place < len(fields):
        fields[place] = random.choice((*FOREIGN, *CLAIMS))
    elif place == len(fields):
        fields.append(random.choice(FOREIGN))
    elif isinstance(tensors, list) and tensors:
        entry = random.choice(tensors)
        what = random.randrange(5)
        if what < 3:
            entry[what] = random.choice((*FOREIGN, *CLAIMS, "f64", "u8", "bool", "i8"))
        elif what == 3:
            entry[2] = [random.choice(CLAIMS) for _ in range(random.randrange(10))]
        else:
            fields[-1] = tensors * random.choice((2, 30))


def frames_of(kind: str, number: int, tensors: dict[str, torch.Tensor], **details: int) -> Frames:
    entries, buffers = encode_tensors(tensors)
    return [encode_header(Header(kind, number, 17, details, entries)), *map(bytes, buffers)]


def corpus() -> list[Frames]:
    """Messages as runs have them, of several rounds, and some at the edge of what is taken."""
    generator = torch.Generator().manual_seed(0)
    adapter = {f"blocks.{n}.lora_{x}": torch.randn(8, 4) for n in range(6) for x in "ab"}
    return [
        frames_of("hello", 0, {}, samples=57),
        *(frames_of("adapter", number, adapter, samples=57) for number in (1, 2, 3)),
        frames_of("logits", 2, {"logits": torch.randn(20, 10, generator=generator).half()}),
        frames_of("smashed", 1, {"x": torch.randn(4, 5, 8), "labels": torch.arange(4)}),
        frames_of("mask", 1, {"kept": torch.tensor([True, False]), "none": torch.empty(0, 3)}),
        frames_of("counts", 9, {f"n{n}": torch.tensor(n, dtype=torch.uint8) for n in range(200)}),
        [encode_header(Header("k" * 200, 2**31 - 1, 0, {}, [TensorHeader("w", "f32", (0,))])), b""],
    ]


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
