"""Reading and writing in folders that somebody else may have made.

What is read is a regular file of a size that was asked for: no pipe on which a reader would wait
for ever, and no device without an end. What is written stays in the folder where it was to go: a
symbolic link in its place is replaced, or refused, and never followed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

MEGABYTE = 1_000_000
_BLOCK_BYTES = 1 << 20
CONFIG = "config.toml"
"""In a run's folder."""
CONFIG_BYTES = MEGABYTE
"""Most that a file of settings may have."""
SUMMARY_BYTES = 256 * MEGABYTE
"""Most of a summary.json; one of 20,000 rounds has 27 MB."""


def opened(path: Path) -> BinaryIO:
    """A regular file, to read.

    Raises:
        OSError: it cannot be opened, or is none.
    """
    return _opened(path, os.O_RDONLY, "rb")


def read(path: Path, most_bytes: int) -> bytes:
    """All of a regular file.

    Raises:
        OSError: as ``opened``; or it has more than ``most_bytes``.
    """
    with opened(path) as file:
        found = contents(file, most_bytes + 1)
    if len(found) > most_bytes:
        raise OSError(errno.EFBIG, f"has more than {most_bytes / MEGABYTE:g} MB", str(path))
    return found


def contents(file: BinaryIO, most_bytes: int) -> bytes:
    """All of a file from where it stands, up to ``most_bytes``; not by its size, which may grow.

    In blocks, since Python makes room at once for all that is asked for.
    """
    found = bytearray()
    while block := file.read(min(_BLOCK_BYTES, most_bytes - len(found))):
        found += block
    return bytes(found)


def system_lines(path: Path) -> list[str]:
    """Lines of a file of the system's, which may quote names of any bytes, as paths and programs
    have them.

    Raises:
        OSError: it cannot be read.
    """
    found = path.read_bytes().decode(errors="surrogateescape").split("\n")
    return found if found[-1] else found[:-1]


def updated(path: Path) -> BinaryIO:
    """A file that is there, to read and to write to; no link.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    return _opened(path, os.O_RDWR | os.O_NOFOLLOW, "r+b")


def appended(path: Path) -> BinaryIO:
    """A file to write to at its end, new or as it is there, unbuffered; no link.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    return _opened(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, "ab", 0)


def created(path: Path) -> BinaryIO:
    """A new file to write to, in place of whatever is there under this name.

    Raises:
        OSError: it cannot be made.
    """
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    return _opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, "wb")


def write(path: Path, content: bytes) -> None:
    """Replace ``path`` in one step, so that a reader never sees half of it.

    Raises:
        OSError: it cannot be written; what was there is there still.
    """
    unfinished = path.with_name(f".{path.name}")
    try:
        with created(unfinished) as file:
            file.write(content)
        unfinished.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise


def folder(path: Path) -> Path:
    """A folder to write in, new or as it is there; no link to another.

    Raises:
        OSError: it cannot be made, or something else is there.
    """
    with contextlib.suppress(FileExistsError):
        path.mkdir()
    if not stat.S_ISDIR(path.lstat().st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    return path


def caller() -> tuple[int, int] | None:
    """User and group that root works for, where it was called by ``sudo``."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return None
    found = [os.environ.get(name, "") for name in ("SUDO_UID", "SUDO_GID")]
    if not all(text.isascii() and text.isdecimal() and len(text) < 10 for text in found):
        return None
    user, group = map(int, found)
    return (user, group) if user else None


def give(path: Path, owner: tuple[int, int]) -> None:
    """Give a file or a folder, with all in it, to a user and group, by root.

    What has another name elsewhere stays whose it is, as do links and what they lead to: in a
    folder that others may write to, a name could be of anything.

    Raises:
        OSError: it is not there, or may not be given.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _give(descriptor, owner)
    finally:
        os.close(descriptor)


def _give(descriptor: int, owner: tuple[int, int]) -> None:
    found = os.fstat(descriptor)
    inside = os.listdir(descriptor) if stat.S_ISDIR(found.st_mode) else []
    for name in inside:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with contextlib.suppress(OSError):
            inner = os.open(name, flags, dir_fd=descriptor)
            try:
                _give(inner, owner)
            finally:
                os.close(inner)
    if stat.S_ISDIR(found.st_mode) or (stat.S_ISREG(found.st_mode) and found.st_nlink == 1):
        os.fchown(descriptor, *owner)


def _opened(path: Path, flags: int, mode: str, buffering: int = -1) -> BinaryIO:
    # Without waiting: that is what opening a pipe would do.
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "is no regular file", str(path))
        return os.fdopen(descriptor, mode, buffering)  # type: ignore[return-value]
    except BaseException:
        os.close(descriptor)
        raise
