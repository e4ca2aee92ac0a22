"""Lines between the supervisor of programs and each node's init."""

from typing import Annotated, Literal

import msgspec

from testbed.record.events import Flow


class Start(msgspec.Struct, tag="start"):
    """An order to start the node's program."""


class Await(msgspec.Struct, tag="await"):
    """An order to say when somebody in the node listens on a TCP port."""

    port: int


class Signal(msgspec.Struct, tag="signal"):
    """An order to send a signal to the program and its process group; SIGKILL: to all."""

    number: int


class Bring(msgspec.Struct, tag="bring"):
    """An order to tell the next of what is in the node's own folder; a program that runs still is
    ended for that."""


class Finish(msgspec.Struct, tag="finish"):
    """An order to tell what is known, and to end."""


class Up(msgspec.Struct, tag="up"):
    """Init's word that the node is there."""

    missing: list[str]


class Began(msgspec.Struct, tag="began"):
    """That the program runs."""

    pid: int
    """In the node."""


class Opened(msgspec.Struct, tag="opened"):
    """That the port is listened on."""

    port: int
    locally: bool
    """On 127.0.0.1 alone, where no other node gets to it."""


class Over(msgspec.Struct, tag="over"):
    """That the program and all that it started have ended."""

    status: int | None
    """As from waitpid; None: it could not start, for this reason."""
    reason: str | None
    seconds: float
    cpu_s: float
    private_mb: float
    peak_private_mb: float
    run_delay_s: float
    held_s: float
    """For how long all its processes stood still, held by a signal or a debugger."""
    asked: bool
    """Whether a signal from here had gone to it."""


class Piece(msgspec.Struct):
    """The next bytes of a file in the node's own folder, or a folder or link there."""

    path: bytes
    kind: Literal["folder", "file", "link"]
    mode: Annotated[int, msgspec.Meta(ge=0, le=0o7777)] = 0
    data: bytes = b""
    """Of a link, where it leads."""
    whole: bool = True
    """Nothing more of it follows."""


Why = Literal["bytes", "number", "depth", "link", "special", "output", "unreadable"]


class LeftOut(msgspec.Struct):
    """Places in the folder that are not told, for one of these reasons."""

    why: Why
    first: bytes
    """The path of the first."""
    count: Annotated[int, msgspec.Meta(ge=1, le=2**60)] = 1


class Parcel(msgspec.Struct, tag="parcel"):
    """The answer to one order to bring."""

    pieces: list[Piece]
    left_out: list[LeftOut]
    """With the last one."""
    last: bool


class Closing(msgspec.Struct, tag="closing"):
    """Init's last line."""

    flows: list[Flow]
    lookups: list[str]
    sockets: list[str]


class Broken(msgspec.Struct, tag="broken"):
    """Init's last line in place of all that: the node could not be made."""

    reason: str


Order = Start | Await | Signal | Bring | Finish
Answer = Up | Began | Opened | Over | Parcel | Closing | Broken
