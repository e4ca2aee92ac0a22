"""States of nodes on other hosts on their way: in pieces to the folder of the run, and back."""

from collections.abc import Iterator
from typing import Protocol

import msgspec

from testbed.record.events import Event

PIECE_BYTES = 1 << 18
"""Most of one, so that a line has room for others' words in between."""


class StatePiece(msgspec.Struct, tag="state_piece", tag_field="event"):
    """A node's word: the next bytes of its state after a round. Its agent passes it on."""

    round: int
    size: int
    """Bytes of the whole state."""
    data: bytes


class States(Protocol):
    """The states of a run's nodes as its driver has them."""

    run: str | None
    """The run's identity, which they have."""

    def take(self, node: str, piece: StatePiece) -> Event | None:
        """Keep a piece; what there is to tell of the state, once that is whole or given up."""

    def stored(self, node: str) -> Iterator[bytes]:
        """The state that a node goes on from, in pieces; none: it begins anew."""
