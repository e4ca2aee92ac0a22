"""State of any process, as the system has it."""

from pathlib import Path

from testbed import files

HELD = "Tt"
"""By a signal, or by a debugger."""


def letter(pid: int) -> str | None:
    """The state of a process by its letter (proc(5)); None: it is gone, or the system has none."""
    try:
        # Its name, in parentheses, may hold any character.
        status = "".join(files.system_lines(Path(f"/proc/{pid}/stat")))
    except OSError:
        return None
    return status.rpartition(")")[2].split()[0]


def is_held(pid: int) -> bool:
    """Whether a signal or a debugger holds it; False where the system does not tell."""
    return (letter(pid) or " ") in HELD
