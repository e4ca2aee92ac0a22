"""Every payload stage there is: what it makes of any tensor, in how many bytes, and back."""

import importlib
import math
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_stages import SHIPPED, byte_count
from torch import Tensor

from methods.payload import PACK, QUANTISE, SPARSIFY, VALUES, Lossy, Part, bits, load, names
from testbed.config_error import ConfigError
from testbed.transport.wire import DTYPES

some = settings(derandomize=True, deadline=None, max_examples=25)
WITH_OPTIONS = [
    *("int8:per=row", "topk:k=1", "topk:k=0.04", "topk:k=0.5", "qsgd:levels=1,bucket=3"),
    *("qsgd:levels=127", "qsgd:levels=5,bucket=1", "deflate:level=1,shuffle=false"),
    *("randomk:k=1", "randomk:k=0.5", "powersgd:rank=1", "cossgd:bits=1", "cossgd:bits=8"),
    *("cossgd:bits=3,clip=0.4", "stc:k=1", "stc:k=0.3", "zstd:level=19", "zstd:shuffle=false"),
]
TEXTS = [*names(), *WITH_OPTIONS]
VALUE_STAGES = [text for text in TEXTS if load(text).order != PACK]
PACKERS = [text for text in TEXTS if load(text).order == PACK]
FLOAT_MAX = torch.finfo(torch.float32).max


def topk_bytes(options: Any, shape: Sequence[int]) -> int:
    n = math.prod(shape)
    k = max(1, math.ceil(Fraction(str(options.k)) * n))
    return 4 * k + (math.ceil(n / 8) if 32 * k > n else 4 * k)


def int8_bytes(options: Any, shape: Sequence[int]) -> int:
    rows = shape[0] if options.per == "row" and len(shape) > 1 else 1
    return math.prod(shape) + 4 * rows


def qsgd_bytes(options: Any, shape: Sequence[int]) -> int:
    n = math.prod(shape)
    width = 1 + math.ceil(math.log2(options.levels + 1))
    return math.ceil(n * width / 8) + 4 * math.ceil(n / options.bucket)


def randomk_bytes(options: Any, shape: Sequence[int]) -> int:
    return 4 * max(1, math.ceil(Fraction(str(options.k)) * math.prod(shape)))


def powersgd_bytes(options: Any, shape: Sequence[int]) -> int:
    n = math.prod(shape)
    rows, columns = (shape[0], n // shape[0]) if len(shape) > 1 else (1, n)
    low = options.rank * (rows + columns)
    return 4 * (low if 2 * low < n else n)


def cossgd_bytes(options: Any, shape: Sequence[int]) -> int:
    return math.ceil(math.prod(shape) * options.bits / 8) + 8


def stc_bytes(options: Any, shape: Sequence[int]) -> int:
    n = math.prod(shape)
    k = max(1, math.ceil(Fraction(str(options.k)) * n))
    golden = (math.sqrt(5) + 1) / 2
    best = math.log2(math.log(golden - 1) / math.log(1 - k / n)) if k < n else -1
    b = max(0, 1 + math.floor(best))
    return 4 + math.ceil(k / 8) + math.ceil((k * (b + 1) + (n - k) // 2**b) / 8)


BYTES: dict[str, Callable[[Any, Sequence[int]], int]] = {
    "bf16": lambda options, shape: 2 * math.prod(shape),
    "cossgd": cossgd_bytes,
    "fp16": lambda options, shape: 2 * math.prod(shape),
    "int8": int8_bytes,
    "powersgd": powersgd_bytes,
    "qsgd": qsgd_bytes,
    "randomk": randomk_bytes,
    "sign": lambda options, shape: math.ceil(math.prod(shape) / 8) + 4,
    "stc": stc_bytes,
    "topk": topk_bytes,
}
"""Payload bytes by what a stage's paper or docstring says; where they vary, the most."""


def cast_error(bits: int, least: float, largest: float) -> Callable[[Any, Tensor], Tensor]:
    def error(options: Any, x: Tensor) -> Tensor:
        return (x.abs() * 2.0**-bits + least / 2).maximum(x.abs() - largest)

    return error


def int8_error(options: Any, x: Tensor) -> Tensor:
    rows = x.reshape(x.shape[0] if options.per == "row" and x.dim() > 1 else 1, -1)
    steps = rows.abs().amax(dim=1, keepdim=True) / 127
    return (0.5001 * steps + 2e-45).expand_as(rows).reshape(x.shape)


def qsgd_error(options: Any, x: Tensor) -> Tensor:
    steps = [
        (part.abs().max() / options.levels).expand_as(part)
        for part in x.reshape(-1).split(options.bucket)
    ]
    return (torch.cat(steps) * (1 + 1e-4) + 2e-45).reshape(x.shape)


def sign_error(options: Any, x: Tensor) -> Tensor:
    return (x.abs() - x.abs().mean()).abs() + 1e-6 * x.abs().mean() + 2e-45


def topk_error(options: Any, x: Tensor) -> Tensor:
    k = max(1, math.ceil(Fraction(str(options.k)) * x.numel()))
    least_kept = x.abs().reshape(-1).sort(descending=True).values[k - 1]
    return torch.where(x.abs() > least_kept, 0.0, least_kept)


def cossgd_error(options: Any, x: Tensor) -> Tensor:
    """A step of the angle is none of the value longer than the largest one left, by pi / 2."""
    clip = options.clip if options.clip is not None else 0 if options.bits == 8 else 0.01
    ranked = x.abs().reshape(-1).sort().values
    most = ranked[len(ranked) - 1 - int(clip * len(ranked))] or ranked[-1]
    half = most * math.pi / 2 / (2**options.bits - 1)
    return half * (1 + 1e-5) + 2e-45 + (x.abs() - most).clamp(min=0)


def stc_error(options: Any, x: Tensor) -> Tensor:
    k = max(1, math.ceil(Fraction(str(options.k)) * x.numel()))
    kept = x.abs().reshape(-1).sort(descending=True).values[:k]
    error = torch.where(x.abs() < kept[-1], x.abs(), (x.abs() - kept.mean()).abs())
    # Of those alike some are kept.
    error = torch.where(x.abs() == kept[-1], error.maximum(x.abs()), error)
    return error + 1e-6 * kept.mean() + 2e-45


ERROR: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "bf16": cast_error(8, 2.0**-133, torch.finfo(torch.bfloat16).max),
    "cossgd": cossgd_error,
    "fp16": cast_error(11, 2.0**-24, 65504),
    "int8": int8_error,
    "qsgd": qsgd_error,
    "sign": sign_error,
    "stc": stc_error,
    "topk": topk_error,
}
"""Greatest error of each value, float64; of a stage that is not here, no more than all values."""


def name_of(text: str) -> str:
    return text.partition(":")[0]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def spread(*shape: int) -> Tensor:
    """Magnitudes from 1e-20 to 1e20."""
    return normal(*shape) * 10 ** (7 * normal(*shape, seed=1)).clamp(-20, 20)


SHAPES = [(), (1,), (7,), (8,), (33,), (1, 1), (5, 3), (1, 700), (700, 1), (3, 40, 7), (2, 1, 3, 4)]
VALUES_OF: dict[str, Callable[..., Tensor]] = {
    "normal": normal,
    "small": lambda *shape: 1e-4 * normal(*shape),
    "spread": spread,
    "all equal": lambda *shape: torch.full(shape, -0.37),
    "zero": lambda *shape: torch.zeros(shape),
    "minus zero": lambda *shape: -torch.zeros(shape),
    "huge": lambda *shape: (1e38 * normal(*shape)).clamp(-FLOAT_MAX, FLOAT_MAX),
    "largest": lambda *shape: torch.full(shape, FLOAT_MAX),
    "tiny": lambda *shape: 1e-40 * normal(*shape),
    "at the edge of tiny": lambda *shape: 5e-38 * normal(*shape),
    "one among zeros": lambda *shape: (torch.arange(math.prod(shape)) == 0).float().view(shape),
}


def check_layout(parts: Mapping[str, Tensor], layout: Mapping[str, Part]) -> None:
    assert list(parts) == list(layout)
    for name, part in layout.items():
        assert parts[name].dtype == part.dtype and parts[name].dtype in DTYPES.values(), name
        assert parts[name].dim() == 1 and parts[name].is_contiguous(), name
        longest = len(parts[name]) == part.length if part.exact else len(parts[name]) <= part.length
        assert longest, f"{name}: {len(parts[name])} of {part}"


def round_trip(text: str, values: Tensor, seed: int = 3) -> Tensor:
    stage, before = load(text), values.clone()
    parts = stage.encode(values, seed, {})
    assert torch.equal(values.view(torch.int32), before.view(torch.int32)), "changed its input"
    check_layout(parts, stage.parts(values.shape))
    # As they arrive: memory of their own.
    parts = {name: part.clone() for name, part in parts.items()}
    arrived = {name: part.clone() for name, part in parts.items()}
    found: Tensor = stage.decode(parts, values.shape, seed)
    for name, part in arrived.items():
        assert torch.equal(part.view(torch.uint8), parts[name].view(torch.uint8)), "changed it"
    assert found.dtype == torch.float32 and found.shape == values.shape
    return found


def check_error(text: str, values: Tensor) -> None:
    stage, found = load(text), round_trip(text, values)
    assert found.isfinite().all()
    error = (found.double() - values.double()).abs()
    if bound := ERROR.get(name_of(text)):
        assert (error <= bound(stage.options, values.double())).all()
    else:
        assert error.norm() <= values.double().norm() * (1 + 1e-5)


@pytest.mark.parametrize("name", names())
def test_a_stage_says_what_it_is(name: str) -> None:
    stage = load(name)
    assert stage.order in (SPARSIFY, QUANTISE, SPARSIFY | QUANTISE, PACK)
    module = importlib.import_module(f"methods.payload.{name}")
    assert stage.lossy == issubclass(module.Options, Lossy)
    assert stage.order != PACK or not stage.lossy


def test_what_the_tests_know_is_a_stage() -> None:
    values = {name_of(text) for text in VALUE_STAGES}
    assert BYTES.keys() == values, "each stage has a line in BYTES: its bytes by its formula"
    assert ERROR.keys() <= values


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("text", VALUE_STAGES)
def test_bytes_are_those_of_the_formula(text: str, shape: tuple[int, ...]) -> None:
    stage = load(text)
    assert byte_count(stage, shape) == BYTES[name_of(text)](stage.options, shape)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", VALUES_OF)
@pytest.mark.parametrize("text", VALUE_STAGES)
def test_what_comes_back_is_within_its_bound(text: str, kind: str) -> None:
    for shape in SHAPES:
        check_error(text, VALUES_OF[kind](*shape))


@pytest.mark.thorough
@some
@given(
    shape=st.lists(st.integers(1, 12), max_size=4).map(tuple),
    magnitude=st.floats(-44, 38),
    seed=st.integers(0, 2**63 - 1),
)
@pytest.mark.parametrize("text", VALUE_STAGES)
def test_any_shape_and_magnitude(
    text: str, shape: tuple[int, ...], magnitude: float, seed: int
) -> None:
    values = normal(*shape, seed=seed % 1000) * torch.tensor(10.0**magnitude)
    check_error(text, values.clamp(-FLOAT_MAX, FLOAT_MAX))


@pytest.mark.thorough
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("text", VALUE_STAGES)
def test_what_is_not_finite_is_told(text: str, wrong: float) -> None:
    for shape in SHAPES:
        for values in (normal(*shape), torch.zeros(shape), 1e38 * normal(*shape).sign()):
            values.view(-1)[-1] = wrong
            assert not round_trip(text, values).isfinite().all(), shape
        assert not round_trip(text, torch.full(shape, wrong)).isfinite().all(), shape
    both = torch.tensor([math.nan, math.inf, -math.inf, *[1.0] * 40])
    assert not round_trip(text, both).isfinite().all()


@pytest.mark.parametrize("text", VALUE_STAGES)
def test_a_seed_is_all_that_is_drawn_from(text: str) -> None:
    stage, values, state = load(text), normal(40, 30), torch.random.get_rng_state()
    once, again = (stage.encode(values, 5, {}) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(once[name], again[name]) for name in once)
    found, same = (stage.decode(once, values.shape, 5) for _ in range(2))
    assert torch.equal(found, same)


@pytest.mark.parametrize("text", VALUE_STAGES)
def test_a_stage_goes_on_with_its_memory(text: str) -> None:
    stage, memory = load(text), {}
    for seed in range(3):
        values = normal(20, 10, seed=seed)
        parts = stage.encode(values, seed, memory)
        check_layout(parts, stage.parts(values.shape))
        assert stage.decode(parts, values.shape, seed).isfinite().all()
        assert all(isinstance(kept, Tensor) for kept in memory.values())
    other = load(text).decode(parts, values.shape, seed)
    assert torch.equal(other, stage.decode(parts, values.shape, seed)), "a receiver has no memory"


def garbage(layout: Mapping[str, Part], source: np.random.Generator) -> Iterator[dict[str, Tensor]]:
    """Parts of that layout that nobody made."""

    def made(fill: Callable[[int], bytes]) -> dict[str, Tensor]:
        found = {}
        for name, part in layout.items():
            length = part.length if part.exact else int(source.integers(0, part.length + 1))
            raw = np.frombuffer(fill(length * part.dtype.itemsize), np.uint8).copy()
            found[name] = torch.from_numpy(raw).view(part.dtype)
        return found

    yield made(lambda size: bytes(size))
    yield made(lambda size: b"\xff" * size)
    yield made(lambda size: b"\x7f" * size)
    for _ in range(10):
        yield made(source.bytes)


def changed(parts: Mapping[str, Tensor], source: np.random.Generator) -> dict[str, Tensor]:
    """One byte of one part is another."""
    found = {name: part.clone() for name, part in parts.items()}
    chosen = list(found.values())[source.integers(len(found))].view(torch.uint8)
    chosen[source.integers(len(chosen))] ^= int(source.integers(1, 256))
    return found


@pytest.mark.thorough
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("text", VALUE_STAGES)
def test_what_nobody_made_is_taken_or_refused(text: str, shape: tuple[int, ...]) -> None:
    stage, source = load(text), np.random.default_rng(0)
    layout = stage.parts(shape)
    parts = stage.encode(normal(*shape), 3, {})
    wrong = [*garbage(layout, source), *(changed(parts, source) for _ in range(20))]
    for each in wrong:
        try:
            found = stage.decode(each, shape, 3)
        except ValueError:
            continue
        assert found.dtype == torch.float32 and found.shape == shape


# Packers.

TENSORS: dict[str, list[Tensor]] = {
    "one value": [torch.tensor([1.5])],
    "one byte": [torch.tensor([3], dtype=torch.uint8)],
    "every dtype": [torch.arange(1, 20).to(dtype) for dtype in DTYPES.values()],
    "alike": [torch.zeros(5000), torch.full((300,), 7, dtype=torch.int32)],
    "raw values": [normal(3000)],
    "not finite": [torch.tensor([math.nan, math.inf, -math.inf, -0.0, FLOAT_MAX, 1e-40])],
}


def raw(tensors: Sequence[Tensor]) -> list[list[int]]:
    return [each.contiguous().view(torch.uint8).tolist() for each in tensors]


@pytest.mark.parametrize("kind", TENSORS)
@pytest.mark.parametrize("text", PACKERS)
def test_a_packer_gives_every_bit_back(text: str, kind: str) -> None:
    packer, tensors = load(text), TENSORS[kind]
    packed = packer.pack(tensors)
    assert packed.dtype == torch.uint8 and packed.dim() == 1
    found = packer.unpack(packed, [Part(each.dtype, len(each)) for each in tensors])
    assert [each.dtype for each in found] == [each.dtype for each in tensors]
    assert raw(found) == raw(tensors)
    if kind == "alike":
        assert len(packed) < 1000


@pytest.mark.parametrize("text", PACKERS)
def test_a_packer_refuses_what_is_of_another_length(text: str) -> None:
    packer = load(text)
    packed = packer.pack([torch.zeros(1000)])
    for length in (1, 999, 1001, 10_000_000):
        with pytest.raises(ValueError):
            packer.unpack(packed, [Part(torch.float32, length)])
    for wrong in (packed[:-1], torch.cat([packed, packed[:1]]), packed[:0]):
        with pytest.raises(ValueError):
            packer.unpack(wrong, [Part(torch.float32, 1000)])


@pytest.mark.parametrize("length", [0, 1000])
@pytest.mark.parametrize("text", PACKERS)
def test_a_packer_unpacks_no_more_than_it_should(text: str, length: int) -> None:
    packer = load(text)
    packed = packer.pack([torch.zeros(4 << 20)])
    tracemalloc.start()
    try:
        with pytest.raises(ValueError):
            packer.unpack(packed, [Part(torch.float32, length)])
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("text", PACKERS)
def test_a_packer_takes_or_refuses_what_nobody_packed(text: str) -> None:
    packer, source = load(text), np.random.default_rng(0)
    tensors = [normal(300), torch.arange(100, dtype=torch.uint8)]
    layout = [Part(each.dtype, len(each)) for each in tensors]
    packed = packer.pack(tensors)
    noise = [torch.from_numpy(source.integers(0, 256, 900).astype(np.uint8)) for _ in range(20)]
    wrong = [changed({"all": packed}, source)["all"] for _ in range(200)]
    for each in [*noise, *wrong]:
        try:
            found = packer.unpack(each, layout)
        except ValueError:
            continue
        assert [Part(one.dtype, len(one)) for one in found] == layout


# What each of them is.


def test_fp16_has_its_largest_for_what_is_beyond_it() -> None:
    values = torch.tensor([65504.0, 65520.0, 1e6, -FLOAT_MAX, math.inf, -math.inf])
    found = round_trip("fp16", values).tolist()
    assert found == [65504.0, 65504.0, 65504.0, -65504.0, math.inf, -math.inf]


def test_bf16_has_its_largest_for_what_would_round_to_infinity() -> None:
    largest = torch.finfo(torch.bfloat16).max
    found = round_trip("bf16", torch.tensor([FLOAT_MAX, -FLOAT_MAX, math.inf, 1e-40]))
    assert found[:3].tolist() == [largest, -largest, math.inf]
    assert found[3] > 0


def test_topk_takes_the_largest_and_says_where_they_were() -> None:
    values = torch.zeros(1000)
    values[[3, 500, 999]] = torch.tensor([-2.0, 1.0, 5.0])
    parts = load("topk:k=0.003").encode(values, 0, {})
    assert parts["places"].tolist() == [3, 500, 999]
    assert parts[VALUES].tolist() == [-2.0, 1.0, 5.0]


def test_topk_takes_no_value_more_than_its_share_in_decimals() -> None:
    """In floats 0.07 of 100 is more than 7."""
    assert load("topk:k=0.07").kept(100) == 7
    assert load("topk:k=0.0701").kept(100) == 8
    assert load("topk:k=1e-9").kept(100) == 1


def test_int8_with_a_scale_a_row_keeps_small_rows() -> None:
    values = torch.stack([normal(50), 1e-4 * normal(50, seed=1)])
    by_tensor, by_row = (round_trip(text, values)[1] for text in ("int8", "int8:per=row"))
    assert not by_tensor.any()
    assert (by_row - values[1]).abs().max() < 2e-6


@pytest.mark.parametrize(
    ("text", "count"),
    [
        *(("fp16", 607_316), ("bf16", 607_316), ("int8", 303_946), ("sign", 38_246)),
        *(("qsgd:levels=7,bucket=512", 154_349), ("topk:k=0.01", 24_478)),
    ],
)
def test_bytes_of_the_shipped_model(text: str, count: int) -> None:
    assert byte_count(load(text), *SHIPPED) == count


def test_bytes_of_as_many_values_in_one_tensor() -> None:
    assert byte_count(load("qsgd:levels=7,bucket=512"), (303_658,)) == 154_205
    assert byte_count(load("topk:k=0.01"), (303_658,)) == 24_296


@pytest.mark.thorough
@pytest.mark.parametrize("text", ["qsgd", "qsgd:levels=1", "qsgd:levels=5,bucket=20"])
def test_qsgd_is_unbiased(text: str) -> None:
    stage, values, draws = load(text), normal(100), 4000
    total = torch.zeros(100, dtype=torch.float64)
    for seed in range(draws):
        total += stage.decode(stage.encode(values, seed, {}), values.shape, seed)
    step = values.abs().max() / stage.options.levels
    # A value's standard deviation is half a step at most.
    assert ((total / draws - values).abs() < 5 * step / 2 / math.sqrt(draws)).all()


def test_qsgd_draws_for_each_value_and_seed_anew() -> None:
    values = torch.tensor([1.0, *[0.5 / 7] * 511])
    one, other = (round_trip("qsgd", values, seed) for seed in (1, 2))
    assert one[0] == other[0] == 1
    for found in (one, other):
        assert 0.4 < (found[1:] > 0).float().mean() < 0.6
    assert 0.4 < (one[1:] == other[1:]).float().mean() < 0.6


def test_sign_sends_the_mean_magnitude_and_asks_for_feedback() -> None:
    stage = load("sign")
    assert stage.options.feedback
    assert not load("sign:feedback=false").options.feedback
    values = torch.tensor([3.0, -1.0, 0.0, -4.0])
    assert round_trip("sign", values).tolist() == [2.0, -2.0, 2.0, -2.0]


def test_sign_with_feedback_says_everything_in_time() -> None:
    """Of one update sent again and again the mean of what comes is the update."""
    update, rounds = normal(60), 300
    residual, sent = torch.zeros(60), torch.zeros(60)
    for _ in range(rounds):
        wanted = residual + update
        found = round_trip("sign", wanted)
        residual, sent = wanted - found, sent + found
    alone = (round_trip("sign", update) - update).norm() / update.norm()
    together = (sent / rounds - update).norm() / update.norm()
    assert alone > 0.5 and together < 0.05


# Bits.


@some
@given(numbers=st.lists(st.integers(0, 255), min_size=1, max_size=70))
@pytest.mark.parametrize("width", range(1, 9))
def test_numbers_come_back_from_their_bits(width: int, numbers: list[int]) -> None:
    codes = torch.tensor(numbers, dtype=torch.uint8) & 2**width - 1
    packed = bits.pack(codes, width)
    assert packed.dtype == torch.uint8
    assert len(packed) == bits.packed_bytes(len(codes), width) == math.ceil(len(codes) * width / 8)
    text = "".join(f"{code:0{width}b}" for code in codes.tolist())
    whole = text.ljust(8 * len(packed), "0")
    assert packed.tolist() == [int(whole[at : at + 8], 2) for at in range(0, len(whole), 8)]
    assert torch.equal(bits.unpack(packed, width, len(codes)), codes)
    shape = bits.pack(codes.to("meta"), width)
    assert (shape.is_meta, shape.dtype, shape.shape) == (True, packed.dtype, packed.shape)


# Names and options.


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("int9", ["no such stage", "did you mean int8", "deflate, fp16"]),
        ("", ["no such stage", "int8"]),
        ("none", ["without a stage", "leave it out"]),
        ("topk:", ["stage topk", "KEY=VALUE", "''"]),
        ("topk:k=0.1,,feedback=true", ["stage topk", "KEY=VALUE", "''"]),
        ("int8,deflate", ["each stage by itself", "--stage=int8 --stage=deflate"]),
        ("topk+int8:per=row", ["each stage by itself", "--stage=topk --stage=int8"]),
        ("__init__", ["no such stage"]),
        ("bits", ["no such stage"]),
        ("cast", ["no such stage"]),
        ("../fedavg", ["no such stage"]),
        ("topk:share=1", ["stage topk", "share", "one of", "k"]),
        ("topk:k=0", ["stage topk", "k = 0", "> 0"]),
        ("topk:k=1.5", ["stage topk", "k = 1.5", "<= 1"]),
        ("topk:k=nan", ["stage topk", "k = nan", "finite"]),
        ("topk:k=many", ["stage topk", "k = 'many'", "float"]),
        ("topk:k", ["KEY=VALUE", "'k'"]),
        ("topk:k=0.1,k=0.2", ["stage topk", "k", "twice"]),
        ("topk:feedback=maybe", ["feedback = 'maybe'", "bool"]),
        ("int8:per=column", ["per = 'column'", "tensor, row"]),
        ("qsgd:levels=0", ["levels = 0", ">= 1"]),
        ("qsgd:levels=128", ["levels = 128", "<= 127"]),
        ("qsgd:levels=2.5", ["levels = 2.5", "int"]),
        ("qsgd:levels=1" + 20 * "0", ["levels = 1e+20", "int", "more than 18 digits"]),
        ("qsgd:bucket=0", ["bucket = 0", ">= 1"]),
        ("deflate:level=10", ["level = 10", "<= 9"]),
        ("deflate:feedback=true", ["feedback", "one of level, shuffle"]),
        ("topk:feedback=true,decay=1.5", ["decay = 1.5", "1.0"]),
        ("topk:feedback=true,decay=-0.1", ["decay = -0.1", "0.0"]),
        ("topk:decay=0.5", ["decay = 0.5 goes with feedback = true alone"]),
        ("sign:feedback=false,decay=0", ["decay = 0 goes with feedback = true alone"]),
        ("randomk:decay=0.5", ["decay = 0.5 goes with feedback = true alone"]),
    ],
)
def test_what_is_no_stage_is_refused_with_what_would_be_right(text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        load(text)
    assert [word for word in words if word not in str(refused.value)] == []


def test_options_are_read_as_a_methods_are() -> None:
    options = load(" topk: k=1e-3, feedback=True ").options
    assert (options.k, options.feedback) == (0.001, True)
    assert load("int8:per=row").options.per == "row"
    assert load("deflate:level=9,shuffle=false").options.shuffle is False
