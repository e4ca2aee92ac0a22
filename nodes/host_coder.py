"""Coding on the host of what a node computes elsewhere.

Payload stages are numpy's and zlib's work as much as torch's, and both ends of a message must come
to the same bits: so what is coded is on the CPU, at every node.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from methods.payload.chain import Size
from methods.payload.coder import Base, Coded, Coder
from nodes.device_tensors import DeviceTensors, moved, on_host


class HostCoder(Coder):
    """A coder of a node whose tensors are on an accelerator, and whose memory is on the host."""

    def __init__(self, of: Coder, place: DeviceTensors) -> None:
        vars(self).update(vars(of))
        self._place = place

    def encode(
        self, kind: str, number: int, tensors: Mapping[str, Tensor], base: Base | None, client: str
    ) -> Coded:
        if base is None or not self.up:
            return super().encode(kind, number, tensors, base, client)
        with on_host():
            return super().encode(kind, number, moved(tensors, "cpu"), _based(base), client)

    def decode(
        self,
        way: Literal["up", "down"],
        kind: str,
        number: int,
        tensors: Mapping[str, Tensor],
        like: Mapping[str, Tensor],
        base: Base | None,
        client: str,
    ) -> tuple[dict[str, Tensor], list[Size]]:
        if base is None or not (self.up if way == "up" else self.down):
            return super().decode(way, kind, number, tensors, like, base, client)
        with on_host():
            found, sizes = super().decode(
                way, kind, number, moved(tensors, "cpu"), like, _based(base), client
            )
        return self._place.moved(found), sizes

    def encode_values(
        self, kind: str, number: int, tensors: Mapping[str, Tensor], client: str = ""
    ) -> Mapping[str, Tensor]:
        if not self.down:
            return tensors
        with on_host():
            return super().encode_values(kind, number, moved(tensors, "cpu"), client)

    def encode_model(
        self, kind: str, number: int, tensors: Mapping[str, Tensor]
    ) -> tuple[Mapping[str, Tensor] | None, Mapping[str, Tensor]]:
        if not self.down:
            return None, tensors
        here = moved(dict(tensors), "cpu")
        with on_host():
            coded, whole = super().encode_model(kind, number, here)
        # Who sent all that there is asks whether it is the same object.
        return coded, tensors if whole is here else self._place.moved(whole)


def _based(base: Base) -> Base:
    """The same on the host; one without tensors says by what it is what it means."""
    return base if isinstance(base, str) or not base else moved(base, "cpu")
