"""Descriptors of the nodes' namespaces, handed by the link process to the supervisor."""

import os

from testbed.links.interface import LinkError
from testbed.processes.channel import MAX_FDS_PER_LINE, Channel


def give(channel: Channel, descriptors: list[int]) -> None:
    """Send descriptors and close them here."""
    for start in range(0, len(descriptors), MAX_FDS_PER_LINE):
        channel.send({}, tuple(descriptors[start : start + MAX_FDS_PER_LINE]))
    for descriptor in descriptors:
        os.close(descriptor)


def take(channel: Channel, count: int) -> list[int]:
    """Receive what ``give`` sent.

    Raises:
        LinkError: fewer than ``count`` came.
    """
    while len(channel.descriptors) < count:
        try:
            channel.receive(10)
        except (ConnectionError, TimeoutError) as error:
            raise LinkError(f"receive the nodes' namespaces: {error}") from error
    return [channel.descriptors.popleft() for _ in range(count)]


def way_in(nodes: list[tuple[int, ...]], link: int | None = None) -> dict[str, object]:
    """This process, and what of it holds the namespaces of ``nodes`` and the one between them."""
    return {
        "pid": os.getpid(),
        "user": nodes[0][0] if len(nodes[0]) > 1 else None,
        "link": link,
        "nodes": [path[-1] for path in nodes],
    }
