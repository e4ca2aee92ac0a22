"""Silence of the kernel at the other end of a connection, by which a host is known to be gone."""

import contextlib
import socket

SILENT_S = 3
"""A host whose kernel answers nothing for so long is."""


def end_by(connection: socket.socket) -> None:
    """Have the kernel end a connection by that, whether anything is on its way or not."""
    settings = {"TCP_KEEPIDLE": 1, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": SILENT_S}
    settings["TCP_USER_TIMEOUT"] = 1000 * SILENT_S
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in settings.items():
        with contextlib.suppress(OSError, AttributeError):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
