"""Connections by their descriptors, which stay libzmq's: whose they are, and their end."""

import contextlib
import socket
from collections.abc import Iterator

Peer = tuple[str, int]


@contextlib.contextmanager
def borrowed(descriptor: int) -> Iterator[socket.socket]:
    """The connection, to be looked at.

    Raises:
        OSError: there is none any more.
    """
    connection = socket.socket(fileno=descriptor)
    try:
        yield connection
    finally:
        connection.detach()


def peer(descriptor: int) -> Peer:
    """Address and port of its other end; raises OSError likewise."""
    with borrowed(descriptor) as connection:
        address, port, *_ = connection.getpeername()
    return address, port


def end(descriptor: int) -> None:
    """Have libzmq find it ended, and forget what it has yet to take."""
    with contextlib.suppress(OSError), borrowed(descriptor) as connection:
        connection.shutdown(socket.SHUT_RDWR)
