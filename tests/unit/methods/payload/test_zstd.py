"""Zstandard: bytes there and back, none beyond what is expected, and refusal where it is not."""

import sys

import pytest
import torch
from made_stages import gaussian
from torch import Tensor

from methods.payload import PACK, Part, load
from methods.payload import zstd as stage_of
from testbed.config_error import ConfigError

zstd = stage_of.zstd


def tensors() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        gaussian(500),
        torch.randint(256, (77,), dtype=torch.uint8, generator=generator),
        torch.randint(-3, 3, (300,), dtype=torch.int8, generator=generator),
        torch.arange(100, dtype=torch.int32),
        gaussian(33).bfloat16(),
        torch.tensor([2.5]),
    ]


def layout(parts: list[Tensor]) -> list[Part]:
    return [Part(each.dtype, len(each)) for each in parts]


@pytest.mark.parametrize("options", ["", ":shuffle=false", ":level=1", ":level=22"])
def test_what_is_packed_is_unpacked_as_it_was(options: str) -> None:
    stage, parts = load(f"zstd{options}"), tensors()
    packed = stage.pack(parts)
    assert packed.dtype == torch.uint8 and packed.dim() == 1
    found = stage.unpack(packed, layout(parts))
    assert [each.dtype for each in found] == [each.dtype for each in parts]
    assert all(map(torch.equal, found, parts))
    assert stage.order == PACK and not stage.lossy


def test_shuffled_floats_are_fewer_bytes() -> None:
    """Each byte of an element has a code of its own, in a message of a few kilobytes too."""
    values = [gaussian(5_000) * 0.01]
    plain, shuffled = (
        len(load(f"zstd:shuffle={wanted}").pack(values)) for wanted in ("false", "true")
    )
    assert shuffled < 0.93 * plain


def frame(raw: bytes, **options: int) -> Tensor:
    """A frame by another packer, which is not told how much there will be."""
    names = zstd.CompressionParameter
    packer = zstd.ZstdCompressor(options={getattr(names, key): options[key] for key in options})
    packed = b"".join([*map(packer.compress, [raw[:1], raw[1:]]), packer.flush()])
    return torch.frombuffer(bytearray(packed), dtype=torch.uint8)


def test_a_higher_level_makes_fewer_bytes() -> None:
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(256, (500, 9), dtype=torch.uint8, generator=generator)
    text = words[torch.randint(500, (4_000,), generator=generator)].reshape(-1)
    fast, slow = (len(load(f"zstd:level={level}").pack([text])) for level in (1, 19))
    assert slow < fast


def test_of_what_is_longer_than_expected_comes_one_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred megabytes of zeros are some kilobytes."""
    real, lengths = zstd.ZstdDecompressor, []

    class Watched:
        def __init__(self, options: dict[int, int]) -> None:
            self._inner = real(options=options)

        def __getattr__(self, name: str) -> object:
            return getattr(self._inner, name)

        def decompress(self, data: object, max_length: int) -> bytes:
            lengths.append(len(found := self._inner.decompress(data, max_length)))
            return found

    bomb = frame(bytes(100_000_000), window_log=10)
    assert len(bomb) < 1_000_000
    monkeypatch.setattr(zstd, "ZstdDecompressor", Watched)
    with pytest.raises(ValueError, match="does not decompress to 4000 bytes"):
        load("zstd").unpack(bomb, [Part(torch.float32, 1_000)])
    assert lengths == [4_001]


def test_a_window_larger_than_what_is_expected_is_refused() -> None:
    packed = frame(bytes(4_000), window_log=27)
    with pytest.raises(ValueError, match="cannot be decompressed"):
        load("zstd").unpack(packed, [Part(torch.float32, 1_000)])


@pytest.mark.parametrize("change", ["short", "long", "two", "empty", "skippable"])
def test_what_is_not_one_whole_frame_is_refused(change: str) -> None:
    stage, parts = load("zstd"), tensors()
    packed = stage.pack(parts)
    skippable = torch.tensor([0x50, 0x2A, 0x4D, 0x18, 1, 0, 0, 0, 7], dtype=torch.uint8)
    changed = {
        "short": packed[:-1],
        "long": torch.cat([packed, torch.zeros(1, dtype=torch.uint8)]),
        "two": torch.cat([packed, packed]),
        "empty": packed[:0],
        "skippable": torch.cat([skippable, packed]),
    }[change]
    with pytest.raises(ValueError, match="decompress"):
        stage.unpack(changed, layout(parts))


def test_what_to_install_is_said_where_it_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_of, "zstd", None)
    with pytest.raises(ConfigError, match=r"3\.14 .* backports\.zstd, which is not installed"):
        load("zstd")


def test_python_has_it_or_its_backport() -> None:
    own = sys.version_info >= (3, 14)
    assert zstd.__name__ == ("compression.zstd" if own else "backports.zstd")
