"""The wire: what cannot be sent and frames that are no message are refused, large ones unread."""

import pytest
import torch
from made_frames import SPARE_BYTES, arrived, deflated, header, packed, refusal

from testbed.transport.wire import (
    BYTES_A_TENSOR,
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
