"""A line between a run's driver and the agent of a host: typed messages over one TCP connection.

Both ends have proved that they know the hosts' token, and what they say is sealed (``Sealed``), by
keys that end with the line. No secret goes over it even so: both ends make the run's from the token
(``secret``).
"""

import contextlib
import select
import socket
import struct
import time
from collections import deque
from typing import Any, TypeVar

import msgspec

from testbed.links.tunnel import ends, proof, silence
from testbed.links.tunnel.callers import Called
from testbed.links.tunnel.proof import Stranger
from testbed.links.tunnel.streams import Broken, Sealed

GREETING = b"wiretune agent 6\n"
"""Its number changes with what is said."""
PORT = 7400
MOST_BYTES = 1 << 24
"""Of a message."""
CALLER, CALLED = "driver", "agent"
CALL_LIMIT_S = 10.0
SEND_LIMIT_S = 5
"""For the other end to make room for what is said to it."""
_HEAD = struct.Struct("!I")
_READ_BYTES = 1 << 18

Kind = TypeVar("Kind", bound=msgspec.Struct)


class Refused(msgspec.Struct, tag="refused"):
    """The last word of an agent that cannot, or whose part has failed."""

    reason: str


class LineClosed(ConnectionError):
    """The other end is gone, or has said what it should not; the text says which."""


class Line:
    """One end. Owns the stream."""

    def __init__(self, stream: Sealed, reads: Any) -> None:
        """``stream``: agreed on; ``reads``: what messages are decoded as."""
        self._stream = stream
        self._decoder = msgspec.json.Decoder(reads)
        self._partial = bytearray()
        self._messages: deque[Any] = deque()
        self._closed: str | None = None
        """Why nothing more will come, once that is known."""
        _watch(stream.connection)

    @property
    def address(self) -> str:
        """That of this end."""
        return str(self._stream.connection.getsockname()[0])

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def is_cut(self) -> bool:
        """Whether the other end's host is known to be gone by its silence."""
        return silence.lasts(self._stream.connection)

    def send(self, message: msgspec.Struct) -> None:
        """Say one message.

        Raises:
            LineClosed: nobody hears it.
        """
        body = msgspec.json.encode(message)
        try:
            self._stream.sendall(_HEAD.pack(len(body)) + body)
        except OSError as error:
            raise LineClosed(ends.why(error, "it takes nothing any more")) from error

    def read(self) -> list[Any]:
        """Every message that is here now, without waiting.

        Raises:
            LineClosed: there is none, and none will come.
        """
        self._fill()
        found = list(self._messages)
        self._messages.clear()
        if self._closed is not None and not found:
            raise LineClosed(self._closed)
        return found

    def receive(self, kind: type[Kind], limit_s: float) -> Kind:
        """The next message, which is to be of ``kind``.

        Raises:
            LineClosed: none came within ``limit_s``, or another.
        """
        until = time.monotonic() + limit_s
        # What has come with the last of agreeing no longer makes the connection readable.
        self._fill()
        while not self._messages:
            if self._closed is not None:
                raise LineClosed(self._closed)
            left_s = until - time.monotonic()
            if left_s <= 0:
                raise LineClosed(f"no answer within {limit_s:g} s")
            _await(self._stream, min(left_s, silence.LOOK_S))
            self._fill()
        message = self._messages.popleft()
        if not isinstance(message, kind):
            if isinstance(message, Refused):
                raise LineClosed(message.reason)
            raise LineClosed(f"it said {type(message).__name__} where {kind.__name__} was to come")
        return message

    def _fill(self) -> None:
        """Take what has come."""
        while self._closed is None:
            try:
                data = self._stream.recv(_READ_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                if self.is_cut:
                    self._closed = f"no word from it for {silence.SILENT_S:g} s"
                return
            except OSError as error:
                self._closed = ends.why(error)
                return
            if not data:
                self._closed = ends.CLOSED
                return
            self._partial += data
            self._closed = self._take()

    def _take(self) -> str | None:
        """Decode the messages that are whole; what is wrong with one."""
        at, data = 0, self._partial
        while len(data) - at >= _HEAD.size:
            (length,) = _HEAD.unpack_from(data, at)
            if length > MOST_BYTES:
                return f"it sent a message of {length} bytes"
            begins, ends_at = at + _HEAD.size, at + _HEAD.size + length
            if len(data) < ends_at:
                break
            try:
                self._messages.append(self._decoder.decode(bytes(data[begins:ends_at])))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                return f"it sent what cannot be read: {error}"
            at = ends_at
        del data[:at]
        return None

    def close(self) -> None:
        """End the line, of which forked processes may have copies, too."""
        with contextlib.suppress(OSError):
            self._stream.connection.shutdown(socket.SHUT_RDWR)
        self._stream.close()


def call(address: tuple[str, int], token: bytes, reads: Any) -> Line:
    """A line to the agent at ``address``.

    Raises:
        OSError: nobody answers there.
        Stranger: who does is no agent of that token.
    """
    by = time.monotonic() + CALL_LIMIT_S
    connection = socket.create_connection(address, CALL_LIMIT_S)
    try:
        key = proof.call(connection, GREETING, token, CALLER, CALLED, by)
        stream = Sealed(connection, key, serves=False)
        stream.agree(by)
        return Line(stream, reads)
    except Broken as error:
        connection.close()
        raise Stranger(str(error)) from error
    except BaseException:
        connection.close()
        raise


def answer(called: Called, reads: Any) -> Line:
    """The same of who was called, by one who has proved itself."""
    assert isinstance(called.stream, Sealed), "lines are always sealed"
    return Line(called.stream, reads)


def secret(token: bytes, what: str, chance: bytes) -> bytes:
    """A secret of a run that all its hosts make of the token and of ``chance``, which is none."""
    return proof.digest(token, what.encode(), chance)


def _watch(connection: socket.socket) -> None:
    """Have the kernel end a connection whose other end's kernel is silent, and sends that wait."""
    # By the kernel's limit of a send alone, reads being told not to wait.
    connection.settimeout(None)
    limit = struct.pack("ll", SEND_LIMIT_S, 0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    silence.end_by(connection)


def _await(stream: Sealed, limit_s: float) -> None:
    waiter = select.poll()
    waiter.register(stream, select.POLLIN)
    waiter.poll(1000 * limit_s)
