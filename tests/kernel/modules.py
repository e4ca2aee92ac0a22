"""Loading the modules of a User-Mode Linux kernel, from where Debian puts them."""

import os
import subprocess
from pathlib import Path

from uml import MODULES


def load(*names: str) -> None:
    """Load modules with what they depend on, in order."""
    folder = MODULES / os.uname().release
    needs = {}
    for line in (folder / "modules.dep").read_text().splitlines():
        path, _, before = line.partition(":")
        needs[Path(path).name.split(".")[0]] = [*reversed(before.split()), path]
    loaded = {line.split()[0] for line in Path("/proc/modules").read_text().splitlines()}
    for name in names:
        for path in needs[name]:
            module = Path(path).name.split(".")[0]
            if module not in loaded:
                subprocess.run(["insmod", str(folder / path)], check=True)
                loaded.add(module)
