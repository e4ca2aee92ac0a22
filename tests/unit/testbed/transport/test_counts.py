"""What a round costs, in messages, encodings, bytes and copies: counts are never noisy."""

import tracemalloc

import pytest
import torch
from copied import copied
from in_process import play, shards
from torch import Tensor

from methods import fedpeft
from methods.shared.averaging import WeightedMean
from nodes import fleet
from nodes.workload.models import ModelSpec, VisionTransformer
from testbed.transport.wire import Header, decode, encode_header, encode_tensors

CLASSES = 3
SPEC = ModelSpec(side=4, patch=2, width=16, depth=2, heads=2)
CLIENTS = {f"client-{number}": 8 for number in range(1, 7)}
ROUNDS = 3
LARGE = {"w": torch.zeros(1 << 20), "b": torch.zeros(1 << 18)}
LARGE_BYTES = sum(tensor.nbytes for tensor in LARGE.values())


def test_a_round_of_averaging_is_one_message_each_way_and_one_encoding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoded: list[int] = []

    def counting(tensors: dict[str, Tensor]):
        encoded.append(sum(tensor.nbytes for tensor in tensors.values()))
        return encode_tensors(tensors)

    monkeypatch.setattr(fleet, "encode_tensors", counting)
    config = fedpeft.Config(variant="head", batch_size=8, local_epochs=1)
    model = fedpeft.adapt(config, VisionTransformer(SPEC, CLASSES))
    parts = shards(CLIENTS, (1, 4, 4), CLASSES)
    server = fedpeft.Server(config, copied(model), parts["client-1"], 0)
    clients = {
        name: fedpeft.Client(config, copied(model), shard, number)
        for number, (name, shard) in enumerate(parts.items())
    }
    network = play(server, clients, CLIENTS, rounds=ROUNDS)
    one_way = 4 * (16 * CLASSES + CLASSES)
    for way in ("down", "up"):
        messages = network.of(way)
        assert len(messages) == ROUNDS * len(CLIENTS)
        assert {message.payload_bytes for message in messages} == {one_way}
    # However many clients a broadcast has.
    assert encoded == ROUNDS * [one_way]


def test_encoding_and_decoding_copy_nothing() -> None:
    entries, buffers = encode_tensors(LARGE)
    frames = [memoryview(encode_header(Header("model", 1, 0, {}, entries))), *buffers]
    tracemalloc.start()
    try:
        encode_tensors(LARGE)
        _, tensors = decode(frames)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 100_000 < LARGE_BYTES
    for name, tensor in LARGE.items():
        assert tensors[name].data_ptr() == tensor.data_ptr()


def test_a_mean_keeps_one_sum_however_many_updates_it_takes() -> None:
    mean = WeightedMean()
    mean.add(LARGE, 1.0)
    before = {name: total.data_ptr() for name, total in mean._sums.items()}
    for _ in range(5):
        mean.add(LARGE, 2.0)
    assert {name: total.data_ptr() for name, total in mean._sums.items()} == before
