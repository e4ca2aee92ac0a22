"""Messages between a run's driver and the agents of its hosts."""

import msgspec

from testbed.fidelity import host_prober
from testbed.links.interface import LinkCounters
from testbed.links.process import Facts, Shape
from testbed.processes.worker import Stop
from testbed.record.events import Known
from testbed.run.config import RunConfig
from testbed.run.hosts.line import Refused
from testbed.run.states import StatePiece
from testbed.run.zygote import Forked, Prepared, Reaped, Told


class Hello(msgspec.Struct, tag="hello"):
    """An agent's first word to who has called: what its host is."""

    software: dict[str, str | None]
    """Versions by what they are of."""
    cores: int
    memory_bytes: int
    """Free."""
    busy: bool = False
    """It has a run already, and ends the line."""


class Ask(msgspec.Struct, tag="ask"):
    """The driver's question for the agent's clock."""

    asked: float


class Tell(msgspec.Struct, tag="tell"):
    """The answer: when it was asked by the one's clock, heard and answered by the other's."""

    asked: float
    heard: float
    answered: float


class Load(msgspec.Struct, tag="load"):
    """The driver's order to import what the check will take, while it does so itself."""


class Check(msgspec.Struct, tag="check"):
    """The driver's question whether the host can have a part in this run."""

    config: RunConfig


class Checked(msgspec.Struct, tag="checked"):
    """The answer of one that can."""

    digests: dict[str, str | None]
    """Of model, data and files, by what they are."""
    port: int
    """Where its link process will be met, at the address that was called."""


class Give(msgspec.Struct, tag="give"):
    """The next piece of the state that a node of the agent's goes on from."""

    node: int
    data: bytes


class Begin(msgspec.Struct, tag="begin"):
    """The driver's order to make the part of the run's network, and to load."""

    host: str
    """The agent's own name among the hosts."""
    addresses: dict[str, tuple[str, int]]
    """Of all hosts, where their link processes are met, in their order."""
    place: str
    """The placement of all nodes, as text (``testbed/network/hosts.py``)."""
    chance: bytes
    """Of which, and of the token, the run's secrets are made."""
    ahead_s: float
    """How far the driver's monotonic clock is ahead of the agent's."""
    run: str | None = None
    """The run's identity, which states of its nodes have."""


class Up(msgspec.Struct, tag="up"):
    """An agent's word that its part of the network carries packets."""

    facts: Facts


class Spawn(msgspec.Struct, tag="spawn"):
    """The driver's order to start a node."""

    node: int


class Say(msgspec.Struct, tag="say"):
    """The driver's word to a node."""

    node: int
    told: Told


class Said(msgspec.Struct, tag="said"):
    """A node's word, which its agent passes on."""

    node: int
    event: Known | StatePiece


class Trains(msgspec.Struct, tag="trains"):
    """The driver's word that training goes on, and links change at their times from then on."""

    began_s: float
    """When it began, by the run's clock, as if it had not been interrupted."""
    trained_s: float
    """How long it had gone on before the run was resumed."""


class Trained(msgspec.Struct, tag="trained"):
    """The driver's word that it is over."""


class Count(msgspec.Struct, tag="count"):
    """The driver's question for the links' counters."""


class Counted(msgspec.Struct, tag="counted"):
    """The answer, a row for each node of the run; those of other hosts' nodes are 0."""

    counters: list[LinkCounters]


class Logged(msgspec.Struct, tag="logged"):
    """Lines that a node of an agent's has written to its standard error."""

    text: str
    node: int | None = None
    """None: a process that is none."""


class StartCapture(msgspec.Struct, tag="start_capture"):
    """The driver's order to capture the agent's clients' packets from now on."""

    wall_s: float
    """The driver's time since 1970 less its monotonic clock as the agent has it."""
    server: bool = False
    """The server's too, where that is there."""


class Capturing(msgspec.Struct, tag="capturing"):
    """The answer, once that is so."""


class EndCapture(msgspec.Struct, tag="end_capture"):
    """The driver's order to end that, and to send what was captured."""


class CapturePiece(msgspec.Struct, tag="capture_piece"):
    """The next bytes of a node's file."""

    node: int
    data: bytes


class CaptureEnded(msgspec.Struct, tag="capture_ended"):
    """The last word on a capture, as of ``testbed.metering.capture.Captured``."""

    packets: list[int]
    dropped: list[int]
    failure: str | None


class Severed(msgspec.Struct, tag="severed"):
    """An agent's word that its link process has lost another host."""

    host: str
    reason: str


class Closing(msgspec.Struct, tag="closing"):
    """The last word of an agent whose part is taken down."""

    facts: Facts


Order = (
    Ask
    | Load
    | Check
    | Give
    | Begin
    | Spawn
    | Say
    | Shape
    | Trains
    | Trained
    | Count
    | StartCapture
    | EndCapture
    | host_prober.Order
    | Stop
)
"""What an agent hears."""
Answer = (
    Hello | Tell | Checked | Refused | Up | Prepared | Forked | Reaped | Said | Counted | Severed
    | Closing | Logged | Capturing | CapturePiece | CaptureEnded | host_prober.Answer
)  # fmt: skip
"""What a driver hears."""
