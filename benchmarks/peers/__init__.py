"""Other people's programs to compare with, in an environment of their own beside the project."""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
INSTALL_LIMIT_S = 900.0


class NoPeer(RuntimeError):
    """The peer cannot be had here; the text says why."""


def environment(folder: Path, *packages: str) -> Path:
    """The Python of a virtual environment in ``folder`` that has ``packages``; made where needed.

    Raises:
        NoPeer: it cannot be made, or the packages cannot be installed.
    """
    python, log = folder / "bin" / "python", folder / ".installed"
    had = log.read_text().splitlines() if log.is_file() and python.exists() else []
    if had and set(packages) <= set(had):
        return python
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    make = [] if had else [[sys.executable, "-m", "venv", str(folder)]]
    for command in [*make, [*pip, *packages]]:
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_LIMIT_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NoPeer(f"{command[2]} {command[-1]}: {error}") from error
        if ended.returncode:
            lines = (ended.stderr or ended.stdout).strip().splitlines() or ["no reason given"]
            raise NoPeer(f"{command[2]} {command[-1]}: {lines[-1]}")
    log.write_text("\n".join({*had, *packages}))
    return python


def version(python: Path, package: str) -> str:
    """Of a package that is installed there."""
    ask = f"from importlib.metadata import version; print(version({package!r}))"
    found = subprocess.run([str(python), "-c", ask], capture_output=True, text=True, check=True)
    return found.stdout.strip()
