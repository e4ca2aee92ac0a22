"""What a process costs and what a machine is: CPU, private memory, time spent waiting for a CPU."""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("torch", "peft", "transformers", "numpy", "pyzmq", "msgspec", "safetensors")


def usage(pid: int | None = None) -> dict[str, float | int | None]:
    """Private memory (MB of 10^6 bytes), CPU seconds and run-queue delay of a process.

    ``run_delay_s`` is how long its threads were ready and had no core (Linux; else None): time
    that the host and not the network cost.
    """
    process = psutil.Process(pid)
    with process.oneshot():
        times = process.cpu_times()
        private_bytes = process.memory_full_info().uss
    return {
        "pid": process.pid,
        "private_mb": round(private_bytes / 1e6, 2),
        "cpu_s": round(times.user + times.system, 3),
        "run_delay_s": _run_delay_s(process.pid),
    }


def _run_delay_s(pid: int) -> float | None:
    tasks = Path(f"/proc/{pid}/task")
    try:
        delays_ns = [int((task / "schedstat").read_text().split()[1]) for task in tasks.iterdir()]
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
