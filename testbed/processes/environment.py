"""The environment that this process was started with, and what of it is kept from others."""

import contextlib
import ctypes
import os
from collections.abc import Mapping
from pathlib import Path

TOKEN = "WIRETUNE_TOKEN"
"""The variable that has the token of a run's hosts, with which programs are started on them."""
_BEGIN, _END = 47, 48
"""Of the fields of /proc/PID/stat behind the name: where the environment stands in memory."""


def original_environment() -> dict[str, str]:
    """Variables as the caller has them, whatever this process has set since; Linux only."""
    found = {}
    for line in Path("/proc/self/environ").read_bytes().split(b"\0"):
        name, equals, value = os.fsdecode(line).partition("=")
        if name and equals:
            found[name] = value
    return found


def for_others(variables: Mapping[str, str]) -> dict[str, str]:
    """A caller's variables as programs in nodes get them: without the hosts' token."""
    return {name: value for name, value in variables.items() if name != TOKEN}


def take_token() -> str:
    """The hosts' token, or "": it is no longer in this process's environment, nor in that of what
    it forks, and the kernel shows it to nobody there."""
    found = os.environ.pop(TOKEN, "")
    with contextlib.suppress(OSError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        at, end = int(fields[_BEGIN]), int(fields[_END])
        for line in ctypes.string_at(at, end - at).split(b"\0"):
            if line.startswith(f"{TOKEN}=".encode()):
                ctypes.memset(at, 0, len(line))
            at += len(line) + 1
    return found
