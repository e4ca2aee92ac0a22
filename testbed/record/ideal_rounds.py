"""Ideal rounds: how long one would take on lines used to the full, with the computing it had."""

from testbed.network.capacity import UNLIMITED, Access, Line, line
from testbed.network.direction import Direction
from testbed.network.topology import Node
from testbed.record.spans import Message


def access(up: Direction, down: Direction) -> Access:
    return Access(line(up), line(down))


def of_node(node: Node) -> Access:
    """Its link as the run begins."""
    if node.profile is None:
        return Access(UNLIMITED, UNLIMITED)
    return access(node.profile.up, node.profile.down)


def client_s(messages: list[Message], up: Line, down: Line, compute_s: float) -> float:
    """All its messages one way and the other and ``compute_s``, one after the other.

    A delay counts once for messages that follow each other in one direction.
    """
    total_s, before = compute_s, None
    for message in sorted(messages, key=lambda message: message.own_ns):
        way = down if message.down else up
        total_s += way.sending_s(message.bytes)
        if message.down is not before:
            total_s += way.delay_ms / 1000
        before = message.down
    return total_s


def round_s(
    messages: dict[str, list[Message]],
    compute_s: dict[str, float],
    clients: dict[str, Access],
    server: Access,
) -> float:
    """The longest of all clients side by side, or what the server's own line needs for all."""
    each_s = [
        client_s(
            own,
            clients[name].up.then(server.down),
            server.up.then(clients[name].down),
            compute_s[name],
        )
        for name, own in messages.items()
    ]
    every = [message for own in messages.values() for message in own if message.with_server]
    sent_bytes = sum(message.bytes for message in every if message.down)
    taken_bytes = sum(message.bytes for message in every if not message.down)
    shared_s = (server.up.sending_s(sent_bytes), server.down.sending_s(taken_bytes))
    return max(*shared_s, *each_s)
