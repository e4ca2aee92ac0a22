"""States of a run's nodes on disk, from which a killed run goes on.

A node writes its own after its part in a round, as ``state/NODE.ROUND.safetensors``. A file appears
whole or not at all, by renaming, and says whose it is, after which round, and of which run. The
last three are kept, and with them what any of the last three rounds could go on from.

A run goes on after a round of which the server's file is there, and every client's that the
server's says took part: the client's latest up to that round, and not before its last part. A
client that never took part begins anew.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Annotated, Protocol

import msgspec

from nodes.checkpoint import Json, Snapshot, Unkept, shelf, state_file
from nodes.checkpoint.shelf import Shelf
from nodes.checkpoint.state_file import Unreadable
from testbed import clock, files
from testbed.config_error import ConfigError
from testbed.network.topology import SERVER
from testbed.processes import confinement
from testbed.processes.channel import Channel
from testbed.record.events import Report, Saved, Unsaved

FOLDER = "state"


class Start(msgspec.Struct, frozen=True):
    """The round and files from which a run begins, or goes on."""

    round: int = 0
    """The last round that is over."""
    files: dict[str, int] = {}
    """By node, the round of the state that it goes on from; who has none begins anew."""
    run: str | None = None
    """The run's identity, which its states have."""


class _Told(msgspec.Struct):
    """Facts told with the server's state."""

    parts: dict[str, Annotated[int, msgspec.Meta(ge=0)]]


class Keeps(Protocol):
    """Whatever keeps a node's states."""

    def save(self, number: int, **told: Json) -> None:
        """Keep the state after round ``number``, and with it what is ``told``."""


class Keeping(Protocol):
    """A way to keep the states of a run's nodes."""

    @property
    def folder(self) -> Path | None:
        """The folder that nodes write in; None: they write nowhere."""

    def of_node(
        self, name: str, nodes: int, snapshot: Snapshot, channel: Channel
    ) -> tuple[Keeps, Json]:
        """A node's keeper, and the facts told with the state that it goes on from, if any.

        ``nodes``: how many the run has. Raises Unkept where that state cannot be gone on from.
        """


class InFolder:
    """Keeping in a folder where the nodes themselves write."""

    def __init__(self, folder: Path, start: Start) -> None:
        """``start``: what they go on from."""
        self.folder = folder.resolve()
        self._start = start

    def of_node(
        self, name: str, nodes: int, snapshot: Snapshot, channel: Channel
    ) -> tuple[Keeps, Json]:
        # A node stands in the folder.
        checkpointer = Checkpointer(Path(), self._start.run, name, nodes, snapshot, channel.send)
        number = self._start.files.get(name)
        return checkpointer, None if number is None else checkpointer.load(number)


class Checkpointer:
    """One node's states: written after each of its rounds, and read where a run goes on."""

    def __init__(
        self,
        folder: Path,
        run: str | None,
        node: str,
        nodes: int,
        snapshot: Snapshot,
        report: Report,
    ) -> None:
        """``run``: its identity; ``nodes``: how many of it may be writing at the same time.

        The folder holds nothing of the node's yet, unless ``load`` is called.
        """
        self._folder = folder
        self._run = run
        self._node = node
        self._shelf = Shelf(folder, node, nodes)
        self._snapshot = snapshot
        self._report = report

    def save(self, number: int, **told: Json) -> None:
        """Write the state after round ``number``; where that fails the run goes on without.

        ``told``: what belongs to it beside the object's own.
        """
        began_s = clock.monotonic()
        tensors, lasting = self._snapshot.take()
        try:
            name = shelf.name(self._node, number)
            state: Json = {"run": self._run, "name": name, "lasting": lasting, "told": told}
            parts = state_file.encoded(tensors, state)
            with self._shelf.begin(parts.size) as file:
                parts.write(file)
            self._shelf.finish(number)
        except OSError as error:
            self._shelf.drop()
            self._report(Unsaved(round=number, reason=f"{name}: {error.strerror or error}"))
            return
        seconds = round(clock.monotonic() - began_s, 6)
        self._report(Saved(round=number, bytes=parts.size, seconds=seconds))

    def load(self, number: int) -> Json:
        """Put the state after round ``number`` into the object; returns what ``save`` was told.

        Raises:
            Unkept: it was another kind of object's or another run's, or is not whole.
        """
        path = shelf.path(self._folder, self._node, number)
        try:
            tensors, state = state_file.read(path)
            shelf.check(state, self._run, self._node, number)
        except (OSError, Unreadable) as error:
            raise Unkept(f"{path.name}: {_words(error)}") from error
        self._snapshot.put(tensors, state.get("lasting"))
        self._shelf.find()
        return state.get("told")


def ready(folder: Path, start: Start) -> Path:
    """The folder of states within a run's, with those alone that ``start`` can need.

    What is of later rounds, which the run has yet to make, would be another past's.

    Raises:
        ConfigError: it cannot be written to.
    """
    own = folder / FOLDER
    try:
        files.folder(own)
        for path in own.iterdir():
            if path.name.startswith(".") or shelf.number(path) > start.round:
                shelf.clear(path)
        if os.geteuid() == 0:
            # Its nodes write there, and may be somebody else or without root's rights by then.
            with contextlib.suppress(PermissionError):
                files.give(own, confinement.user() or (0, 0))
    except OSError as error:
        raise ConfigError(f"{own}: {error.strerror}; it must be a folder to write to") from error
    return own


def remove(folder: Path) -> None:
    """The states of a run that is over."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


def choose(folder: Path, run: str | None, clients: list[str], newest: int) -> Start:
    """The latest round, up to ``newest``, that the run of that identity can go on from.

    Raises:
        ConfigError: there is none, with the reason why not even ``newest`` is one.
    """
    reasons = []
    there = {number for number in shelf.rounds(folder, SERVER) if number < newest}
    for number in sorted({*there, newest} - {0}, reverse=True):
        found = _start(folder, run, clients, number)
        if isinstance(found, Start):
            return found
        reasons.append(found)
    if not reasons:
        return Start(run=run)
    raise ConfigError(
        f"--resume {folder.parent}: {newest} rounds are over, and what its nodes kept after them "
        f"is not there whole ({reasons[0]}); `launch --config` on its config.toml starts it anew"
    )


def _start(folder: Path, run: str | None, clients: list[str], number: int) -> Start | str:
    """A start after this round, or why there is none."""
    try:
        parts = msgspec.convert(_told(folder, run, SERVER, number), _Told).parts
    except (Unreadable, msgspec.ValidationError) as error:
        return f"{shelf.path(folder, SERVER, number).name}: {error}"
    found = {SERVER: number}
    for client in clients:
        last, why = parts.get(client, 0), ""
        there = sorted(
            (n for n in shelf.rounds(folder, client) if last <= n <= number), reverse=True
        )
        for each in there:
            try:
                _told(folder, run, client, each)
                found[client] = each
                break
            except Unreadable as error:
                why = why or f": {shelf.path(folder, client, each).name}: {error}"
        if found.get(client, 0) < last:
            text = f"{client} took part in round {last}, and no state of it since then is whole"
            return text + why
    return Start(number, {node: own for node, own in found.items() if own}, run)


def _told(folder: Path, run: str | None, node: str, number: int) -> Json:
    """Facts told with a state.

    Raises:
        Unreadable: the file is missing, not whole, or another's.
    """
    try:
        state = state_file.read(shelf.path(folder, node, number))[1]
    except OSError as error:
        raise Unreadable(_words(error)) from error
    shelf.check(state, run, node, number)
    return state.get("told")


def _words(error: OSError | Unreadable) -> str:
    if isinstance(error, FileNotFoundError):
        return "is missing"
    return getattr(error, "strerror", None) or str(error)
