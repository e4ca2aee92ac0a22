"""The environment that this process was started with, before it changed its own."""

import os
from pathlib import Path


def original_environment() -> dict[str, str]:
    """Variables as the caller has them, whatever this process has set since; Linux only."""
    found = {}
    for line in Path("/proc/self/environ").read_bytes().split(b"\0"):
        name, equals, value = os.fsdecode(line).partition("=")
        if name and equals:
            found[name] = value
    return found
