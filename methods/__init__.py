"""Methods: one file each, with Config, Server and Client. Adding one touches no other file.

What a method file holds:

``Config``
    A frozen Struct of the method's options, each with unit, range and default.
``Server(config, model, seed)``
    ``model`` (its present global model), ``async round(fleet)`` and ``evaluate(images, labels)``.
``Client(config, model, shard, seed)``
    ``round(peer)``: its part in one round, a plain function that may block.
``adapt(config, model)`` (optional)
    The model as this method trains it, adapters and all. Like loading and importing it is done
    once, before the nodes are forked, and they share what they do not write.

A fleet and a peer are all that a method sees of the network: no sockets, clocks or namespaces.
Split training talks to one client at a time (``send``, ``receive``), averaging to all at once
(``broadcast``, ``gather``).
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:  # Naming the methods must not cost the seconds that torch takes to import.
    from torch import Tensor

    from testbed.wire import Detail, Message

_NOT_METHODS = {"__init__", "local", "averaging"}


class Shard(NamedTuple):
    """A client's own data: images float32 (n, channels, height, width), labels int64 (n,)."""

    images: Tensor
    labels: Tensor


class Missed(Exception):
    """A client's part of this round will not come; the text is the reason, already recorded."""


class Fleet(Protocol):
    """The server's view of its clients in the present round."""

    round: int
    clients: tuple[str, ...]
    """Those still in the run."""
    samples: Mapping[str, int]
    """Training samples of each client, at least 1."""

    async def send(
        self, client: str, kind: str, tensors: Mapping[str, Tensor], **details: Detail
    ) -> None:
        """Queue a message for one client. Raises Missed where it has left."""

    async def broadcast(self, kind: str, tensors: Mapping[str, Tensor], **details: Detail) -> None:
        """Queue the same message for every client; the tensors are encoded once."""

    async def receive(
        self, client: str, kind: str, like: Mapping[str, Tensor] | None = None
    ) -> Message:
        """The client's next message of this kind and round.

        Raises Missed where the client left, the round's limit passed, or, with ``like``, the
        message's tensors differ from it in names, shapes or dtypes, or are not finite.
        """

    def gather(self, kind: str, like: Mapping[str, Tensor] | None = None) -> AsyncIterator[Message]:
        """One message of this kind from every client, as they arrive; missed ones are left out."""


class Peer(Protocol):
    """A client's view of the server in the present round."""

    round: int

    def send(self, kind: str, tensors: Mapping[str, Tensor], **details: Detail) -> None:
        """Queue a message; its tensors must not change until the server has answered it."""

    def receive(self, kind: str, like: Mapping[str, Tensor] | None = None) -> Message:
        """The server's next message of this kind and round; ``like`` as for a Fleet."""


def names() -> list[str]:
    """Every method there is: one file, one method."""
    return sorted(
        path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in _NOT_METHODS
    )


def load(name: str) -> ModuleType:
    """The module of a method."""
    return importlib.import_module(f"methods.{name}")
