"""The interface of link backends: probe, up, and a Network.

A backend's ``probe`` says whether it can work here, its ``up`` builds the network of a Plan and
returns a Network, which owns every kernel object and process that it made and removes exactly
those in ``down``.
"""

from typing import NamedTuple, Protocol

from testbed.network.direction import Direction
from testbed.network.topology import Node, Plan


class LinkError(RuntimeError):
    """A step of building or running the network failed; the text names the step and the cure."""


class Endpoint(NamedTuple):
    """A node's place: the namespaces it enters, and the address it serves or calls."""

    namespaces: tuple[int, ...]
    """Descriptors of the namespaces to enter, in this order; empty: none."""
    host: str
    port: int
    listener: int | None = None
    """Descriptor of a socket that listens there already, for the server to take."""


class Counters(NamedTuple):
    """Counters of one direction of a node's access link since it was made."""

    frames: int
    """Frames at the node's own interface: sent (up) or delivered to it (down)."""
    bytes: int
    """The same in bytes, with 14 bytes of Ethernet header a frame."""
    queue_drops: int
    losses: int


class LinkCounters(NamedTuple):
    """Both directions of a node's access link, seen from the node."""

    up: Counters
    down: Counters


class Network(Protocol):
    """A network that is up."""

    facts: dict[str, object]
    """What a reader of the result must know of it: backend, privileges, congestion control."""

    record: dict[str, object]
    """What else the "links" event says: of netem its qdiscs, and the way into the namespaces."""

    def endpoint(self, node: Node) -> Endpoint:
        """The place of ``node``; a client's names the server as it sees it."""

    def shape(self, node: Node, up: Direction, down: Direction) -> None:
        """Give ``node``'s access link new parameters from now on.

        What is in the line keeps its times. A trace starts at its first line; its file has been
        read before the network was built, which may read none itself.
        """

    def counters(self) -> list[LinkCounters]:
        """One entry a node, in the plan's order."""

    def fileno(self) -> int:
        """Readable when ``failure`` has something to say."""

    def failure(self) -> str | None:
        """Why the network no longer works, or None while it does."""

    def halted(self) -> str | None:
        """Why it carries nothing at present, though it may go on; None where it does not know."""

    def down(self) -> dict[str, object]:
        """Remove what was made; returns closing facts (lateness of releases). Idempotent."""


class Backend(Protocol):
    """A way to make links."""

    name: str

    def probe(self) -> str | None:
        """None where it works here, else what is missing and what to do about it."""

    def up(self, plan: Plan) -> Network:
        """Build the network.

        Raises:
            LinkError: naming the step that failed.
        """
