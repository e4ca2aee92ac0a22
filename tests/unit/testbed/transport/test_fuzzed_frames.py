"""Mutated frames at the decoder: a WireError or a message, in bounded memory, and nothing else."""

import gc
import os
import random
import sys

import pytest
import torch
from mutations import corpus, frames_of, mutated_frames, resident_bytes

from testbed.transport.wire import (
    MEMORY_BYTES,
    MEMORY_FACTOR,
    WireError,
    decode,
)

MOST_MB = 48
"""What a process may have grown by, however many it has decoded and let go."""


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


@pytest.mark.thorough
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


@pytest.mark.thorough
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
