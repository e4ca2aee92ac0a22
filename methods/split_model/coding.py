"""Coding of what crosses a cut: a head's output on its way up, the loss's gradient of it down."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from torch import Tensor


class Coding(Protocol):
    """A way to send values (batch, ...)."""

    def code(self, values: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Tensors to send, and the values that the other end makes of them."""

    def like(self, values: Tensor) -> dict[str, Tensor]:
        """Names, shapes and dtypes of what is sent of such values."""

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises ValueError where tensors that are ``like`` that cannot be decoded."""

    def decode(self, tensors: Mapping[str, Tensor], values: Tensor) -> Tensor:
        """The values that the tensors stand for, in the shape of ``values``."""


class Plain:
    """Values as they are."""

    def code(self, values: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        return {"tokens": values}, values

    def like(self, values: Tensor) -> dict[str, Tensor]:
        return {"tokens": values}

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        pass

    def decode(self, tensors: Mapping[str, Tensor], values: Tensor) -> Tensor:
        return tensors["tokens"]


class Codings(NamedTuple):
    up: Coding
    down: Coding
    correction: float = 0.0
    """Weight, in the gradient that a head gets, of what coding took from its output."""


PLAIN = Codings(Plain(), Plain())
