"""Mutated frames at the decoder: a WireError or a message, in bounded memory, and nothing else."""

import gc
import os
import random
import resource
import sys
from pathlib import Path

import pytest
import torch
from mutations import Frames, mutated_frames

from testbed.transport.wire import (
    MEMORY_BYTES,
    MEMORY_FACTOR,
    Header,
    TensorHeader,
    WireError,
    decode,
    encode_header,
    encode_tensors,
)

MOST_MB = 48
"""What a process may have grown by, however many it has decoded and let go."""


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


def fuzz(count: int, seed: int) -> tuple[int, int]:
    """How many mutated messages were taken, and how many refused."""
    draw, whole = random.Random(seed), corpus()
    taken = refused = 0
    for _ in range(count):
        frames = mutated_frames(draw, draw.choice(whole), whole)
        try:
            header, tensors = decode([memoryview(frame) for frame in frames])
        except WireError:
            refused += 1
            continue
        taken += 1
        assert len(header.tensors) == len(tensors) == len(frames) - 1
        assert all(
            each.nbytes == len(frame)
            for each, frame in zip(tensors.values(), frames[1:], strict=True)
        )
    return taken, refused


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning")
def test_mutated_frames_are_taken_or_refused() -> None:
    taken, refused = fuzz(5_000, 0)
    assert taken > 200 and refused > 2_000


@pytest.mark.patient
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning")
@pytest.mark.skipif(sys.platform != "linux", reason="reads its memory from /proc")
def test_a_million_mutated_frames_in_bounded_memory() -> None:
    """WIRETUNE_MUTATIONS: another number of them."""
    count = int(os.environ.get("WIRETUNE_MUTATIONS", 10**6))
    fuzz(20_000, 0)
    gc.collect()
    before = resident_bytes()
    taken, refused = fuzz(count, 1)
    gc.collect()
    assert taken + refused == count
    assert resident_bytes() - before < MOST_MB << 20


@pytest.mark.skipif(sys.platform != "linux", reason="reads its memory from /proc")
@pytest.mark.parametrize(("tensors", "size"), [(256, 1), (250, 0), (256, 40), (2_000, 512)])
def test_a_message_that_is_kept_takes_a_small_multiple_of_its_bytes(
    tensors: int, size: int
) -> None:
    some = {f"a.name.{n}": torch.zeros(size, dtype=torch.uint8) for n in range(tensors)}
    frames = frames_of("many", 1, some)
    bound = MEMORY_FACTOR * sum(map(len, frames)) + MEMORY_BYTES
    kept = [decode([memoryview(bytearray(each)) for each in frames]) for _ in range(3)]
    gc.collect()
    before = resident_bytes()
    kept += [decode([memoryview(bytearray(each)) for each in frames]) for _ in range(20)]
    assert (resident_bytes() - before) / 20 < bound
