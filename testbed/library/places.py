"""Places of networks that stay: a folder each, which its keeper holds locked while it lives.

The kernel lets go of a lock with the last process that holds it, so what a killed keeper has left
is told from a network that is up, and cleared by whoever comes upon it.
"""

import contextlib
import errno
import fcntl
import itertools
import os
import re
import socket
import stat
import struct
from pathlib import Path

from testbed.config_error import ConfigError, closest

SOCKET, LOG, LAUNCHER = "socket", "log", "rsh"
VARIABLE = "WIRETUNE_NETWORK"
"""The folder of the network, as programs in its nodes have it."""
UNNAMED = "net-{}"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
CALL_LIMIT_S = 30
"""Until a keeper takes a call, and an order."""
_TIMEVAL = struct.Struct("ll")
_WAITING = 64
"""Visitors that may wait for the keeper's ear at once."""


class Place:
    """A network's folder, open; whoever has it locked is its keeper."""

    def __init__(self, folder: Path, handle: int) -> None:
        """``handle``: a descriptor of the folder, the place's own from now on."""
        self.folder, self.handle = folder, handle
        self.name = folder.name

    @classmethod
    def opened(cls, folder: Path) -> "Place | None":
        """None where there is no such folder any more."""
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            return cls(folder, os.open(folder, flags))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def lock(self) -> bool:
        """Take the lock; False where somebody has it, or the folder was removed meanwhile."""
        try:
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.path.samestat(os.fstat(self.handle), os.lstat(self.folder))
        except (BlockingIOError, FileNotFoundError):
            return False

    def listen(self) -> socket.socket:
        """The socket where visitors come."""
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(_path(self.handle))
        listener.listen(_WAITING)
        return listener

    def clear(self) -> None:
        """Remove what a keeper makes in it."""
        for name in (SOCKET, LOG, LAUNCHER):
            with contextlib.suppress(FileNotFoundError):
                (self.folder / name).unlink()

    def remove(self) -> None:
        """Remove it, but for files of others', and let go of it."""
        self.clear()
        with contextlib.suppress(OSError):
            self.folder.rmdir()
        self.close()

    def close(self) -> None:
        os.close(self.handle)


def home() -> Path:
    """The folder of all of this user's networks, made where it is not there.

    Raises:
        ConfigError: it cannot be made, or somebody else could enter it.
    """
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    own = runtime.is_absolute() and _is_private(runtime)
    folder = runtime / "wiretune" if own else Path(f"/tmp/wiretune-{os.geteuid()}")
    try:
        folder.mkdir(0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: make a folder for networks: {error.strerror}") from error
    if not _is_private(folder):
        raise ConfigError(
            f"{folder}: must be a folder of yours that nobody else may enter (mode 700), for who "
            "gets to a network's socket runs programs as you; move it away"
        )
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise ConfigError(f"{folder}: must be a folder that you may enter and write to (mode 700)")
    return folder


def _is_private(folder: Path) -> bool:
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o77


def take(name: str | None) -> Place:
    """The place of a new network, locked; ``name``: None for the first free of ``net-1``, ….

    Raises:
        ConfigError: a network of that name is up, or it can be no name.
    """
    if name is None:
        for number in itertools.count(1):
            if (place := _taken(home() / UNNAMED.format(number))) is not None:
                return place
    elif not _NAME.fullmatch(name):
        raise ConfigError(
            f"name = {name!r}: must be letters, digits, '-', '_' and '.', 40 at most, and begin "
            "with a letter or digit"
        )
    elif (place := _taken(home() / name)) is not None:
        return place
    raise ConfigError(
        f"name = {name!r}: a network of that name is up; end it by `wiretune down {name}`, or take "
        "another name"
    )


def _taken(folder: Path) -> Place | None:
    """None where a keeper has it.

    Raises:
        ConfigError: it cannot be made.
    """
    while True:
        try:
            with contextlib.suppress(FileExistsError):
                folder.mkdir(0o700)
            place = Place.opened(folder)
            if place is None and _is_other(folder):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        except OSError as error:
            raise ConfigError(
                f"{folder}: make a network's folder: {error.strerror}; free its name, or take "
                "another by --name"
            ) from error
        if place is None:
            continue
        if place.lock():
            place.clear()
            return place
        place.close()
        if folder.exists():
            return None


def _is_other(folder: Path) -> bool:
    """Whether what is there is no folder; a link to one is none."""
    return folder.is_symlink() or (folder.exists() and not folder.is_dir())


def up() -> list[Path]:
    """Folders of the networks that are up; what killed keepers have left is cleared."""
    found = []
    for folder in sorted(home().iterdir()):
        try:
            place = Place.opened(folder)
        except PermissionError:  # Not one of ours, all of which their user may open.
            continue
        if place is None:
            continue
        if place.lock():
            place.remove()
        else:
            place.close()
            found.append(folder)
    return found


def find(asked: str | None) -> Path:
    """The folder of the network that is meant: by its name or its folder, or the only one.

    ``asked``: None for the one whose node this process runs in, else the only one.

    Raises:
        ConfigError: there is none, or there are several.
    """
    asked = asked or os.environ.get(VARIABLE)
    if asked and "/" in asked:
        return Path(asked)
    folders = {folder.name: folder for folder in up()}
    if asked in folders:
        return folders[asked]
    there = ", ".join(folders) or "none"
    if asked:
        near = closest(asked, folders) or "."
        raise ConfigError(f"network {asked!r}: is not up{near} Up are: {there}")
    if not folders:
        raise ConfigError("no network is up; `wiretune up --profile=4g --clients=4` makes one")
    if len(folders) > 1:
        raise ConfigError(f"several networks are up, {there}: say which one is meant")
    return next(iter(folders.values()))


def connect(folder: Path) -> socket.socket:
    """A connection to the keeper of a network.

    Raises:
        ConfigError: it is not up, or not this user's.
    """
    if os.path.lexists(folder) and not _is_private(folder):
        raise ConfigError(f"{folder}: is not yours alone, so no network of yours is there")
    connection = socket.socket(socket.AF_UNIX)
    bound(connection, CALL_LIMIT_S)
    try:
        if (place := Place.opened(folder)) is None:
            raise ConfigError(f"network {folder.name!r}: is not up; `wiretune networks` lists all")
        try:
            connection.connect(_path(place.handle))
        finally:
            place.close()
    except OSError as error:
        connection.close()
        raise ConfigError(
            f"network {folder.name!r}: cannot be reached, it may just begin or end: "
            f"{error.strerror}"
        ) from error
    except ConfigError:
        connection.close()
        raise
    return connection


def bound(connection: socket.socket, limit_s: int) -> None:
    """Have nothing wait longer for who is at the other end to take what is sent there."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(limit_s, 0))


def _path(handle: int) -> str:
    """The socket's path, which may be longer than the 107 bytes that an address of one has."""
    return f"/proc/self/fd/{handle}/{SOCKET}"
