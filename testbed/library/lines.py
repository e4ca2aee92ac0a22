"""Lines between a network's keeper, whoever made it, and its visitors. Pure data."""

import msgspec

from testbed.config_error import ConfigError
from testbed.fidelity.checks import Certificate
from testbed.links.interface import LinkCounters, LinkError
from testbed.network.direction import Direction
from testbed.network.topology import Plan


class Asked(msgspec.Struct, frozen=True, tag="asked"):
    """The first line to the keeper: the network to build."""

    plan: Plan
    links: str
    certify: bool
    place: str | None = None
    """The folder of a network that is visited; a descriptor of it, locked, comes along."""


class Shape(msgspec.Struct, tag="shape"):
    """An order that gives a node's link new parameters."""

    node: int
    up: Direction
    down: Direction


class Count(msgspec.Struct, tag="count"):
    """An order to tell the links' counters."""


class Stay(msgspec.Struct, tag="stay"):
    """An order to go on without whoever made the network, until a visitor asks for its end."""


class Built(msgspec.Struct, tag="built"):
    """The keeper's word that the network is up."""

    why: str
    """The links' backend, and why that one."""
    inits: list[int]
    """The process that holds each node's namespaces."""
    certificate: Certificate | None


class Counted(msgspec.Struct, tag="counted"):
    counters: list[LinkCounters]


class Refused(msgspec.Struct, tag="refused"):
    """The keeper's last line: what it cannot do, and whether that was wrong to ask for."""

    reason: str
    wrong: bool

    def error(self) -> ConfigError | LinkError:
        return ConfigError(self.reason) if self.wrong else LinkError(self.reason)


Order = Asked | Shape | Count | Stay
Answer = Built | Counted | Refused


class Enter(msgspec.Struct, tag="enter"):
    """A visitor's order to run a program in a node; its three standard streams come along.

    What a user wrote may be no text, so it comes as bytes.
    """

    node: str
    command: list[bytes]
    is_line: bool
    """Whether the command is one line for a shell, and not words."""
    environment: list[bytes]
    """NAME=VALUE each."""
    folder: bytes


class Greet(msgspec.Struct, tag="greet"):
    """The visitor is to hear that the keeper attends, before it hands over what is its own."""


class Signal(msgspec.Struct, tag="signal"):
    """A visitor's order to send its program a signal."""

    number: int


class Ask(msgspec.Struct, tag="ask"):
    """A visitor's order to tell of the network."""


class Close(msgspec.Struct, tag="close"):
    """A visitor's order to end the network; the connection ends once nothing is left of it."""


class Seen(msgspec.Struct):
    """A node as a visitor hears of it."""

    name: str
    address: str
    profile: str | None
    """None: a link without limits."""
    up: int
    down: int
    """Bytes on its access link so far, as on Ethernet."""
    programs: int
    """How many of visitors run there."""


class About(msgspec.Struct, tag="about"):
    """The keeper's word of its network."""

    links: str
    verdict: str | None
    """Of the links' certificate; None: they were not measured."""
    began: str
    """When it was up, by the machine's local time."""
    nodes: list[Seen]


class Greeted(msgspec.Struct, tag="greeted"):
    """The keeper attends."""


class Begun(msgspec.Struct, tag="begun"):
    """That a visitor's program runs."""


class Over(msgspec.Struct, tag="over"):
    """That a visitor's program has ended: its exit status as a shell has it."""

    code: int


VisitOrder = Greet | Enter | Signal | Ask | Close
VisitAnswer = About | Greeted | Begun | Over | Refused
