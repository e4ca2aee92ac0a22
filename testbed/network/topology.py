"""Topology of a run: its configuration to a Plan of nodes and links.

Pure data: nothing here touches the kernel. A link backend realises the plan.
"""

import ipaddress

import msgspec

from testbed.network.availability import Away
from testbed.network.profiles import LinkProfile
from testbed.network.schedule import interrupted

PORT = 5555
SERVER = "server"
"""The server's name; ``client_name`` has the others'."""
SUBNET = ipaddress.IPv4Network("10.0.0.0/8")
FIRST_CLIENT = ipaddress.IPv4Address("10.1.0.1")


class Node(msgspec.Struct, frozen=True):
    """One process of the run and the access link it stands behind."""

    index: int
    """0 is the server, clients count from 1."""
    name: str
    address: str
    """IPv4 address in the node's own namespace, where the backend makes one."""
    profile: LinkProfile | None
    """The access link; None is a link without limits."""
    away: tuple[Away, ...] = ()
    """When the node has no link and takes part in nothing; the profile's schedule has it too."""
    host: str = ""
    """The machine that has the node, by its name among the run's (``hosts``); of one machine ""."""


class Plan(msgspec.Struct, frozen=True):
    """Every node of a run, the server first."""

    nodes: tuple[Node, ...]
    port: int = PORT
    congestion: str | None = None
    """Congestion control of the nodes' TCP connections; None: the host's default."""

    @property
    def server(self) -> Node:
        return self.nodes[0]

    @property
    def clients(self) -> tuple[Node, ...]:
        return self.nodes[1:]


def client_name(number: int) -> str:
    """``number`` counts from 1."""
    return f"client-{number}"


def client_address(number: int) -> str:
    return str(FIRST_CLIENT + number - 1)


def plan(
    profiles: list[LinkProfile],
    server_profile: LinkProfile | None = None,
    away: list[tuple[Away, ...]] | None = None,
) -> Plan:
    """Lay out one server and a client for each of ``profiles``, in their order.

    ``away``: for each of them when it is; None: never.
    """
    server = Node(0, SERVER, str(SUBNET[1]), server_profile)
    clients = []
    times = away or [()] * len(profiles)
    for number, (profile, own) in enumerate(zip(profiles, times, strict=True), start=1):
        if own:
            states = interrupted(profile.schedule, profile.up, profile.down, own)
            profile = msgspec.structs.replace(profile, schedule=states)
        node = Node(number, client_name(number), client_address(number), profile, own)
        clients.append(node)
    return Plan((server, *clients))
