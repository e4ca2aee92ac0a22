"""Endings of programs and of their run: an exit status and words."""

import os
from typing import NamedTuple

from testbed.processes.child import describe_exit

TIMED_OUT, NOT_STARTED, NOT_FOUND, INTERRUPTED = 124, 126, 127, 130
"""Exit statuses, as those of timeout(1) and of shells."""
BY_SIGNAL = 128
"""Added to the number of the signal that ended a program, as shells do."""
_ENOENT = 2


class Ending(NamedTuple):
    """How something ended."""

    code: int
    how: str


def code_of(status: int | None, reason: str | None) -> int:
    """A program's exit status as a shell has it; ``reason``: why it could not start."""
    if status is None:
        number = (reason or "").partition(" ")[0]
        return NOT_FOUND if number == str(_ENOENT) else NOT_STARTED
    if os.WIFSIGNALED(status):
        return BY_SIGNAL + os.WTERMSIG(status)
    return os.waitstatus_to_exitcode(status)


def how_of(status: int | None, reason: str | None) -> str:
    """ "exited with 3", "killed by SIGTERM", "could not start: No such file or directory: x" """
    if status is None:
        return f"could not start: {(reason or '').partition(' ')[2]}"
    return describe_exit(status)
