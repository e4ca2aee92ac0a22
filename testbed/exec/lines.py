"""Lines between the supervisor of programs and each node's init."""

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
    asked: bool
    """Whether a signal from here had gone to it."""


class Closing(msgspec.Struct, tag="closing"):
    """Init's last line."""

    flows: list[Flow]
    lookups: list[str]
    sockets: list[str]


class Broken(msgspec.Struct, tag="broken"):
    """Init's last line in place of all that: the node could not be made."""

    reason: str


Order = Start | Await | Signal | Finish
Answer = Up | Began | Opened | Over | Closing | Broken
