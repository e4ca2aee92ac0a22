"""A node's place in a folder of states: each written whole or not at all, the last few kept."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from nodes.checkpoint.kinds import Json
from nodes.checkpoint.state_file import Unreadable
from testbed import files
from testbed.config_error import excerpt
from testbed.record.recorder import FREE_BYTES_NEEDED

SUFFIX = ".safetensors"
KEPT = 3
_NUMBER = "[1-9][0-9]{0,8}"
"""As a round's is written; a file of another name is none that was kept."""


class Shelf:
    """One node's; holds nothing of it yet, unless ``find`` is called."""

    def __init__(self, folder: Path, node: str, nodes: int) -> None:
        """``nodes``: how many of the run may be writing at the same time."""
        self._folder, self._node, self._nodes = folder, node, nodes
        self._unfinished = folder / f".{node}"
        self._rounds: list[int] = []

    def find(self) -> None:
        """Take note of what is there of rounds before."""
        self._rounds = sorted(rounds(self._folder, self._node))

    def begin(self, size: int) -> BinaryIO:
        """A file for ``size`` bytes. Raises OSError: there is no room for it."""
        self._check_room(size)
        return files.created(self._unfinished)

    def finish(self, number: int) -> None:
        """Have the file, which is closed, be the state after that round. Raises OSError."""
        self._unfinished.replace(path(self._folder, self._node, number))
        self._rounds.append(number)
        self._prune(number)

    def drop(self) -> None:
        """Remove what was begun."""
        with contextlib.suppress(OSError):
            self._unfinished.unlink(missing_ok=True)

    def _check_room(self, size: int) -> None:
        there = os.statvfs(self._folder)
        free, needed = there.f_bavail * there.f_frsize, size * self._nodes + FREE_BYTES_NEEDED
        if free < needed:
            raise OSError(
                f"{free / 1e6:.0f} MB are free on the disk, and {self._nodes} nodes with as much "
                f"to keep, beside the results, need {needed / 1e6:.0f}"
            )

    def _prune(self, number: int) -> None:
        """Whatever of the last rounds is gone on from, the latest state before it is there."""
        oldest = number - KEPT + 1
        needed = max((each for each in self._rounds if each <= oldest), default=0)
        for each in [each for each in self._rounds if each < needed]:
            clear(path(self._folder, self._node, each))
            self._rounds.remove(each)


def clear(place: Path) -> None:
    """Have nothing under a state's name, whatever somebody put there. Raises OSError."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def path(folder: Path, node: str, number: int) -> Path:
    return folder / name(node, number)


def name(node: str, number: int) -> str:
    """Name of a state's file, which says it within: none is taken for another."""
    return f"{node}.{number}{SUFFIX}"


def check(state: Mapping[str, Json], run: str | None, node: str, number: int | None = None) -> None:
    """Hold a state to be that node's in that run after that round, or after any.

    A run that began before runs had an identity has None, and so do its states.

    Raises:
        Unreadable: it is another.
    """
    said = state.get("name")
    right = f"{node}." if number is None else name(node, number)
    if not isinstance(said, str) or not said.startswith(right):
        raise Unreadable(f"is another state, kept as {excerpt(repr(said))}")
    if state.get("run") != run:
        raise Unreadable("is a state of another run")


def rounds(folder: Path, node: str) -> list[int]:
    """Rounds of which there is a file of the node's."""
    return [number(each) for each in folder.glob(f"{node}.*{SUFFIX}")]


def number(file: Path) -> int:
    """The round that a file is of; 0: none."""
    text = file.name.removesuffix(SUFFIX).rpartition(".")[2]
    return int(text) if re.fullmatch(_NUMBER, text) else 0
