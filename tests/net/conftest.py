"""Networks and stations that end with their test."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from machines import Machines, Make
from stations import Station

from testbed.links.interface import Network
from testbed.links.userspace import backend as userspace
from testbed.network.profiles import LinkProfile
from testbed.network.topology import Node, Plan, plan
from testbed.processes.channel import Channel

Build = Callable[..., tuple[Plan, Network]]
Stand = Callable[[Network, Node, Callable[[Channel], Any]], Station]


@pytest.fixture
def build(userspace_links: None) -> Iterator[Build]:
    """``build(profile, profile, ...)``: a network of a server and a client for each."""
    with contextlib.ExitStack() as owned:

        def make(*profiles: LinkProfile, server: LinkProfile | None = None) -> tuple[Plan, Network]:
            layout = plan(list(profiles), server)
            network = userspace.up(layout)
            owned.callback(network.down)
            return layout, network

        yield make


@pytest.fixture
def stand() -> Iterator[Stand]:
    """``stand(network, node, body)``: a process in the node's namespaces."""
    with contextlib.ExitStack() as owned:

        def make(network: Network, node: Node, body: Callable[[Channel], Any]) -> Station:
            station = Station(network, node, body)
            owned.callback(station.close)
            return station

        yield make


@pytest.fixture
def machines(userspace_links: None, root: None, tmp_path: Path) -> Iterator[Make]:
    """``machines(count)``: so many machines, which are closed at the end."""
    made: list[Machines] = []

    def make(count: int = 2) -> Machines:
        made.append(Machines(count, tmp_path))
        return made[-1]

    yield make
    for each in made:
        each.close()
