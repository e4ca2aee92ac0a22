"""Costs of a node's programs: memory, waits for a core, stops, and sockets that others see.

Asked of the processes of this process's own PID namespace, whose first it is.
"""

import contextlib
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from testbed import files
from testbed.exec import listening
from testbed.exec.kept import PRIVATE
from testbed.processes import states
from testbed.report.text import one_line

_PROC = Path("/proc")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_INIT = 1
_ENDED = {None, "Z", "X"}
"""States of processes that are gone, or are left to be reaped."""


class Costs:
    """Samples what processes have taken: what they did since their last sample is not in it."""

    def __init__(self, kept: Sequence[str], own_folder: str) -> None:
        """``kept``: paths in private folders that others see; ``own_folder``: one of this node."""
        self._kept, self._own_folder = kept, own_folder
        self.private_mb = self.peak_mb = 0.0
        """MB of 10^6 bytes that are theirs alone: of all processes at the last sample, and the most
        at any."""
        self._delays: dict[tuple[str, str], int] = {}
        """Nanoseconds by process and thread."""
        self.shared_sockets: set[str] = set()
        self.held_s = 0.0
        """For how long a signal or a debugger held all processes, by looks at a sample. A program
        may hold some of its own, as a shell does its jobs: then one of them goes on."""
        self._sampled_s: float | None = None

    @property
    def run_delay_s(self) -> float:
        """How long threads were ready and had no core, of all that were ever seen."""
        return sum(self._delays.values()) / 1e9

    def sample(self) -> None:
        pages = 0
        letters = set()
        for process in _processes():
            letters.add(states.letter(int(process.name)))
            with contextlib.suppress(OSError, ValueError, IndexError):
                resident, shared = (process / "statm").read_text().split()[1:3]
                pages += int(resident) - int(shared)
                for task in (process / "task").iterdir():
                    delay = int((task / "schedstat").read_text().split()[1])
                    self._delays[process.name, task.name] = delay
        self.private_mb = pages * _PAGE_BYTES / 1e6
        self.peak_mb = max(self.peak_mb, self.private_mb)
        self.shared_sockets |= {path for path in _sockets() if self._is_shared(path)}
        before_s, self._sampled_s = self._sampled_s, time.monotonic()
        there = letters - _ENDED
        if there and there <= set(states.HELD) and before_s is not None:
            self.held_s += self._sampled_s - before_s

    def _is_shared(self, path: str) -> bool:
        """Whether other nodes see a socket of that path."""
        if _is_in(path, (self._own_folder,)):
            return False
        return not _is_in(path, PRIVATE) or _is_in(path, self._kept) or path in self._kept


def _processes() -> list[Path]:
    return [each for each in _PROC.iterdir() if each.name.isdecimal() and each.name != str(_INIT)]


def _sockets() -> list[str]:
    """Paths of this network namespace's Unix sockets."""
    found = []
    with contextlib.suppress(OSError):
        for line in files.system_lines(_PROC / "net/unix")[1:]:
            path = line.split(maxsplit=7)[7:]
            if path and path[0].startswith("/"):
                found.append(one_line(path[0]))
    return found


def _is_in(path: str, folders: Iterable[str]) -> bool:
    return path.startswith(tuple(f"{folder}/" for folder in folders))


def listens(port: int) -> bool | None:
    """Whether somebody listens on a TCP port of this namespace; None: on 127.0.0.1 alone."""
    reached = listening.ports(_PROC / "net").get(port)
    return False if reached is None else reached or None
