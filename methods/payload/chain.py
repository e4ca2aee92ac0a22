"""A chain of stages: what a message's tensors become on their way, and back.

Each floating-point tensor goes through the stages by itself, as what it differs by from its base;
like parts of all tensors are then one tensor of the message, whose name begins with a tilde. Whole
numbers stay as they are. Where no stage loses anything there is no difference taken, which would.

What arrives is held against the layout that the shapes allow, before anything is decoded.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from methods import payload
from methods.payload import PACK, QUANTISE, SPARSIFY, VALUES, Lossy, Packer, Part, Stage
from testbed.config_error import ConfigError
from testbed.seeds import derive

_DOES = {
    SPARSIFY: "leave values out",
    QUANTISE: "take fewer bits for each value",
    PACK: "pack bytes",
}
_PACKED, _LENGTHS, _RESIDUAL = "~packed", "#", "residual"
Memory = dict[str, dict[str, Tensor]]
"""By tensor, or by stage and tensor: what a sender keeps from one message to the next."""


class Size(NamedTuple):
    """Bytes of a message's tensors after a stage."""

    stage: str
    bytes: int


class Chain:
    """Stages in a row, for one way; none where ``texts`` is empty."""

    def __init__(self, texts: Sequence[str]) -> None:
        """``texts``: as ``payload.load`` takes them.

        Raises:
            ConfigError: a stage is none, or stands where it makes no sense.
        """
        loaded = [payload.load(text) for text in texts]
        self.names = [text.strip().partition(":")[0] for text in texts]
        for (one, before), (name, after) in pairwise(zip(self.names, loaded, strict=True)):
            if not _follows(after.order, before.order):
                raise ConfigError(f"stage = {name!r} after {one!r}: {_right(after, before)}")
        self._packer: Packer | None = None
        if loaded and loaded[-1].order == PACK:
            self._packer = loaded.pop()
        self._stages: list[Stage] = loaded
        self.lossy = any(stage.lossy for stage in self._stages)
        self.leaves_out = any(stage.order & SPARSIFY for stage in self._stages)
        options = [getattr(stage, "options", None) for stage in self._stages]
        fed_back = [each for each in options if isinstance(each, Lossy) and each.feedback]
        self.feedback = bool(fed_back)
        self.asks_feedback = any(each.decay < 1 or not type(each)().feedback for each in fed_back)
        """Whether it is asked for, and no stage's own default alone."""
        # Of all stages there is one residual.
        self._decay = min((each.decay for each in fed_back), default=1.0)
        self.of_weights = any(getattr(each, "weights", False) for each in options)
        """Whether it codes weights themselves where it could what they differ by."""

    def __bool__(self) -> bool:
        return bool(self.names)

    def check(self, shapes: Sequence[Sequence[int]]) -> None:
        """Raises ValueError where a stage changes nothing of any tensor; all are of these shapes.

        Without shapes nothing is known of them.
        """
        left = [shape for shape in shapes if math.prod(shape)]
        for name, stage in zip(self.names, self._stages, strict=False):
            if not left:
                return
            if check := getattr(stage, "check", None):
                try:
                    check(left)
                except ValueError as error:
                    raise ValueError(f"stage {name}: {error}") from error
            made = [stage.parts(shape).get(VALUES) for shape in left]
            left = [(part.length,) for part in made if part is not None]

    @property
    def by_values(self) -> bool:
        """Whether the number of bytes depends on more than shapes."""
        if self._packer is not None:
            return True
        return any(not part.exact for part in self._leaves((1000, 1000)).values())

    def encode(
        self,
        tensors: Mapping[str, Tensor],
        base: Mapping[str, Tensor],
        seed: int,
        memory: Memory | None = None,
    ) -> tuple[dict[str, Tensor], Memory]:
        """Coded tensors, and the memory that the sender has once they are sent.

        ``base``: what the receiver has of each; nothing of those that it lacks. ``memory``: None
        where what was not said is not to be said in the next message.
        """
        coded: dict[str, Tensor] = {}
        leaves: dict[str, list[Tensor]] = defaultdict(list)
        after: Memory = {}
        for name, tensor in tensors.items():
            if not _goes_through(tensor):
                coded[name] = tensor
            elif not self._stages:
                leaves[f"~{tensor.dtype}"].append(tensor.detach().reshape(-1))
            elif tensor.is_meta:
                for path, part in self._leaves(tensor.shape).items():
                    leaves[path].append(torch.empty(part.length, dtype=part.dtype, device="meta"))
            else:
                self._encode_one(name, tensor, base, seed, memory, after, leaves)
        for path, pieces in leaves.items():
            if self._may_differ(path):
                lengths = [len(piece) for piece in pieces]
                coded[f"{path}{_LENGTHS}"] = torch.tensor(lengths, dtype=torch.int32)
        joined = {path: torch.cat(pieces) for path, pieces in leaves.items()}
        if self._packer is not None and joined:
            joined = {_PACKED: self._packer.pack(list(joined.values()))}
        return {**coded, **joined}, after

    def _encode_one(
        self,
        name: str,
        tensor: Tensor,
        base: Mapping[str, Tensor],
        seed: int,
        memory: Memory | None,
        after: Memory,
        leaves: dict[str, list[Tensor]],
    ) -> None:
        values = tensor.detach().float()
        if name in base:
            values = values - base[name].float()
        left_before = (memory or {}).get(name, {}).get(_RESIDUAL)
        # One of another shape is of a tensor that was another then.
        if self.feedback and left_before is not None and left_before.shape == values.shape:
            values = values + left_before
        values = values.contiguous()
        parts: list[dict[str, Tensor]] = []
        left = values
        for number, stage in enumerate(self._stages):
            place = f"{number}/{name}"
            kept = dict((memory or {}).get(place, {}))
            found = stage.encode(left, derive(seed, name, number), kept)
            if memory is not None and kept:
                after[place] = kept
            parts.append(found)
            if VALUES not in found:
                break
            left = found[VALUES]
        for number, found in enumerate(parts):
            for part, piece in found.items():
                if part != VALUES or number == len(parts) - 1:
                    leaves[f"~{number}.{part}"].append(piece)
        if self.feedback and memory is not None:
            sent = self._decode_one(name, parts, values.shape, seed)
            left_over = values - sent
            if bool(torch.isfinite(left_over).all()):
                after[name] = {_RESIDUAL: left_over}

    def aged(self, memory: Memory, rounds: int) -> Memory:
        """The memory of a sender that has sent nothing for so many rounds."""
        left = self._decay**rounds
        if left == 1:
            return memory
        return {
            place: {part: each * left if part == _RESIDUAL else each for part, each in own.items()}
            for place, own in memory.items()
        }

    def decode(
        self,
        tensors: Mapping[str, Tensor],
        like: Mapping[str, Tensor],
        base: Mapping[str, Tensor],
        seed: int,
    ) -> dict[str, Tensor]:
        """Tensors like ``like``, out of what ``encode`` made with that base and seed.

        Raises:
            ValueError: they are not in it.
        """
        leaves = self._arrived(tensors, like)
        found: dict[str, Tensor] = {}
        for name, expected in like.items():
            if not _goes_through(expected):
                if name not in tensors:
                    raise ValueError(f"{name} is missing")
                found[name] = tensors[name]
            elif not self._stages:
                found[name] = next(leaves[f"~{expected.dtype}"]).view(expected.shape)
            else:
                found[name] = self._whole(name, expected, leaves, base, seed)
        return found

    def _whole(
        self,
        name: str,
        expected: Tensor,
        leaves: Mapping[str, Iterator[Tensor]],
        base: Mapping[str, Tensor],
        seed: int,
    ) -> Tensor:
        taken = {path: next(leaves[path]) for path in self._leaves(expected.shape)}
        if any(piece.is_meta for piece in taken.values()):
            return torch.empty(expected.shape, dtype=expected.dtype, device="meta")
        # A stage may add nothing of its own to the values that it passes on, the last never.
        places = [path[1:].partition(".") for path in taken]
        parts: list[dict[str, Tensor]] = [{} for _ in range(1 + max(int(n) for n, _, _ in places))]
        for (number, _, part), piece in zip(places, taken.values(), strict=True):
            parts[int(number)][part] = piece
        values = self._decode_one(name, parts, expected.shape, seed)
        if name in base:
            values = values + base[name].float()
        return values.to(expected.dtype)

    def _decode_one(
        self, name: str, parts: list[dict[str, Tensor]], shape: Sequence[int], seed: int
    ) -> Tensor:
        shapes: list[Sequence[int]] = [shape]
        for number in range(len(parts) - 1):
            made = self._stages[number].parts(shapes[-1])
            shapes.append((made[VALUES].length,))
        values: Tensor | None = None
        for number in reversed(range(len(parts))):
            own = parts[number] if values is None else {**parts[number], VALUES: values}
            values = self._stages[number].decode(own, shapes[number], derive(seed, name, number))
        assert values is not None
        return values

    def sizes(self, tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> list[Size]:
        """Bytes of a message that arrived, before any stage (named "") and after each."""
        apart = sum(each.nbytes for each in like.values() if not _goes_through(each))
        whole = [each for each in like.values() if _goes_through(each)]
        found = [Size("", apart + sum(each.nbytes for each in whole))]
        for count in range(1, len(self._stages) + 1):
            size = apart
            for path, part in self._totals(tensors, whole, count).items():
                lengths = tensors.get(f"{path}{_LENGTHS}")
                elements = part if lengths is None else int(lengths.sum())
                size += elements * self._types(whole, count)[path].itemsize
                size += 0 if lengths is None else lengths.nbytes
            found.append(Size(self.names[count - 1], size))
        if self._packer is not None:
            found.append(Size(self.names[-1], sum(each.nbytes for each in tensors.values())))
        return found

    def _totals(
        self, tensors: Mapping[str, Tensor], whole: Sequence[Tensor], count: int
    ) -> dict[str, int]:
        totals: dict[str, int] = defaultdict(int)
        for tensor in whole:
            for path, part in self._leaves(tensor.shape, count).items():
                totals[path] += part.length
        return totals

    def _types(self, whole: Sequence[Tensor], count: int) -> dict[str, torch.dtype]:
        return {
            path: part.dtype
            for tensor in whole
            for path, part in self._leaves(tensor.shape, count).items()
        }

    def _leaves(self, shape: Sequence[int], count: int | None = None) -> dict[str, Part]:
        """Parts that one tensor becomes by the first ``count`` stages, by their path."""
        stages = self._stages[:count]
        found: dict[str, Part] = {}
        left: Sequence[int] | None = shape
        for number, stage in enumerate(stages):
            if left is None:
                break
            made = stage.parts(left)
            left = None
            for part, layout in made.items():
                if part == VALUES and number < len(stages) - 1:
                    left = (layout.length,)
                else:
                    found[f"~{number}.{part}"] = layout
        return found

    def _may_differ(self, path: str) -> bool:
        """Whether a leaf's length is none that the shape tells."""
        return any(
            not part.exact
            for shape in ((1000, 1000), (1000,))
            for each, part in self._leaves(shape).items()
            if each == path
        )

    def _arrived(
        self, tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]
    ) -> dict[str, Iterator[Tensor]]:
        """Each leaf's pieces, one a tensor, checked."""
        layout: dict[str, list[Part]] = defaultdict(list)
        for tensor in like.values():
            if not _goes_through(tensor):
                continue
            if self._stages:
                for path, part in self._leaves(tensor.shape).items():
                    layout[path].append(part)
            else:
                layout[f"~{tensor.dtype}"].append(Part(tensor.dtype, tensor.numel()))
        for path, parts in layout.items():
            if self._may_differ(path):
                layout[path] = _told(tensors.get(f"{path}{_LENGTHS}"), parts)
        wholes = {
            path: Part(parts[0].dtype, sum(part.length for part in parts))
            for path, parts in layout.items()
        }
        joined: Mapping[str, Tensor] = tensors
        if self._packer is not None and wholes:
            packed = tensors.get(_PACKED)
            if packed is None or packed.dtype != torch.uint8 or packed.dim() != 1:
                raise ValueError("no packed bytes")
            if packed.is_meta:
                raise ValueError("packed bytes without values")
            pieces = self._packer.unpack(packed, list(wholes.values()))
            joined = dict(zip(wholes, pieces, strict=True))
        for path, part in wholes.items():
            piece = joined.get(path)
            if piece is None or piece.dtype != part.dtype or piece.shape != (part.length,):
                raise ValueError(f"{path} is not {part.dtype}[{part.length}]")
        self._check_names(tensors, like, wholes)
        return {
            path: iter(joined[path].split([part.length for part in parts]))
            for path, parts in layout.items()
        }

    def _check_names(
        self, tensors: Mapping[str, Tensor], like: Mapping[str, Tensor], wholes: Mapping[str, Part]
    ) -> None:
        expected = {name for name, tensor in like.items() if not _goes_through(tensor)}
        expected |= {f"{path}{_LENGTHS}" for path in wholes if self._may_differ(path)}
        expected |= {_PACKED} if self._packer is not None and wholes else wholes.keys()
        if odd := sorted(tensors.keys() ^ expected):
            raise ValueError(f"tensors differ in {odd[0]!r} and {len(odd) - 1} more names")


def is_coded(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a message's tensors have been through a chain."""
    return any(name.startswith("~") for name in tensors)


def _follows(after: int, before: int) -> bool:
    """Whether all that one stage does comes later than all that another does."""
    first = after & -after
    return first > before


def _right(after: Stage | Packer, before: Stage | Packer) -> str:
    """The correction where a stage stands after one that it cannot follow."""
    if _follows(before.order, after.order):
        return f"the other way round; first {', then '.join(_DOES.values())}"
    both = [words for bit, words in _DOES.items() if bit & after.order & before.order]
    return f"both {' and '.join(both)}; take one of them"


def _goes_through(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.numel() > 0


def _told(lengths: Tensor | None, parts: list[Part]) -> list[Part]:
    """The parts with the lengths that a sender tells. Raises ValueError where they cannot be."""
    if lengths is None or lengths.dtype != torch.int32 or lengths.shape != (len(parts),):
        raise ValueError("lengths are missing")
    told = lengths.tolist()
    if any(not 0 <= own <= part.length for own, part in zip(told, parts, strict=True)):
        raise ValueError("a length is out of its range")
    return [part._replace(length=own) for own, part in zip(told, parts, strict=True)]
