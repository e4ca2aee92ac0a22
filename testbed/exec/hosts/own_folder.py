"""The own folder of a node on another host, as it comes into the run's: each place is checked.

Whoever sends may lie. So a folder is opened in the one above it, no link is followed, nothing that
is there is written to or replaced, and there is no more than a node may have.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from testbed.exec import places
from testbed.exec.lines import Piece

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PERMISSIONS = 0o777
"""What a mode may have: no right of whoever a file is given to."""
_TO_WRITE, _OWN = 0o600, 0o700


class Lied(ValueError):
    """The other host has sent what no folder of a node has; the text says what."""


class Full(Exception):
    """The disk takes no more; the text says why."""


class OwnFolder:
    """Owns what is open of it."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError: it is not there."""
        self._root = os.open(folder, _FOLDER)
        self.files = self.bytes = 0
        """That are whole."""
        self.refused: dict[str, tuple[int, bytes]] = {}
        """By why this machine has not taken it: how many, and the path of the first."""
        self._places_left, self._bytes_left = places.MOST_PLACES, places.MOST_BYTES
        self._modes: list[tuple[bytes, int]] = []
        """Of folders, which are open to this user alone while they are filled."""
        self._file: int | None = None
        self._path: bytes | None = None
        """Of the file whose next piece is to come."""
        self._size = 0
        """Of what has come of that."""

    def take(self, piece: Piece) -> None:
        """Raises Lied or Full, of which either is the end."""
        if piece.path != self._path or piece.kind != "file":
            self._begin(piece)
        if piece.kind == "file":
            self._write(piece)

    def _begin(self, piece: Piece) -> None:
        self._abandon()
        self._places_left -= 1
        if self._places_left < 0:
            raise Lied(f"more than {places.MOST_PLACES:,} files")
        try:
            *above, name = places.names(piece.path)
        except ValueError as error:
            raise Lied(str(error)) from error
        if piece.kind == "link" and places.leads_out(piece.path, piece.data):
            raise Lied("a link that leads out of the folder")
        try:
            with self._opened(above) as folder:
                if piece.kind == "folder":
                    os.mkdir(name, _OWN, dir_fd=folder)
                    self._modes.append((piece.path, piece.mode))
                elif piece.kind == "link":
                    os.symlink(piece.data, name, dir_fd=folder)
                else:
                    self._path = piece.path
                    self._file = os.open(name, _NEW, _TO_WRITE, dir_fd=folder)
        except OSError as error:
            why = error.strerror or str(error)
            count, first = self.refused.get(why, (0, piece.path))
            self.refused[why] = count + 1, first

    def _write(self, piece: Piece) -> None:
        self._bytes_left -= len(piece.data)
        if self._bytes_left < 0:
            raise Lied(f"more than {places.MOST_BYTES:,} bytes")
        if self._file is not None:
            try:
                data = memoryview(piece.data)
                while data:
                    data = data[os.write(self._file, data) :]
                if piece.whole:
                    os.fchmod(self._file, piece.mode & _PERMISSIONS)
            except OSError as error:
                raise Full(error.strerror or str(error)) from error
            self._size += len(piece.data)
            if piece.whole:
                os.close(self._file)
                self.files, self.bytes = self.files + 1, self.bytes + self._size
                self._file = None
        if piece.whole:
            self._path, self._size = None, 0

    @contextlib.contextmanager
    def _opened(self, names: list[bytes]) -> Iterator[int]:
        """The folder at that place, to work in."""
        folder = os.dup(self._root)
        try:
            for name in names:
                inner = os.open(name, _FOLDER, dir_fd=folder)
                os.close(folder)
                folder = inner
            yield folder
        finally:
            os.close(folder)

    def _abandon(self) -> None:
        """Have no file be there of which a part has not come."""
        if self._file is not None and self._path is not None:
            os.close(self._file)
            *above, name = places.names(self._path)
            with contextlib.suppress(OSError), self._opened(above) as folder:
                os.unlink(name, dir_fd=folder)
        self._file, self._path, self._size = None, None, 0

    def close(self) -> None:
        """Have all that is there be whole, with its modes. Idempotent."""
        self._abandon()
        # Those inside first, for who may not enter one may not give them theirs.
        for path, mode in reversed(self._modes):
            *above, name = places.names(path)
            with contextlib.suppress(OSError), self._opened([*above, name]) as folder:
                os.fchmod(folder, mode & _PERMISSIONS)
        self._modes.clear()
        if self._root >= 0:
            os.close(self._root)
            self._root = -1
