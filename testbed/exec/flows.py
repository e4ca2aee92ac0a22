"""Flows of a namespace: payload bytes of its TCP connections by peer and port, whoever has them.

The kernel tells of each connection as it is gone, with all its figures, and of the open ones when
asked: nothing of any program has to be known. Connections of a node with itself are left out.
"""

import contextlib
import socket
import struct
from collections.abc import Iterator

import msgspec

from testbed.links.linux import netlink
from testbed.record.events import Flow

_NETLINK_SOCK_DIAG, _SOL_NETLINK, _ADD_MEMBERSHIP = 4, 270, 1
_TCP_GONE, _TCP6_GONE = 1, 3
"""Groups that hear of each connection's end."""
_SOCK_DIAG_BY_FAMILY, _INET_DIAG_INFO = 20, 2
_REQUEST = struct.Struct("=BBBBI48x")
_EXTENSION = 1 << (_INET_DIAG_INFO - 1)
_OPEN = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11
_LISTEN = 10
_HEADER_BYTES, _MESSAGE_BYTES = 16, 72
_COOKIE = slice(44, 52)
_RECEIVED_AT, _RESENT_AT, _SENT_AT = 128, 100, 200
"""Of struct tcp_info."""
_INFORMATION_BYTES = 216
_MAPPED = b"\0" * 10 + b"\xff\xff"
_MOST_ROWS = 1000


class Connection(msgspec.Struct):
    """A connection, or a listener, as the kernel tells of it."""

    cookie: bytes
    state: int
    port: int
    """The node's own."""
    peer: str
    """IPv4 address."""
    peer_port: int
    sent: int = 0
    """Bytes of payload, each once."""
    received: int = 0
    resent_segments: int = 0
    resent_bytes: int = 0


class Flows:
    """Sums up the connections of the namespace in which it was made."""

    def __init__(self, address: str) -> None:
        """``address``: the node's own.

        Raises:
            OSError: the kernel does not tell.
        """
        self._address = address
        self._asking = _diagnosis()
        self.hearing = _diagnosis()
        """A socket that is readable when ``take`` has something to do."""
        self.hearing.setblocking(False)
        for group in (_TCP_GONE, _TCP6_GONE):
            self.hearing.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        self._listened: set[int] = set()
        self._open: dict[bytes, Connection] = {}
        self._gone: dict[bytes, Connection] = {}
        """Open before and no more at the last look; word of their end may be under way."""
        self._sums: dict[tuple[str, int, bool], Flow] = {}

    def take(self) -> None:
        """Take in the connections that have ended."""
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    data = self.hearing.recv(1 << 16)
                except OSError as error:
                    if isinstance(error, BlockingIOError):
                        raise
                    continue  # There were more than the kernel keeps; ``look`` saw most of them.
                ended = read(memoryview(data)[_HEADER_BYTES:])
                if ended is not None:
                    self._open.pop(ended.cookie, None)
                    self._gone.pop(ended.cookie, None)
                    self._add(ended)

    def look(self) -> None:
        """Take in how the open connections are now, and what is listened on."""
        self.take()
        found: dict[bytes, Connection] = {}
        for one in _asked(self._asking):
            if one.state == _LISTEN:
                self._listened.add(one.port)
            else:
                found[one.cookie] = one
        for lost in self._gone.values():
            self._add(lost)
        self._gone = {key: one for key, one in self._open.items() if key not in found}
        self._open = found

    def rows(self) -> list[Flow]:
        """A row each of what was sent to and received from a peer's or an own port so far."""
        kept = self._sums
        self._sums = {key: msgspec.structs.replace(row) for key, row in kept.items()}
        for one in (*self._gone.values(), *self._open.values()):
            self._add(one)
        found, self._sums = self._sums, kept
        return sorted(found.values(), key=lambda row: -row.sent - row.received)

    def close(self) -> None:
        self._asking.close()
        self.hearing.close()

    def _add(self, one: Connection) -> None:
        local = one.peer.startswith("127.") or one.peer == self._address
        if local or not (one.sent or one.received):
            return
        serves = one.port in self._listened
        key = (one.peer, one.port if serves else one.peer_port, serves)
        if key not in self._sums and len(self._sums) >= _MOST_ROWS:
            key = (one.peer, 0, serves)
        row = self._sums.setdefault(key, Flow(*key))
        row.connections += 1
        row.sent += one.sent
        row.received += one.received
        row.resent_segments += one.resent_segments
        row.resent_bytes += one.resent_bytes


def _diagnosis() -> socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    made = socket.socket(socket.AF_NETLINK, kind, _NETLINK_SOCK_DIAG)
    # One that has no number yet hears nothing: the kernel, which has none either, skips its own.
    made.bind((0, 0))
    return netlink.adopt(made.detach())


def _asked(diagnosis: socket.socket) -> Iterator[Connection]:
    for family in (socket.AF_INET, socket.AF_INET6):
        states = _OPEN | 1 << _LISTEN
        request = _REQUEST.pack(family, socket.IPPROTO_TCP, _EXTENSION, 0, states)
        with contextlib.suppress(OSError):  # A kernel without IPv6.
            for message in netlink.dump(diagnosis, _SOCK_DIAG_BY_FAMILY, request):
                if (found := read(message)) is not None:
                    yield found


def read(message: memoryview) -> Connection | None:
    """A struct inet_diag_msg and its attributes; None of IPv6's own, which links do not carry."""
    if len(message) < _MESSAGE_BYTES:
        return None
    family, state = message[0], message[1]
    port, peer_port = struct.unpack_from("!HH", message, 4)
    raw = bytes(message[24:40])
    listens = state == _LISTEN
    if family == socket.AF_INET6 and not listens and raw[:12] != _MAPPED:
        return None
    address = raw[12:16] if family == socket.AF_INET6 else raw[:4]
    found = Connection(bytes(message[_COOKIE]), state, port, socket.inet_ntoa(address), peer_port)
    information = netlink.attributes(message[_MESSAGE_BYTES:]).get(_INET_DIAG_INFO)
    if information is not None and len(information) >= _INFORMATION_BYTES and not listens:
        (found.received,) = struct.unpack_from("=Q", information, _RECEIVED_AT)
        (found.resent_segments,) = struct.unpack_from("=I", information, _RESENT_AT)
        sent, found.resent_bytes = struct.unpack_from("=QQ", information, _SENT_AT)
        found.sent = sent - found.resent_bytes
    return found
