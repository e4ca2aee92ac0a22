"""The wire: tensors survive it bit for bit, and nothing but a WireError comes of bad frames."""

import gc
import weakref
import zlib

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from made_frames import Owner, arrived, fuzz, header, message, of_every_dtype, raw_bytes, take
from torch import Tensor

from testbed.transport.wire import (
    COPIED_BYTES,
    DTYPES,
    Header,
    TensorHeader,
    WireError,
    decode,
    encode_header,
    encode_tensors,
)

# There and back


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_survives(name: str) -> None:
    sent = of_every_dtype(name)
    _, got = decode(message({"t": sent}))
    assert got["t"].dtype == sent.dtype
    assert raw_bytes(got["t"]) == raw_bytes(sent)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 0, 3), (2, 3), (1, 2, 1, 3)])
def test_every_shape_survives(name: str, shape: tuple[int, ...]) -> None:
    sent = torch.ones(shape, dtype=DTYPES[name])
    _, got = decode(message({"t": sent}))
    assert got["t"].shape == sent.shape and got["t"].dtype == sent.dtype
    assert torch.equal(got["t"], sent)


@pytest.mark.parametrize(
    "view",
    [
        torch.arange(12).reshape(3, 4).T,
        torch.arange(12)[::3],
        torch.arange(3.0).expand(4, 3),
        torch.arange(12).reshape(3, 4)[:, 1:3],
    ],
    ids=["transposed", "strided", "expanded", "sliced"],
)
def test_a_view_that_is_not_contiguous_survives(view: Tensor) -> None:
    assert not view.is_contiguous()
    _, got = decode(message({"t": view}))
    assert torch.equal(got["t"], view)


@pytest.mark.parametrize("name", DTYPES)
def test_a_frame_at_an_odd_address_survives(name: str) -> None:
    sent = of_every_dtype(name)
    first, frame = message({"t": sent})
    unaligned = memoryview(bytearray(b"x" + frame))[1:]
    _, got = decode([first, unaligned])
    assert raw_bytes(got["t"]) == raw_bytes(sent)
    assert got["t"].data_ptr() % sent.itemsize == 0


def test_a_parameter_that_needs_a_gradient_is_sent_without_it() -> None:
    sent = torch.nn.Parameter(torch.ones(2))
    _, got = decode(message({"t": sent}))
    assert torch.equal(got["t"], torch.ones(2)) and not got["t"].requires_grad


def test_header_survives() -> None:
    details = {"samples": 12, "loss": 0.5, "note": "höher"}
    sent = Header("adapter", 7, 123, details, [TensorHeader("a.b", "f32", (0,))])
    got, tensors = decode([arrived(encode_header(sent)), arrived(b"")])
    assert got == sent and list(tensors) == ["a.b"]


def test_a_message_without_tensors_survives() -> None:
    assert decode([header()])[1] == {}


@st.composite
def some_tensor(draw: st.DrawFn) -> Tensor:
    """Any listed dtype and shape, with any bits."""
    dtype = draw(st.sampled_from(list(DTYPES.values())))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    count = torch.Size(shape).numel()
    data = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    if dtype == torch.bool:
        data = bytes(value & 1 for value in data)
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)


some_tensors = st.dictionaries(st.text(max_size=8), some_tensor(), max_size=4)


@fuzz
@given(some_tensors)
def test_any_tensors_survive_bit_for_bit(sent: dict[str, Tensor]) -> None:
    _, got = decode(message(sent))
    assert list(got) == list(sent)
    for name, tensor in sent.items():
        assert got[name].dtype == tensor.dtype and got[name].shape == tensor.shape
        assert raw_bytes(got[name]) == raw_bytes(tensor)


# Copies


@pytest.mark.parametrize("name", DTYPES)
def test_encoding_a_contiguous_tensor_copies_nothing(name: str) -> None:
    tensor = torch.zeros(2, 3, dtype=DTYPES[name])
    _, (buffer,) = encode_tensors({"t": tensor})
    tensor.view(torch.uint8)[1, -1] = 1
    assert buffer.nbytes == tensor.nbytes and buffer[-1] == 1


def test_decoding_copies_nothing_that_is_large() -> None:
    first, frame = message({"t": torch.zeros(COPIED_BYTES // 2, dtype=torch.int16)})
    _, got = decode([first, frame])
    frame[-2:] = b"\x07\x00"
    assert got["t"][-1] == 7


def test_a_small_tensor_does_not_hold_what_it_came_in() -> None:
    """ZeroMQ receives many small frames in one buffer of 8 KB."""
    first, frame = message({"t": torch.zeros(COPIED_BYTES // 2 - 1, dtype=torch.int16)})
    released = weakref.ref(owner := Owner(frame))
    _, got = decode([first, memoryview(owner)])
    del owner
    assert released() is None and not got["t"].any()


def test_decoded_tensors_keep_their_frames_alive() -> None:
    _, got = decode(message({"t": torch.arange(1000)}))
    gc.collect()
    spoil = [bytearray(b"\xff" * 8000) for _ in range(50)]
    assert torch.equal(got["t"], torch.arange(1000)) and spoil


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning")
def test_a_frame_of_bytes_that_nobody_may_write_is_decoded() -> None:
    frames = [bytes(frame) for frame in message({"t": torch.arange(3)})]
    assert decode(frames)[1]["t"].tolist() == [0, 1, 2]


# Fuzzing: take() fails on anything that is neither a message nor a WireError


@fuzz
@given(st.lists(st.binary(max_size=64), max_size=5))
def test_any_frames_are_a_message_or_refused(frames: list[bytes]) -> None:
    take([arrived(frame) for frame in frames])


extents = st.integers(0, 3) | st.sampled_from([-1, 2**31, 2**32, 2**63, 2**64 - 1])
plain = st.none() | st.booleans() | st.integers(-2, 2**64 - 1) | st.floats() | st.text(max_size=4)
entries = st.tuples(
    st.sampled_from("ab"), st.sampled_from([*DTYPES, "c64"]), st.lists(extents, max_size=9)
)


@fuzz
@given(
    entries=st.lists(entries | plain, max_size=3),
    number=st.integers(0, 9) | plain,
    details=st.dictionaries(st.text(max_size=3), plain, max_size=2) | plain,
    lengths=st.lists(st.integers(0, 24), max_size=3),
)
@example(entries=[("a", "f32", [0, 2**32, 2**32])], number=1, details={}, lengths=[0])
def test_any_header_is_a_message_or_refused(
    entries: list[object], number: object, details: object, lengths: list[int]
) -> None:
    first = header(*entries, round=number, details=details)
    take([first, *(arrived(bytes(length)) for length in lengths)])


@fuzz
@given(some_tensors, st.data())
def test_a_damaged_message_is_a_message_or_refused(
    tensors: dict[str, Tensor], data: st.DataObject
) -> None:
    first, *rest = message(tensors)
    # Damage in the header itself, or in what deflating made of it.
    deflate = data.draw(st.booleans())
    frames = [bytearray(frame) for frame in (zlib.decompress(first) if deflate else first, *rest)]
    for _ in range(data.draw(st.integers(1, 3))):
        frame = data.draw(st.sampled_from(frames))
        place = data.draw(st.integers(0, len(frame)))
        end = data.draw(st.integers(place, min(len(frame), place + 3)))
        frame[place:end] = data.draw(st.binary(max_size=3))
    if deflate:
        frames[0][:] = zlib.compress(frames[0])
    take([memoryview(frame) for frame in data.draw(st.permutations(frames))])


@fuzz
@given(some_tensors.filter(bool), st.data())
def test_a_message_that_lost_a_frame_or_its_end_is_refused(
    tensors: dict[str, Tensor], data: st.DataObject
) -> None:
    frames = message(tensors)
    which = data.draw(st.integers(0, len(frames) - 1))
    kept = data.draw(st.integers(0, max(0, len(frames[which]) - 1)))
    shortened = [*frames[:which], frames[which][:kept], *frames[which + 1 :]]
    if len(frames[which]):
        assert take(shortened) is None
    assert take(frames[:which] + frames[which + 1 :]) is None


def test_a_bool_that_is_neither_true_nor_false_is_refused() -> None:
    header, good = message({"mask": torch.tensor([True, False])})
    assert decode([header, good])[1]["mask"].tolist() == [True, False]
    with pytest.raises(WireError, match="a bool byte is 0 or 1, found 2"):
        decode([header, bytes([1, 2])])
