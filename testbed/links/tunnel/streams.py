"""Streams between two hosts: the bytes of a TCP connection as they are, or sealed by TLS 1.3.

Of what is sealed nobody on the hosts' network reads any, and what is changed, left out, said twice,
swapped or sent back ends the stream before it is taken. Both ends prove by a certificate that only
they can make (``certificate``) that they have the connection's secret. A record has up to 16 KB,
which may be many messages.
"""

import contextlib
import os
import socket
import ssl
import time

from testbed.links.tunnel import certificate, ends

_RECORD_BYTES = 1 << 14
_MOST_SEALED_BYTES = 1 << 18
"""At once, ahead of what the connection takes."""
_READ_BYTES = 1 << 14

Buffer = bytes | bytearray | memoryview


class Broken(ConnectionError):
    """The stream is of no more use; the text says why."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.strerror = text


class Stream:
    """One end of a connection as it is, which it owns, and of whose methods it has some."""

    has_more = False
    """Whether something that it has taken waits until the connection takes it."""
    is_broken = False
    """Whether ``recv`` will raise Broken, though nothing comes."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection

    def fileno(self) -> int:
        return self.connection.fileno()

    def settimeout(self, seconds: float | None) -> None:
        self.connection.settimeout(seconds)

    def send(self, data: Buffer) -> int:
        """Take some of ``data``, and send what the connection takes; how much was taken.

        Raises:
            OSError: as a socket does; BlockingIOError: nothing was taken.
        """
        return self.connection.send(data)

    def sendall(self, data: Buffer) -> None:
        self.connection.sendall(data)

    def recv(self, count: int, flags: int = 0) -> bytes:
        """Bytes that have come, in ``count`` of the connection's at most; none: it was closed.

        Raises:
            OSError: as a socket does.
            Broken: what came is not what was sent.
        """
        return self.connection.recv(count, flags)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.close()


class Sealed(Stream):
    """The same sealed, once both ends have agreed."""

    def __init__(self, connection: socket.socket, secret: bytes, *, serves: bool) -> None:
        """``secret``: of this connection alone; ``serves``: this end, and not the other."""
        super().__init__(connection)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = _context(secret, serves=serves)
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=serves)
        self._waits = memoryview(b"")
        """Sealed, and still to be sent."""
        self._broken: Broken | None = None

    @property
    def has_more(self) -> bool:  # type: ignore[override]
        return bool(self._waits)

    @property
    def is_broken(self) -> bool:  # type: ignore[override]
        return self._broken is not None

    def agree(self, by: float) -> None:
        """Make it ready together with the other end; ``by``: a time of ``time.monotonic``.

        Raises:
            OSError: the other end is not there in time.
            Broken: it is another.
        """
        while not self._has_agreed():
            if (left_s := by - time.monotonic()) <= 0:
                raise TimeoutError("timed out")
            self.connection.settimeout(left_s)
            self._hear()

    def agrees(self) -> bool:
        """The same of a connection that does not wait, by what has come; whether it is ready."""
        while not self._has_agreed():
            try:
                self._hear()
            except BlockingIOError:
                return False
        return True

    def _hear(self) -> None:
        try:
            data = self.connection.recv(_READ_BYTES)
        except ConnectionResetError as error:
            raise Broken(ends.why(error)) from error
        if not data:
            raise Broken(ends.CLOSED)
        self._incoming.write(data)

    def _has_agreed(self) -> bool:
        try:
            self._tls.do_handshake()
            agreed = True
        except ssl.SSLWantReadError:
            agreed = False
        except ssl.SSLError as error:
            with contextlib.suppress(OSError):
                self.connection.sendall(self._outgoing.read())
            raise Broken(f"it is another, or what passed was changed ({_words(error)})") from error
        self.connection.sendall(self._outgoing.read())
        return agreed

    def send(self, data: Buffer) -> int:
        while self._waits:
            self._waits = self._waits[self.connection.send(self._waits) :]
        taken, sealed = self._seal(data)
        try:
            sent = self.connection.send(sealed) if sealed else 0
        except BlockingIOError:
            sent = 0
        if sent < len(sealed):
            self._waits = memoryview(sealed)[sent:]
        return taken

    def _seal(self, data: Buffer) -> tuple[int, bytes]:
        """How much of ``data`` was taken, and what that is sealed."""
        if self._broken is not None:
            raise self._broken
        size = len(data)
        if size <= _RECORD_BYTES:
            # Most are: of a frame each, on lines that are not fast.
            taken = self._tls.write(data) if size else 0
        else:
            taken = 0
            with memoryview(data) as view:
                while taken < min(size, _MOST_SEALED_BYTES):
                    taken += self._tls.write(view[taken : taken + _RECORD_BYTES])
        return taken, self._outgoing.read()

    def sendall(self, data: Buffer) -> None:
        self.connection.sendall(self._waits)
        self._waits = memoryview(b"")
        with memoryview(data) as view:
            taken = 0
            while taken < len(view):
                count, sealed = self._seal(view[taken:])
                self.connection.sendall(sealed)
                taken += count

    def recv(self, count: int, flags: int = 0) -> bytes:
        while self._broken is None:
            # What came after the last of agreeing is there already.
            if not self._incoming.pending:
                data = self.connection.recv(count, flags)
                if not data:
                    return b""
                self._incoming.write(data)
            if found := self._open():
                return found
        raise self._broken

    def _open(self) -> bytes:
        """Bytes of the records that are here whole, until one that is not the next."""
        found = []
        try:
            while self._incoming.pending:
                data = self._tls.read(_RECORD_BYTES)
                if not data:
                    self._broken = Broken("it has ended the stream")
                    break
                found.append(data)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self._broken = Broken(f"what came is not what was sealed there ({_words(error)})")
        return found[0] if len(found) == 1 else b"".join(found)


def _context(secret: bytes, *, serves: bool) -> ssl.SSLContext:
    """That of an end which has its certificate, and takes the same alone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if serves else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    if serves:
        # Nobody comes back.
        context.num_tickets = 0
    own = certificate.made(secret)
    context.load_verify_locations(cadata=own.der)
    # What is read from a file alone is never on a disk so.
    with os.fdopen(os.memfd_create("certificate"), "wb") as file:
        file.write(own.pem)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
    return context


def _words(error: ssl.SSLError) -> str:
    return (error.reason or "without a reason").replace("_", " ").lower()
