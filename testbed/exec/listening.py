"""Listening TCP ports of a network namespace, and whether other nodes get to who listens there."""

import contextlib
from pathlib import Path

from testbed import files

_LISTEN = "0A"
_MAPPED = "0000000000000000FFFF0000"
"""Before an IPv4 address that is written as one of IPv6."""
_LOOPBACK = "00000000000000000000000001000000"
_LOOPBACK_NET = "7F"
"""The first byte of 127.0.0.0/8, which stands last."""


def ports(net: Path) -> dict[int, bool]:
    """Ports on which somebody listens, each with whether anybody does so not on loopback alone.

    ``net``: the folder /proc/PID/net of a process in the namespace.
    """
    found: dict[int, bool] = {}
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in files.system_lines(net / name)[1:]:
                _, local, _, state = line.split()[:4]
                address, _, number = local.rpartition(":")
                if state == _LISTEN:
                    port = int(number, 16)
                    found[port] = found.get(port, False) or not _is_loopback(address)
    return found


def _is_loopback(address: str) -> bool:
    own = address.removeprefix(_MAPPED)
    return address == _LOOPBACK or (len(own) == 8 and own.endswith(_LOOPBACK_NET))
