"""What a process costs and what a machine is: CPU, private memory, time spent waiting for a CPU."""

import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from testbed import retransmissions

_SMAPS = Path("/proc/self/smaps_rollup")
_TASKS = Path("/proc/self/task")

PACKAGES = ("torch", "peft", "transformers", "numpy", "pyzmq", "msgspec", "safetensors")


def usage() -> dict[str, Any]:
    """Private memory (MB of 10^6 bytes), CPU seconds and run-queue delay of this process.

    And what its TCP connections have sent again, as ``retransmissions.by_peer`` has it.

    ``run_delay_s`` is how long its threads were ready and had no core (Linux; else None): time
    that the host and not the network cost.
    """
    return {
        "pid": os.getpid(),
        "private_mb": round(_private_bytes() / 1e6, 2),
        "cpu_s": round(time.process_time(), 3),
        "run_delay_s": _run_delay_s(),
        "retransmitted": retransmissions.by_peer(),
    }


def _private_bytes() -> int:
    """Bytes that no other process shares: the unique set size."""
    if not _SMAPS.exists():
        return int(psutil.Process().memory_full_info().uss)
    # psutil reads the same file, and leaves half a megabyte behind in a process of twenty.
    fields = (line.split() for line in _SMAPS.read_bytes().splitlines())
    return 1024 * sum(int(row[1]) for row in fields if row[0].startswith(b"Private_"))


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
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "memory_mb": round(psutil.virtual_memory().total / 1e6),
        "git": _git_revision(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """The project's commit, with "+changes" where the work tree differs; None outside git."""
    folder = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty=+changes", "--abbrev=12", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
