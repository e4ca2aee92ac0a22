"""The wire: tensors survive it bit for bit, and nothing but a WireError comes of bad frames."""

import contextlib
import gc
import resource
import sys
import weakref
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from testbed.transport.wire import (
    BYTES_A_TENSOR,
    COPIED_BYTES,
    DTYPES,
    FEW_TENSORS,
    MAX_FRAME_BYTES,
    MAX_HEADER_BYTES,
    MAX_TENSORS,
    Header,
    TensorHeader,
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


# Refusals


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn], ids=str)
def test_sending_a_dtype_without_a_name_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(WireError, match=f"weight: {dtype} cannot be sent; known: f64, f32"):
        encode_tensors({"weight": torch.zeros(2, dtype=dtype)})


@pytest.mark.parametrize(
    "header",
    [
        Header("k" * 201, 1, 0),
        Header("k", -1, 0),
        Header("k", 1, 0, {"reason": "r" * 1001}),
        Header("k", 1, 0, {str(n): n for n in range(101)}),
        Header("k", 1, 0, {"loss": None}),  # type: ignore[dict-item]
        Header("k", 1, 0, {}, [TensorHeader("w", "f32", (1,) * 9)]),
        Header("k", 1, 0, {}, [TensorHeader(f"{n:0200}", "f32", (1,)) for n in range(6000)]),
    ],
    ids=["kind", "round", "text", "details", "none", "dimensions", "size"],
)
def test_a_header_that_nobody_would_take_is_not_sent(header: Header) -> None:
    with pytest.raises(WireError, match=r"'k+' cannot be sent: "):
        encode_header(header)


def test_a_tensor_that_no_frame_holds_is_not_sent() -> None:
    large = torch.empty(MAX_FRAME_BYTES + 1, dtype=torch.uint8, device="meta")
    with pytest.raises(WireError, match=f"w: {MAX_FRAME_BYTES + 1} bytes; at most"):
        encode_tensors({"w": large})


def test_no_frames_are_refused() -> None:
    assert refusal() == "no frames"


@pytest.mark.parametrize("dtype", ["f8", "float32", "O", "", "F32"])
def test_an_unknown_dtype_is_refused(dtype: str) -> None:
    assert refusal(header(["w", dtype, [1]]), arrived(b"0000")) == (
        f"tensor 'w': dtype {dtype!r} is not allowed"
    )


@pytest.mark.parametrize("length", [0, 1, 23, 25, 48])
def test_a_frame_of_the_wrong_length_is_refused(length: int) -> None:
    text = refusal(header(["w", "f32", [2, 3]]), arrived(bytes(length)))
    assert text == f"tensor 'w': f32[2, 3] takes 24 bytes, its frame has {length}"


def test_an_empty_tensor_with_bytes_is_refused() -> None:
    assert "takes 0 bytes, its frame has 4" in refusal(header(["w", "f32", [0]]), arrived(b"0000"))


@pytest.mark.parametrize("frames", [0, 2, 3])
def test_too_few_or_too_many_frames_are_refused(frames: int) -> None:
    text = refusal(header(["w", "u8", [1]]), *[arrived(b"0")] * frames)
    assert text == f"1 tensors announced, {frames} frames sent"


def tiny(count: int, size: int) -> list[memoryview]:
    entries = [[f"t{number}", "u8", [size]] for number in range(count)]
    return [header(*entries), *[arrived(bytes(size))] * count]


def test_many_tiny_tensors_are_refused_unread() -> None:
    """Each takes two kilobytes beside its bytes: 9,999 of one byte took twenty megabytes."""
    refused = "more tensors than a message of so few bytes may have"
    assert refusal(*tiny(9_999, 1)) == refused
    assert refusal(arrived(b"no header"), *[arrived(b"0")] * 9_999) == refused
    assert refusal(*tiny(FEW_TENSORS + 10, 0)) == refused
    assert len(decode(tiny(FEW_TENSORS, 0))[1]) == FEW_TENSORS
    assert len(decode(tiny(2_000, BYTES_A_TENSOR))[1]) == 2_000


def test_many_tiny_tensors_are_not_sent() -> None:
    one = torch.zeros(1, dtype=torch.uint8)
    some = {f"t{number}": one for number in range(FEW_TENSORS + 1)}
    with pytest.raises(WireError, match="'k' cannot be sent: 257 tensors, of so few bytes at most"):
        encode_header(Header("k", 1, 0, {}, encode_tensors(some)[0]))


def test_a_name_twice_is_refused() -> None:
    twice = header(["w", "u8", [1]], ["w", "u8", [1]])
    assert refusal(twice, arrived(b"0"), arrived(b"1")) == "tensor 'w' twice"


def test_a_header_over_its_limit_is_refused_unread() -> None:
    text = refusal(arrived(bytes(header()).ljust(MAX_HEADER_BYTES + 1)))
    assert text == f"header of {MAX_HEADER_BYTES + 1} bytes; at most {MAX_HEADER_BYTES}"


@pytest.mark.parametrize("extent", [-1, -(2**63), MAX_FRAME_BYTES + 1, 2**64 - 1, 1.0, "1", None])
def test_an_extent_that_is_none_is_refused(extent: object) -> None:
    assert refusal(header(["w", "u8", [extent]]), arrived(b"0")).startswith("header: Expected")


@pytest.mark.parametrize(
    "shape",
    [
        [2**32, 2**32],
        [2**32] * 8,
        [2**31, 2**31, 4],
        [0, 2**32, 2**32, 2**32],
        [2**32, 2**32, 2**32, 0],
        [2**32, 0, 2**32],
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["u8", "f64"])
def test_a_shape_whose_product_overflows_is_refused(name: str, shape: list[int]) -> None:
    text = refusal(header(["w", name, shape]), arrived(b""))
    assert text == f"tensor 'w': shape {shape} is too large"


def test_the_largest_shape_is_still_only_as_large_as_its_frame() -> None:
    text = refusal(header(["w", "f64", [2**32]]), arrived(b"00000000"))
    assert f"takes {2**35} bytes, its frame has 8" in text


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": 1},
        {"kind": None},
        {"kind": b"model"},
        {"kind": "x" * 201},
        {"round": -1},
        {"round": 2**31},
        {"round": 1.5},
        {"round": "1"},
        {"round": True},
        {"sent_ns": "now"},
        {"sent_ns": None},
        {"details": []},
        {"details": {"a": None}},
        {"details": {"a": [1]}},
        {"details": {"a": "x" * 1001}},
        {"details": {"x" * 201: 1}},
        {"details": {1: 1}},
        {"details": {str(number): 1 for number in range(101)}},
        {"tensors": {}},
        {"tensors": "w"},
        {"tensors": [["w", "u8"]]},
        {"tensors": [["w", "u8", [1], "more"]]},
        {"tensors": [["w", "u8", 1]]},
        {"tensors": [["w", "u8", [1] * 9]]},
        {"tensors": [["w" * 201, "u8", [1]]]},
        {"tensors": [[1, "u8", [1]]]},
        {"tensors": [["w", "u" * 9, [1]]]},
        {"tensors": [{"name": "w", "dtype": "u8", "shape": [1]}]},
        {"tensors": [["w", "u8", [0]]] * (MAX_TENSORS + 1)},
        {"more": 1},
    ],
    ids=lambda fields: str(fields)[:40],
)
def test_a_header_with_a_wrong_field_is_refused(fields: dict[str, object]) -> None:
    # The tensor's frame is there, so that the field is all that can be refused.
    assert refusal(header(**fields), arrived(b"0")).startswith("header: Expected")


DEEP = 300_000


@pytest.mark.parametrize(
    "frame",
    [
        b"\x91" * DEEP,
        b"\x81" * DEEP,
        packed()[:-1] + b"\x91" * DEEP,
        b"\x95\xa1k\x01\x00" + b"\x81\xa1a" * DEEP,
        b"\x96" + packed()[1:] + b"\x91" * DEEP + b"\xc0",
    ],
    ids=["arrays", "maps", "in the tensors", "in the details", "in a field too many"],
)
def test_deep_nesting_is_refused(frame: bytes) -> None:
    assert refusal(deflated(frame)).startswith("header: ")


HUGE = b"\xff\xff\xff\xff"


@pytest.mark.parametrize(
    "frame",
    [
        b"\xdd" + HUGE,
        b"\x95\xdb" + HUGE,
        b"\x95\xc6" + HUGE,
        b"\x95\xa1k\x01\x00\xdf" + HUGE,
        b"\x95\xa1k\x01\x00\x80\xdd" + HUGE,
        b"\x95\xa1k\x01\x00\x80\x91\x93\xa1w\xa2u8\xdd" + HUGE,
    ],
    ids=["fields", "text", "binary", "details", "tensors", "shape"],
)
def test_a_length_that_the_header_does_not_have_is_refused(frame: bytes) -> None:
    assert refusal(deflated(frame)).startswith("header: ")


@pytest.mark.parametrize("frame", [b"", b"\x95", b"{}", packed()[:-1], b"\x95\xa1\xff"])
def test_a_header_that_is_no_header_is_refused(frame: bytes) -> None:
    assert refusal(deflated(frame)).startswith("header: ")


@pytest.mark.parametrize("frame", [b"", packed(), bytes(header())[:-1], b"x" + bytes(header())])
def test_a_header_that_is_not_deflated_is_refused(frame: bytes) -> None:
    assert refusal(arrived(frame)).startswith("header")


@pytest.mark.parametrize("frame", [deflated(packed() + b"\0"), arrived(bytes(header()) + b"\0")])
def test_bytes_after_the_header_are_refused(frame: memoryview) -> None:
    assert refusal(frame).startswith("header")


@pytest.mark.parametrize("size", [MAX_HEADER_BYTES + 1, 2 * SPARE_BYTES])
def test_a_header_that_swells_over_its_limit_is_refused(size: int) -> None:
    text = refusal(deflated(bytes(size)))
    assert text == f"header is not one deflated block of at most {MAX_HEADER_BYTES} bytes"


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
