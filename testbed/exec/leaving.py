"""Files that a node's program leaves in its own folder, told in parcels to who asks for them."""

import os
import stat
from collections.abc import Iterator

from testbed.exec import places
from testbed.exec.lines import LeftOut, Parcel, Piece, Why
from testbed.exec.output import STREAMS

PARCEL_BYTES = 1 << 19
MOST_PIECES = 256
"""Either of a parcel, or no more than as much again."""
_OUTPUT = tuple(f"{stream}.txt".encode() for stream in STREAMS)
"""Names in the run's folder that are taken."""
_OPENED = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Leaving:
    """The folder of a program that has ended, read from its begin to its end once.

    No link is followed. Owns the descriptors of the folders on the way, until all is told.
    """

    def __init__(self, folder: str) -> None:
        self._bytes_left, self._places_left = places.MOST_BYTES, places.MOST_PLACES
        self._left_out: dict[Why, LeftOut] = {}
        self._pieces = self._all(folder)

    def parcel(self) -> Parcel:
        """The next of it."""
        found: list[Piece] = []
        size = 0
        while len(found) < MOST_PIECES and size < PARCEL_BYTES:
            piece = next(self._pieces, None)
            if piece is None:
                return Parcel(found, list(self._left_out.values()), last=True)
            found.append(piece)
            size += len(piece.data)
        return Parcel(found, [], last=False)

    def _all(self, folder: str) -> Iterator[Piece]:
        try:
            root = os.open(folder, _OPENED | os.O_DIRECTORY)
        except OSError:
            self._leave_out("unreadable", b".")
            return
        try:
            yield from self._inside(root, b"", os.fstat(root).st_dev)
        finally:
            os.close(root)

    def _inside(self, folder: int, above: bytes, device: int) -> Iterator[Piece]:
        """All that is in an open folder, whose path has a ``/`` at its end, or is empty."""
        for name in sorted(map(os.fsencode, os.listdir(folder))):
            path = above + name
            if self._places_left <= 0:
                self._leave_out("number", path)
                return
            self._places_left -= 1
            try:
                found = os.stat(name, dir_fd=folder, follow_symlinks=False)
                yield from self._one(folder, name, path, found, device)
            except OSError:
                self._leave_out("unreadable", path)

    def _one(
        self, folder: int, name: bytes, path: bytes, found: os.stat_result, device: int
    ) -> Iterator[Piece]:
        if path in _OUTPUT:
            self._leave_out("output", path)
        elif not _fits(path):
            self._leave_out("depth", path)
        elif stat.S_ISLNK(found.st_mode):
            target = os.readlink(name, dir_fd=folder)
            if places.leads_out(path, target):
                self._leave_out("link", path)
            else:
                yield Piece(path, "link", data=target)
        elif stat.S_ISREG(found.st_mode) and found.st_dev == device:
            yield from self._file(folder, name, path)
        elif stat.S_ISDIR(found.st_mode) and found.st_dev == device:
            yield Piece(path, "folder", stat.S_IMODE(found.st_mode))
            inner = os.open(name, _OPENED | os.O_DIRECTORY, dir_fd=folder)
            try:
                yield from self._inside(inner, path + b"/", device)
            finally:
                os.close(inner)
        else:
            self._leave_out("special", path)

    def _file(self, folder: int, name: bytes, path: bytes) -> Iterator[Piece]:
        file = os.open(name, _OPENED, dir_fd=folder)
        try:
            found = os.fstat(file)
            left = found.st_size
            if left > self._bytes_left:
                self._leave_out("bytes", path)
                return
            self._bytes_left -= left
            mode, whole = stat.S_IMODE(found.st_mode), False
            while not whole:
                data = os.read(file, min(left, PARCEL_BYTES))
                left -= len(data)
                whole = not data or left <= 0
                yield Piece(path, "file", mode, data, whole)
        finally:
            os.close(file)

    def _leave_out(self, why: Why, path: bytes) -> None:
        known = self._left_out.setdefault(why, LeftOut(why, path, 0))
        known.count += 1


def _fits(path: bytes) -> bool:
    try:
        places.names(path)
    except ValueError:
        return False
    return True
