"""Isolation of a node: a machine of its own as far as a program can tell.

Beside the network namespace, which the links' backend made, a node has its own host name, hosts
file, name service, process numbers, /proc, /sys, /tmp, /dev/shm and System V and POSIX IPC. By a
user namespace where this process is not root.
"""

import contextlib
import ctypes
import errno
import os
import socket
import stat
from pathlib import Path
from typing import NamedTuple

from testbed.exec.kept import PRIVATE
from testbed.links.interface import LinkError
from testbed.links.linux import namespaces
from testbed.links.process import objection
from testbed.processes.child import fork_alone, run_as_child

OWN = 0x0002_0000 | 0x0400_0000 | 0x0800_0000 | 0x2000_0000
"""CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC and CLONE_NEWPID."""
PROBE_LIMIT_S = 10.0
_NO_SUID, _NO_DEVICES, _NO_PROGRAMS, _BIND, _ALL_BELOW, _PRIVATE = 2, 4, 8, 0x1000, 0x4000, 1 << 18
_ASKED_ELSEWHERE = ("/run/nscd", "/run/systemd/resolve")
"""Folders with sockets of services of this machine that would answer for names."""
_GROUPS = "/sys/fs/cgroup"
_FOR_ALL = 0o644

_libc = ctypes.CDLL(None, use_errno=True)


class View(NamedTuple):
    """A node's own view of the file system."""

    name: str
    files: tuple[tuple[str, str], ...]
    """(a file, the path at which it is seen), such as that of the hosts."""
    kept: tuple[str, ...]
    """Paths inside private folders that are seen there still."""
    texts: tuple[tuple[str, str], ...] = ()
    """(contents of a file that has no place of its own, the path at which it is seen)."""


def probe() -> str | None:
    """None where nodes can be isolated here, else the step that fails and why."""
    return objection("try to isolate a node", _attempt, PROBE_LIMIT_S)


def _attempt() -> None:
    namespaces.enter_user_namespace_if_needed()
    namespaces.enter_new_network_namespace()
    reading, writing = os.pipe()

    def isolated() -> None:
        try:
            isolate(View("probe", (), ()))
        except LinkError as error:
            os.write(writing, str(error).encode())
            raise SystemExit(1) from None

    pid = fork_first()
    if pid == 0:
        run_as_child(isolated, 0)
    os.close(writing)
    with os.fdopen(reading, "rb") as said:
        reason = said.read().decode()
    _, status = os.waitpid(pid, 0)
    if status:
        raise LinkError(reason or "isolate a node: its first process died")


def fork_first() -> int:
    """Fork the first process of a node's namespaces, as ``fork_alone``.

    Raises:
        LinkError: the kernel makes no more of them.
    """
    try:
        return fork_alone(OWN)
    except OSError as error:
        kinds = ", ".join(f"user.max_{kind}_namespaces" for kind in ("pid", "mnt", "uts", "ipc"))
        limit = f" (one of {kinds}, or another limit of this machine)"
        more = limit if error.errno == errno.ENOSPC else ""
        raise LinkError(f"make namespaces of a node: {error.strerror}{more}") from error


def isolate(view: View) -> list[str]:
    """Give this process, the first of its namespaces, the view; what could not be had.

    It stands in the node's network namespace already, whose interfaces /sys is to show.

    Raises:
        LinkError: naming the step that the kernel refused.
    """
    _mount(None, "/", None, _ALL_BELOW | _PRIVATE, "keep a node's mounts its own")
    whole = [folder for folder in PRIVATE if folder in view.kept]
    own = [folder for folder in PRIVATE if folder not in view.kept and Path(folder).is_dir()]
    inside = [path for path in view.kept if path not in whole and Path(path).exists()]
    kept = [(path, _held(path)) for path in inside]
    # Before what holds them may be covered.
    files = [(_held(source), seen) for source, seen in view.files]
    for folder in own:
        _temporary(folder, "1777")
    if view.texts and not own:
        raise LinkError(f"have files of its own: there is neither {' nor '.join(PRIVATE)} here")
    written = [_written(own[0], seen, text) for text, seen in view.texts]
    files += [(_held(path), seen) for path, (_, seen) in zip(written, view.texts, strict=True)]
    for path, descriptor in kept:
        _show(path, descriptor)
    for folder in _ASKED_ELSEWHERE:
        if Path(folder).is_dir():
            _temporary(folder, "755")
    for source, seen in files:
        # A link may lead to a file of a service that does not run here, and to none.
        target = os.path.realpath(seen)
        if Path(target).is_file():
            _bind(source, target, f"have a {seen} of its own")
    for path in written:
        # Once it is seen elsewhere: of no place, it could not be any more.
        os.unlink(path)
    missing = [f"a {path} of its own (it starts there)" for path in whole]
    missing += _own_sys()
    flags = _NO_SUID | _NO_DEVICES | _NO_PROGRAMS
    _mount("proc", "/proc", "proc", flags, "mount a /proc of its own")
    try:
        socket.sethostname(view.name)
    except OSError as error:
        raise LinkError(f"name a node {view.name}: {error.strerror}") from error
    return missing


def _own_sys() -> list[str]:
    """A /sys that shows the node's interfaces; some containers have that of theirs only."""
    groups = _held(_GROUPS) if Path(_GROUPS).is_dir() else None
    try:
        _mount("sysfs", "/sys", "sysfs", _NO_SUID | _NO_DEVICES | _NO_PROGRAMS, "own /sys")
    except LinkError as error:
        return [f"a /sys of its own ({error})"]
    if groups is not None:
        with contextlib.suppress(LinkError):
            _show(_GROUPS, groups)
    return []


def _held(path: str) -> int:
    try:
        return os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise LinkError(f"keep {path} for a node: {error.strerror}") from error


def _written(folder: str, seen: str, text: str) -> str:
    """The path of a file in one of a node's own folders, which is in memory."""
    path = f"{folder}/.wiretune{seen.replace('/', '-')}"
    try:
        Path(path).write_text(text, errors="surrogateescape")
        os.chmod(path, _FOR_ALL)
    except OSError as error:
        raise LinkError(f"write a {seen} of its own: {error.strerror}") from error
    return path


def _show(path: str, descriptor: int) -> None:
    """Have a file or folder at its path again, below what has covered it."""
    step = f"show {path} to a node"
    try:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            os.makedirs(path, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            Path(path).touch()
    except OSError as error:
        raise LinkError(f"{step}: {error.strerror}") from error
    _bind(descriptor, path, step)


def _bind(descriptor: int, target: str, step: str) -> None:
    _mount(f"/proc/self/fd/{descriptor}", target, None, _BIND | _ALL_BELOW, step)
    os.close(descriptor)


def _temporary(folder: str, mode: str) -> None:
    step = f"have a {folder} of its own"
    _mount("tmpfs", folder, "tmpfs", _NO_SUID | _NO_DEVICES, step, f"mode={mode}")


def _mount(
    source: str | None, target: str, kind: str | None, flags: int, step: str, options: str = ""
) -> None:
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind)]
    told = options.encode() or None
    if _libc.mount(*words, ctypes.c_ulong(flags), told) != 0:
        raise LinkError(f"{step}: {os.strerror(ctypes.get_errno())}")
