"""Program of a node as summary.json has it: how it ended, and its flows."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, UnsetType

from testbed.record.events import Count, Flow, Seconds


class BroughtFiles(msgspec.Struct, kw_only=True):
    host: Annotated[str, "on which they were"]
    files: Count
    bytes: Count
    left_out: Annotated[list[str], "what else there was, and why it is not there"] = []


class Program(msgspec.Struct, kw_only=True):
    node: str
    command: Annotated[str, "as it was given"]
    code: Annotated[
        Count | None, "exit status as of a shell; null: it has not ended, or not begun"
    ] = None
    how: Annotated[str, "`exited with 0`, `killed by SIGTERM`, `could not start: …`"] = ""
    seconds: Annotated[Seconds | None, "that it ran"] = None
    stopped: Annotated[bool, "whether it was asked to end"] = False
    flows: Annotated[list[Flow], "TCP connections by peer and port"] = []
    lookups: Annotated[list[str], "names that were looked up and are no node's"] = []
    sockets: Annotated[list[str], "paths of Unix sockets that other nodes see too"] = []
    missing: Annotated[list[str], "what of a machine of its own it had not, and why"] = []
    brought: Annotated[
        BroughtFiles | UnsetType,
        "of a node on another host: what of its own folder is in the run's",
    ] = UNSET
