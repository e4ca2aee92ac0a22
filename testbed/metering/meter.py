"""Costs of a process (CPU, private memory, waits for a core), and the environment of a run."""

import contextlib
import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from testbed import files
from testbed.metering import retransmissions
from testbed.processes import cores

_SMAPS = Path("/proc/self/smaps_rollup")
_TASKS = Path("/proc/self/task")
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_THREAD = "/proc/thread-self/schedstat"
_RESET_PEAK = b"5"

PROJECT = Path(__file__).parents[2]
PACKAGES = ("wiretune", "torch", "peft", "transformers", "numpy", "pyzmq", "msgspec", "safetensors")


def usage() -> dict[str, Any]:
    """Private memory (MB of 10^6 bytes), CPU seconds and run-queue delay of this process.

    ``peak_private_mb`` is the most since the last call, None where the system does not say.

    And what its TCP connections have sent again, as ``retransmissions.by_peer`` has it.

    ``run_delay_s`` is how long its threads were ready and had no core (Linux; else None): time
    that the host and not the network cost.
    """
    private = _private_bytes()
    peak = _peak_bytes(private)
    return {
        "pid": os.getpid(),
        "private_mb": round(private / 1e6, 2),
        "peak_private_mb": None if peak is None else round(peak / 1e6, 2),
        "cpu_s": round(time.process_time(), 3),
        "run_delay_s": _run_delay_s(),
        "retransmitted": retransmissions.by_peer(),
    }


_reset: tuple[int, int] | None = None
"""A process, and its descriptor of its own ``_CLEAR_REFS``."""


def ready() -> None:
    """Open what ``usage`` writes to: a process that is confined may open it no more."""
    with contextlib.suppress(OSError):
        _clear_refs()


def _clear_refs() -> int:
    global _reset
    if _reset is None or _reset[0] != os.getpid():
        _reset = os.getpid(), os.open(_CLEAR_REFS, os.O_WRONLY | os.O_CLOEXEC)
    return _reset[1]


def _private_bytes() -> int:
    """Bytes that no other process shares: the unique set size."""
    if not _SMAPS.exists():
        return int(psutil.Process().memory_full_info().uss)
    # psutil reads the same file, and leaves half a megabyte behind in a process of twenty.
    fields = (line.split() for line in _SMAPS.read_bytes().splitlines())
    return 1024 * sum(int(row[1]) for row in fields if row[0].startswith(b"Private_"))


def _peak_bytes(private: int) -> int | None:
    """Most private bytes since the last call, of which ``private`` are left.

    What is given back left the resident set too. Shared pages that were written to after the peak
    make it too large by as much: they were resident before and are private now.
    """
    try:
        peak, now = status_bytes("VmHWM"), status_bytes("VmRSS")
        with contextlib.suppress(OSError):
            os.write(_clear_refs(), _RESET_PEAK)
    except (OSError, KeyError):
        return None
    return private + max(0, peak - now)


def status_bytes(field: str) -> int:
    """A size from /proc/self/status, such as VmRSS.

    Raises:
        OSError: there is no such file.
        KeyError: it has no such field.
    """
    rows = (line.split() for line in files.system_lines(_STATUS))
    found = {row[0].rstrip(":"): row[1] for row in rows if len(row) == 3}
    return 1024 * int(found[field])


class _ThreadDelay:
    """The descriptor stays open, for this is asked at every message of a node."""

    def __init__(self) -> None:
        self._file: tuple[int, int] | None = None

    def __call__(self) -> float | None:
        """How long this thread was ready and had no core, in seconds; None where unknown."""
        # What a parent opened is about the parent; a node asks from its main thread alone.
        if self._file is None or self._file[0] != os.getpid():
            try:
                self._file = os.getpid(), os.open(_THREAD, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return None
        return int(os.pread(self._file[1], 100, 0).split()[1]) / 1e9


thread_delay_s = _ThreadDelay()


def _run_delay_s() -> float | None:
    try:
        delays_ns = [int((task / "schedstat").read_bytes().split()[1]) for task in _TASKS.iterdir()]
    except (OSError, IndexError):
        return None
    return round(sum(delays_ns) / 1e9, 3)


def environment() -> dict[str, Any]:
    """The machine and the software of a run, without importing what it lists."""
    return {
        "python": platform.python_version(),
        "torch": _version("torch"),
        "kernel": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cores": cores.usable(),
        "memory_mb": round(psutil.virtual_memory().total / 1e6),
        "git": _git_revision(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def busy_cores_s() -> float:
    """Seconds that this machine's cores have worked since it started, all of them together."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # A guest's time is in the user's too.
    return float(sum(times) - idle - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """The project's commit, with "+changes" where the work tree differs.

    None where this is no checkout of it: an installed package within another project's is not.
    """
    top = _git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != PROJECT.resolve():
        return None
    return _git("describe", "--always", "--dirty=+changes", "--abbrev=12", "--exclude=*")


def _git(*words: str) -> str | None:
    # What git itself tells a hook is of the repository that has the hook.
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        found = subprocess.run(
            ["git", *words],
            cwd=PROJECT,
            env=own,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
