"""Landlock: what of the file system and of TCP a process may still reach, held by the kernel.

The kernel tells which version of it there is, and a ruleset asks for no more than that one knows.
A process can only give away more of its rights, and so can what it starts.
"""

import contextlib
import ctypes
import errno
import os
import stat
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_ASK_VERSION = 1
_BENEATH, _PORT = 1, 2
_BENEATH_RULE, _PORT_RULE = struct.Struct("=Qi"), struct.Struct("=QQ")
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_FILE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 5
_MAKE_FILE, _TRUNCATE, _DEVICE_CALLS = 1 << 8, 1 << 14, 1 << 15
_BIND, _CONNECT = 1 << 0, 1 << 1
_READ = _READ_FILE | _READ_DIR
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _DEVICE_CALLS
_ALL_SINCE = {1: (1 << 13) - 1, 2: 1 << 13, 3: _TRUNCATE, 5: _DEVICE_CALLS}
"""Rights on files by the version that brought them: the second lets files change their folder."""
_NETWORK_SINCE, _SCOPES_SINCE = 4, 6
_OTHERS_SOCKETS, _OTHERS_SIGNALS = 1, 2

_libc = ctypes.CDLL(None, use_errno=True)


class Unavailable(RuntimeError):
    """This kernel does not do it; the text is the reason."""


def version() -> int:
    """The version of its interface that this kernel has, from 1.

    Raises:
        Unavailable: none.
    """
    if sys.platform != "linux":
        raise Unavailable(f"landlock: {sys.platform} has none")
    found = _call(_CREATE, None, ctypes.c_size_t(0), _ASK_VERSION)
    if found < 1:
        raise Unavailable(f"landlock: {_reason()}")
    return found


def restrict(
    reads: Iterable[Path],
    writes: Iterable[Path],
    listens: Iterable[int] | None = None,
    calls: Iterable[int] | None = None,
    *,
    devices: Iterable[Path] = (),
    signals: bool = False,
) -> int:
    """Leave this thread, and what it starts, no other files than those; the version that does it.

    ``reads``, ``writes``: files, or folders with all in them; what is written may be read.
    ``devices``: files that are read, written and called by ioctl.
    ``listens``, ``calls``: TCP ports that it may still take and connect to; None: any. What is
    open stays so. Nothing may be executed, and without ``signals`` no process outside be sent any.
    The thread has given up new privileges (``PR_SET_NO_NEW_PRIVS``) before.

    Raises:
        Unavailable: this kernel has none, or takes no more rulesets.
    """
    had = version()
    rights = sum(bits for since, bits in _ALL_SINCE.items() if since <= had)
    ports = [(_BIND, listens), (_CONNECT, calls)] if had >= _NETWORK_SINCE else []
    network = sum(right for right, allowed in ports if allowed is not None)
    scopes = 0
    if had >= _SCOPES_SINCE:
        scopes = _OTHERS_SOCKETS if signals else _OTHERS_SOCKETS | _OTHERS_SIGNALS
    size = 24 if scopes else 16 if had >= _NETWORK_SINCE else 8
    asked = struct.pack("=QQQ", rights, network, scopes)[:size]
    ruleset = _call(_CREATE, asked, ctypes.c_size_t(size), 0)
    if ruleset < 0:
        raise Unavailable(f"landlock: {_reason()}")
    try:
        for path in reads:
            _allow_path(ruleset, path, _READ & rights)
        change = _READ | _WRITE_FILE | _REMOVE_FILE | _MAKE_FILE | _TRUNCATE
        for path in writes:
            _allow_path(ruleset, path, change & rights)
        for path in devices:
            _allow_path(ruleset, path, (_READ | _WRITE_FILE | _DEVICE_CALLS) & rights)
        for right, allowed in ports:
            for port in allowed or ():
                _add(ruleset, _PORT, _PORT_RULE.pack(right, port))
        if _call(_RESTRICT, ruleset, 0):
            raise Unavailable(f"landlock: {_reason()}")
    finally:
        os.close(ruleset)
    return had


def _allow_path(ruleset: int, path: Path, rights: int) -> None:
    # What is not there needs no rule.
    with contextlib.suppress(OSError):
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISDIR(os.fstat(place).st_mode):
                rights &= _OF_FILES
            _add(ruleset, _BENEATH, _BENEATH_RULE.pack(rights, place))
        finally:
            os.close(place)


def _add(ruleset: int, kind: int, rule: bytes) -> None:
    if _call(_ADD, ruleset, kind, rule, 0):
        raise Unavailable(f"landlock: {_reason()}")


def _call(number: int, *arguments: object) -> int:
    return int(_libc.syscall(number, *arguments))


def _reason() -> str:
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EOPNOTSUPP):
        return "this kernel has none, or has it switched off"
    return os.strerror(number)
