"""Payload stages: what makes a method's tensors fewer bytes before they are sent, one file each.

Stages stand in a row (``chain``): first what leaves values out, then what takes fewer bits for
each, then what packs bytes. What they take is an update, the difference of what is sent and of a
base that its receiver has, or values that mean something by themselves, such as logits.

A stage's file holds

``Options``
    A frozen Struct of its options, each with its range and default; ``Lossy`` where it loses.
``Stage(options)``
    A ``Stage``, or where it packs bytes a ``Packer``.
``Stage.check(shapes)`` (optional)
    Raises ValueError where an option changes nothing of any tensor, and all are of these shapes.
    Asked before anything starts.

Nothing is drawn at one end that the other has to be told: both draw from the same seed.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Protocol

import msgspec

from testbed.config_error import ConfigError, closest, refuse_unknown
from testbed.run.config import OptionValue, convert, option_value

if TYPE_CHECKING:  # Naming the stages must not cost the seconds that torch takes to import.
    import torch
    from torch import Tensor

_HELPERS = {"__init__", "bits", "cast", "chain", "coder"}
SPARSIFY, QUANTISE, PACK = 1, 2, 4
"""What a stage does, in the order of a chain, which does each once; a stage may do two: a | b."""
VALUES = "values"
"""Name of the part that the next stage takes."""


class Part(NamedTuple):
    """Layout of one of the one-dimensional tensors that a stage makes of one."""

    dtype: torch.dtype
    length: int
    """Elements; where it is not exact, the most."""
    exact: bool = True
    """Whether it depends on the shape alone, and not on the values."""


class Lossy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of a stage that loses something."""

    feedback: bool = False
    """Error feedback: what a message could not say is added to what the next one says."""
    decay: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    """What is left of that for each round in which its sender sent nothing; 0: nothing."""

    def __post_init__(self) -> None:
        if self.decay < 1 and not self.feedback:
            raise ValueError(f"decay = {self.decay:g} goes with feedback = true alone")


class Stage(Protocol):
    """Maker of parts out of values, and of values out of parts."""

    order: int
    lossy: bool

    def parts(self, shape: Sequence[int]) -> dict[str, Part]:
        """Parts that a float32 tensor of that shape becomes, which has at least one value.

        A float32 part named VALUES is what the next stage of the chain takes. A part has the same
        dtype by whatever shape.
        """

    def encode(self, values: Tensor, seed: int, memory: dict[str, Tensor]) -> dict[str, Tensor]:
        """The parts of float32 ``values``, which are contiguous and stay as they are.

        They may be anything: all equal, zero, not finite (then so is what is decoded; nothing
        raises). ``seed``: of this tensor, round and sender; the receiver has it too. ``memory``: of
        this tensor at this sender, kept from one message to the next; a stage may put tensors in.
        """

    def decode(self, parts: Mapping[str, Tensor], shape: Sequence[int], seed: int) -> Tensor:
        """float32 values of that shape; the parts have the lengths and dtypes that they should.

        Raises:
            ValueError: they cannot be those of any values.
        """


class Packer(Protocol):
    """Maker of fewer bytes out of bytes, without loss."""

    order: int
    lossy: bool

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        """uint8 (any,): all that is in one-dimensional tensors, one after the other."""

    def unpack(self, packed: Tensor, layout: Sequence[Part]) -> list[Tensor]:
        """Tensors of exactly that layout.

        Raises:
            ValueError: they are not in it; no more is unpacked than they have bytes.
        """


def kept(share: float, count: int) -> int:
    """How many a share of so many values is, at least one."""
    # As it was written: 0.07 of 100 in floats is more than 7.
    return max(1, math.ceil(Fraction(str(share)) * count))


def names() -> list[str]:
    """Every stage: one file each."""
    return list(_names())


@cache
def _names() -> tuple[str, ...]:
    found = (path.stem for path in Path(__file__).parent.glob("*.py"))
    return tuple(sorted(name for name in found if name not in _HELPERS))


def load(text: str) -> Any:
    """The stage of ``NAME`` or ``NAME:option=value,option=value``.

    Raises:
        ConfigError: there is none such, or an option of it is not or out of its range.
    """
    name, colon, rest = text.strip().partition(":")
    if name == "none":
        raise ConfigError(f"stage = {text!r}: without a stage, leave it out")
    several = [each.strip() for each in re.split("[,+]", name) if each.strip() in names()]
    if several not in ([], [name]):
        one = " ".join(f"--stage={each}" for each in several)
        raise ConfigError(f"stage = {text!r}: give each stage by itself, in order, as in {one}")
    if name not in names():
        raise ConfigError(
            f"stage = {text!r}: no such stage{closest(name, names()) or '.'} "
            f"There are {', '.join(names())}"
        )
    module = importlib.import_module(f"{__name__}.{name}")
    given: dict[str, OptionValue | None] = {}
    for each in rest.split(",") if colon else ():
        key, equals, value = (word.strip() for word in each.partition("="))
        if not equals:
            raise ConfigError(f"stage {name}: an option is KEY=VALUE, found {each!r}")
        if key in given:
            raise ConfigError(f"stage {name}: {key} is given twice")
        given[key] = option_value(value)
    refuse_unknown(f"stage {name}: ", given, module.Options.__struct_fields__)
    return module.Stage(convert(given, module.Options, f"stage {name}"))
