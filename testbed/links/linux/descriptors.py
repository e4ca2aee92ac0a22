"""Descriptors of the nodes' namespaces, handed by the link process to the supervisor."""

import os


def paths(handed: list[int], nodes: int) -> list[tuple[int, ...]]:
    """Each node's namespaces, in the order to enter them: the user's, if there is one, comes first.

    ``handed``: that one, and then one of each node.
    """
    return [(*handed[:-nodes], network) for network in handed[-nodes:]]


def way_in(nodes: list[tuple[int, ...]], link: int | None = None) -> dict[str, object]:
    """This process, and what of it holds the namespaces of ``nodes`` and the one between them."""
    return {
        "pid": os.getpid(),
        "user": nodes[0][0] if len(nodes[0]) > 1 else None,
        "link": link,
        "nodes": [path[-1] for path in nodes],
    }
