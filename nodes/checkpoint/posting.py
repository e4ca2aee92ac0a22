"""States of nodes on other hosts than the driver's, which alone has the run's folder.

Such a node sends what it would write, and has what it goes on from with its program.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from nodes.checkpoint import Json, Snapshot, Unkept, shelf, state_file
from nodes.checkpoint.shelf import Shelf, path
from nodes.checkpoint.state_file import Unreadable
from nodes.checkpoint.store import Keeps, Start
from testbed import clock
from testbed.processes.channel import Channel
from testbed.record.events import Saved, Unsaved
from testbed.run.states import PIECE_BYTES, StatePiece

Say = Callable[[msgspec.Struct], None]


class Posted:
    """Keeping by sending: nodes have no folder for it."""

    folder = None

    def __init__(self, run: str | None, states: Mapping[str, bytes]) -> None:
        """``run``: its identity; ``states``: what nodes go on from, by name."""
        self._run, self._states = run, states

    def of_node(
        self, name: str, nodes: int, snapshot: Snapshot, channel: Channel
    ) -> tuple[Keeps, Json]:
        poster = Poster(self._run, name, snapshot, channel.send)
        state = self._states.get(name)
        return poster, None if state is None else poster.load(state)


class Poster:
    """One node's states: sent after each of its rounds; whoever keeps them tells of it."""

    def __init__(self, run: str | None, node: str, snapshot: Snapshot, say: Say) -> None:
        self._run, self._node, self._snapshot, self._say = run, node, snapshot, say

    def save(self, number: int, **told: Json) -> None:
        """Send the state after round ``number``; ``told``: what belongs to it beside its own."""
        tensors, lasting = self._snapshot.take()
        try:
            name = shelf.name(self._node, number)
            state: Json = {"run": self._run, "name": name, "lasting": lasting, "told": told}
            parts = state_file.encoded(tensors, state)
        except OSError as error:
            self._say(Unsaved(round=number, reason=f"{self._node}: {error.strerror or error}"))
            return
        parts.write(_Pieces(self._say, number, parts.size))

    def load(self, state: bytes) -> Json:
        """Put a state that was kept into the object; returns what ``save`` was told.

        Raises:
            Unkept: it was another kind of object's or another run's, or is not whole.
        """
        try:
            tensors, own = state_file.decoded(state)
            # Of which round it is, the driver has looked at.
            shelf.check(own, self._run, self._node)
        except Unreadable as error:
            raise Unkept(f"the state of {self._node}: {error}") from error
        self._snapshot.put(tensors, own.get("lasting"))
        return own.get("told")


class _Pieces:
    """A file of which each write is said in pieces."""

    def __init__(self, say: Say, number: int, size: int) -> None:
        self._say, self._round, self._size = say, number, size

    def write(self, data: Any) -> None:
        with memoryview(data) as whole, whole.cast("B") as view:
            for begin in range(0, len(view), PIECE_BYTES):
                piece = bytes(view[begin : begin + PIECE_BYTES])
                self._say(StatePiece(self._round, self._size, piece))


class Collected:
    """The driver's states of nodes on other hosts, in the run's folder as those of its own are.

    Owns the files of which it has a part. What is wrong with a state costs that state alone.
    """

    def __init__(self, folder: Path, nodes: int, start: Start) -> None:
        """``nodes``: how many the run has; ``start``: what they go on from."""
        self._folder, self._nodes, self._start = folder, nodes, start
        self.run = start.run
        self._shelves: dict[str, Shelf] = {}
        self._begun: dict[str, _Begun] = {}

    def take(self, node: str, piece: StatePiece) -> Saved | Unsaved | None:
        """Write a piece to disk; what there is to tell of its state, once that is so."""
        shelf = self._shelf(node)
        begun = self._begun.get(node)
        try:
            if begun is None or begun.round != piece.round:
                self._close(node)
                begun = self._begun[node] = _Begun(piece.round, shelf.begin(piece.size))
            if begun.file is None:
                return None
            begun.bytes += len(piece.data)
            if begun.bytes > piece.size:
                raise OSError(f"has more than the {piece.size:,} bytes that it was to have")
            begun.file.write(piece.data)
            if begun.bytes < piece.size:
                return None
            del self._begun[node]
            begun.file.close()
            shelf.finish(piece.round)
        except OSError as error:
            self._close(node)
            # What follows of it is passed over.
            self._begun[node] = _Begun(piece.round, None)
            shelf.drop()
            name = path(self._folder, node, piece.round).name
            return Unsaved(round=piece.round, reason=f"{name}: {error.strerror or error}")
        seconds = round(clock.monotonic() - begun.began_s, 6)
        return Saved(round=piece.round, bytes=piece.size, seconds=seconds)

    def stored(self, node: str) -> Iterator[bytes]:
        """The state that a node goes on from, in pieces; none: it begins anew."""
        if (number := self._start.files.get(node)) is not None:
            with path(self._folder, node, number).open("rb") as file:
                while piece := file.read(PIECE_BYTES):
                    yield piece

    def close(self) -> None:
        for node in list(self._begun):
            self._close(node)

    def _shelf(self, node: str) -> Shelf:
        if node not in self._shelves:
            self._shelves[node] = Shelf(self._folder, node, self._nodes)
            self._shelves[node].find()
        return self._shelves[node]

    def _close(self, node: str) -> None:
        begun = self._begun.pop(node, None)
        if begun is not None and begun.file is not None:
            with contextlib.suppress(OSError):
                begun.file.close()


class _Begun:
    """A state of which a part is here."""

    def __init__(self, number: int, file: BinaryIO | None) -> None:
        """``file``: None where it is not kept."""
        self.round, self.file, self.bytes = number, file, 0
        self.began_s = clock.monotonic()
