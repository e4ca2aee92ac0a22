"""User-Mode Linux: a kernel with sch_netem as an ordinary process, on the host's own files."""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

KERNEL = "linux.uml"
MODULES = Path("/usr/lib/uml/modules")
MEMORY = "1G"
MEMORY_BYTES = 1 << 30
TAIL_LINES = 40
LIMIT_S = 400.0
"""Of one boot; about 110 s are needed."""
LAUNCHES_LIMIT_S = 800.0
"""About 140 s are."""

_INIT = """#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
export PYTHONDONTWRITEBYTECODE=1 PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8
cd {folder}
{command}
echo "the program ended with $?"
{off}
"""
_POWER_OFF = "import ctypes; ctypes.CDLL(None).reboot(0x4321FEDC)"


class BootError(RuntimeError):
    """The kernel or the program in it did not end well; the text has the console's end."""


def missing() -> str | None:
    """What to install, or None."""
    if not sys.platform.startswith("linux"):
        return "User-Mode Linux needs Linux"
    wanted = {KERNEL: "user-mode-linux", "insmod": "kmod"}
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    packages = [package for tool, package in wanted.items() if not shutil.which(tool, path=path)]
    return f"apt-get install {' '.join(packages)}" if packages else None


def run(program: Path, arguments: list[str], folder: Path, limit_s: float) -> None:
    """Boot, run ``program`` as root with this interpreter, power off.

    ``folder`` is where the program starts and where the kernel keeps its own files.

    Raises:
        BootError: it took longer than ``limit_s``, or the program did not exit with 0.
    """
    init, console = folder / "init.sh", folder / "console.txt"
    command = shlex.join([sys.executable, str(program), *arguments])
    off = shlex.join([sys.executable, "-S", "-c", _POWER_OFF])
    init.write_text(_INIT.format(folder=shlex.quote(str(folder)), command=command, off=off))
    init.chmod(0o755)
    kernel = [
        KERNEL,
        f"mem={MEMORY}",
        *("rootfstype=hostfs", "rootflags=/", "rw"),
        f"init={init}",
        *("con=null", "con0=fd:0,fd:1"),
        f"uml_dir={folder}/",
        "panic=1",
    ]
    environment = {**os.environ, "TMPDIR": _memory_folder(folder)}
    with console.open("wb") as written:
        # A session of its own, so that every process of the kernel can be ended together.
        process = subprocess.Popen(
            kernel,
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        # Its kernel and its programs take turns, which costs more from one core to another.
        os.sched_setaffinity(process.pid, {max(os.sched_getaffinity(0))})
        # Its clock goes on while others have the processor, and what it measures is time.
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(process.pid, os.SCHED_RR, os.sched_param(1))
        began = time.monotonic()
        try:
            process.wait(limit_s)
            reason = None
        except subprocess.TimeoutExpired:
            reason = f"still ran after {limit_s:g} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    lines = console.read_text(errors="replace").splitlines()
    if reason is None and not any(line.endswith("the program ended with 0") for line in lines):
        reason = f"failed after {time.monotonic() - began:.1f} s"
    if reason is not None:
        tail = "\n".join(lines[-TAIL_LINES:])
        raise BootError(f"{KERNEL} {reason}; the end of its console:\n{tail}")


def _memory_folder(folder: Path) -> str:
    """Where the kernel's memory lies as a file: RAM where there is enough, as in no container."""
    shared = Path("/dev/shm")
    if shared.is_dir() and shutil.disk_usage(shared).free > MEMORY_BYTES:
        return str(shared)
    return str(folder)
