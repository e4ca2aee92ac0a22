"""Sealed streams and lines both ends of which have agreed, in one thread."""

import select
import socket
import time
from collections.abc import Callable
from typing import Any

from testbed.links.tunnel.streams import Sealed
from testbed.run.hosts.line import Line

SECRET = b"s" * 32
LIMIT_S = 20.0


def agreed(
    called: socket.socket,
    calling: socket.socket,
    secret: bytes = SECRET,
    between: Callable[[], object] = lambda: None,
) -> tuple[Sealed, Sealed]:
    """Both ends, blocking; ``between``: has what is on its way come further, if somebody is there.

    Raises:
        Broken: as one of them says.
    """
    ends = Sealed(called, secret, serves=True), Sealed(calling, secret, serves=False)
    for each in ends:
        each.settimeout(0)
    by = time.monotonic() + LIMIT_S
    while not all([end.agrees() for end in ends]):
        assert time.monotonic() < by
        between()
    for each in ends:
        each.settimeout(None)
    return ends


def lines(
    calling: socket.socket,
    called: socket.socket,
    answer: Any,
    order: Any,
    between: Callable[[], object] = lambda: None,
) -> tuple[Line, Line]:
    """A driver's end and an agent's."""
    agent, driver = agreed(called, calling, between=between)
    return Line(driver, answer), Line(agent, order)


def pass_on(one: socket.socket, other: socket.socket) -> tuple[bytes, bytes]:
    """What somebody between two has of either now, and has passed on."""
    found = {one: b"", other: b""}
    for end in select.select([one, other], [], [], 0)[0]:
        found[end] = end.recv(1 << 16)
        (other if end is one else one).sendall(found[end])
    return found[one], found[other]
