"""Parts of the kernel that links need, looked for without loading any of them."""

import gzip
import os
import sys
from pathlib import Path

CONFIGURED_BY = {
    "sch_netem": "CONFIG_NET_SCH_NETEM",
    "ifb": "CONFIG_IFB",
    "act_mirred": "CONFIG_NET_ACT_MIRRED",
    "tun": "CONFIG_TUN",
}
LOADED, BUILT_IN, AVAILABLE, MISSING = "loaded", "built in", "not loaded", "missing"


def states(root: Path = Path("/"), release: str | None = None) -> dict[str, str]:
    """Each module's state.

    A kernel tells of it in /sys/module, in /lib/modules and in /proc/config.gz, and few tell in
    all three; what none of them names counts as missing. Empty where this is not Linux.
    """
    if sys.platform != "linux":
        return {}
    folder = root / "lib/modules" / (release or os.uname().release)
    builtin, loadable = (_read(folder / name) for name in ("modules.builtin", "modules.dep"))
    configuration = _configuration(root / "proc/config.gz")
    found = {}
    for name, option in CONFIGURED_BY.items():
        file = f"/{name}.ko".encode()
        if (root / "sys/module" / name).exists():
            found[name] = LOADED
        elif file in builtin or f"\n{option}=y".encode() in configuration:
            found[name] = BUILT_IN
        elif file in loadable:
            found[name] = AVAILABLE
        else:
            found[name] = MISSING
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _configuration(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes())
    except (OSError, EOFError):
        return b""
