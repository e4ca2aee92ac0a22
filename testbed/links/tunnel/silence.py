"""Silence of the kernel at the other end of a connection, by which a host is known to be gone.

The kernel ends a connection by it, but counts anew from what this end says into the silence; who
looks by itself does not.
"""

import contextlib
import socket
import struct

SILENT_S = 3
"""A host whose kernel answers nothing for so long is."""
LOOK_S = 0.5
"""Of a wait for a connection, between looks."""
_LAST_HEARD_MS, _LAST_HEARD_AT = struct.Struct("=II"), 52
"""Since data came, and since an acknowledgement did."""
_RETRIES, _PROBES = 2, 3
"""Of what was sent and not answered, and of questions whether the other end is there."""
_INFO_BYTES = 60
"""Of Linux's struct tcp_info, whose places these are."""


def end_by(connection: socket.socket) -> None:
    """Have the kernel end a connection by that, whether anything is on its way or not."""
    settings = {"TCP_KEEPIDLE": 1, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": SILENT_S}
    settings["TCP_USER_TIMEOUT"] = 1000 * SILENT_S
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in settings.items():
        with contextlib.suppress(OSError, AttributeError):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def lasts(connection: socket.socket) -> bool:
    """Whether the other end of a connection that ends by it has been silent for so long."""
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
    except (OSError, AttributeError):
        return False
    if len(info) < _INFO_BYTES:
        return False
    silent_ms = min(_LAST_HEARD_MS.unpack_from(info, _LAST_HEARD_AT))
    # A machine that stood still itself has asked once at most since.
    return silent_ms >= 1000 * SILENT_S and max(info[_RETRIES], info[_PROBES]) >= 2
