"""Streams between two hosts: the bytes of a TCP connection as they are, or sealed (``seal``).

A message of a seal has up to 16 KB, which may be many frames, and ends the stream before any of it
is taken where it is not the next that the other end has sealed.
"""

import contextlib
import socket

from testbed.links.tunnel.seal import Opener, Seal

_SEALED_BYTES = 1 << 14
"""At once."""
_MOST_SEALED_BYTES = 1 << 18
"""Ahead of what the connection takes."""

Buffer = bytes | bytearray | memoryview


class Stream:
    """One end of a connection as it is; owns the socket, of whose methods it has some."""

    has_more = False
    """Whether something that it has taken waits until the connection takes it."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def fileno(self) -> int:
        return self._socket.fileno()

    def settimeout(self, seconds: float | None) -> None:
        self._socket.settimeout(seconds)

    def send(self, data: Buffer) -> int:
        """Take some of ``data``, and send what the connection takes; how much was taken.

        Raises:
            OSError: as a socket does; BlockingIOError: nothing was taken.
        """
        return self._socket.send(data)

    def sendall(self, data: Buffer) -> None:
        self._socket.sendall(data)

    def recv(self, count: int) -> bytes:
        """Bytes that have come, in ``count`` of the connection's at most; none: it was closed.

        Raises:
            OSError: as a socket does.
            Broken: what came is not what was sent.
        """
        return self._socket.recv(count)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.close()


class Sealed(Stream):
    """The same sealed."""

    def __init__(self, connection: socket.socket, key: bytes, *, calls: bool) -> None:
        """``key``: of this connection alone; ``calls``: this end has called."""
        super().__init__(connection)
        self._closes = Seal(key, calls=calls)
        self._opens = Opener(key, _SEALED_BYTES, calls=not calls)
        self._waits = memoryview(b"")
        """Sealed, and still to be sent."""

    @property
    def has_more(self) -> bool:  # type: ignore[override]
        return bool(self._waits)

    def send(self, data: Buffer) -> int:
        self._send_waiting()
        taken = min(len(data), _MOST_SEALED_BYTES)
        with memoryview(data) as view:
            pieces = range(0, taken, _SEALED_BYTES)
            sealed = [self._closes.close(view[at : at + _SEALED_BYTES]) for at in pieces]
        self._waits = memoryview(b"".join(sealed))
        with contextlib.suppress(BlockingIOError):
            self._send_waiting()
        return taken

    def _send_waiting(self) -> None:
        while self._waits:
            self._waits = self._waits[self._socket.send(self._waits) :]

    def sendall(self, data: Buffer) -> None:
        with memoryview(data) as view:
            taken = 0
            while taken < len(view) or self._waits:
                taken += self.send(view[taken:])

    def recv(self, count: int) -> bytes:
        while data := self._socket.recv(count):
            if found := b"".join(self._opens.open(data)):
                return found
        return b""
