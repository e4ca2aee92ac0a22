"""Program of a node as summary.json has it: how it ended, and its flows."""

from __future__ import annotations

from typing import Annotated

import msgspec

from testbed.record.events import Count, Flow, Seconds


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
