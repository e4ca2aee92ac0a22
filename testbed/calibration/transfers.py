"""TCP probes as bodies of processes: one listens at the server's port for all, one calls a link.

The client calls whichever way the payload goes, since a relayed link carries only that. Its first
bytes on a connection say whose it is and what is wanted.
"""

import contextlib
import selectors
import socket
import struct
import time
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any

from testbed.calibration.datagrams import Body
from testbed.calibration.probes import Transfer, Trips
from testbed.links.interface import Endpoint
from testbed.probing.timestamps import enter, listen
from testbed.processes.channel import Channel
from testbed.processes.worker import Ready
from testbed.transport import congestion

UP, DOWN, ECHO = b"u", b"d", b"e"
UNPACED = 0
_HELLO = struct.Struct("!HcI")
"""Tag, what is wanted, and at which pace in bytes/s."""
CHUNK_BYTES = 1 << 16
READ_BYTES = 1 << 18
MOST_READS = 64
NOTE_NS = 500_000
"""Least time between two notes of what has arrived."""
_SO_MAX_PACING_RATE = 47
_ZEROS = bytes(CHUNK_BYTES)


class ReceivedBytes:
    """How many bytes had arrived by when: [[time on the monotonic clock in ns, bytes], ...]."""

    def __init__(self) -> None:
        self.notes: list[tuple[int, int]] = []
        self._bytes = 0

    def take(self, connection: socket.socket) -> bool:
        """Read all that is there; False at the stream's end.

        All of it: behind a gap that a lost packet left, much comes at once.
        """
        data = b"."
        with contextlib.suppress(BlockingIOError):
            for _ in range(MOST_READS):
                data = connection.recv(READ_BYTES)
                self._bytes += len(data)
                if not data:
                    break
        now = time.monotonic_ns()
        if not self.notes or now - self.notes[-1][0] >= NOTE_NS:
            self.notes.append((now, self._bytes))
        return bool(data)


def listener(endpoint: Endpoint) -> Body:
    """Serve every caller until told to stop; returns the notes of uploads by the caller's tag."""

    def body(channel: Channel) -> dict[str, Any]:
        enter(endpoint)
        uploads: dict[int, ReceivedBytes] = {}
        with (
            listen(endpoint) as door,
            selectors.DefaultSelector() as selector,
        ):
            door.setblocking(False)
            selector.register(door, EVENT_READ)
            selector.register(channel, EVENT_READ)
            channel.send(Ready())
            stopping = False
            while not stopping:
                for key, _ in selector.select():
                    if key.fileobj is channel:
                        stopping = True
                    elif key.fileobj is door:
                        _accept(door, selector)
                    elif not _serve(key, selector, uploads):
                        selector.unregister(key.fileobj)
                        key.fileobj.close()  # type: ignore[union-attr]
            for key in list(selector.get_map().values()):
                if isinstance(key.fileobj, socket.socket):
                    _abort(key.fileobj)
        return {"uploads": {str(tag): found.notes for tag, found in uploads.items()}}

    return body


def _accept(door: socket.socket, selector: selectors.BaseSelector) -> None:
    with contextlib.suppress(OSError):
        connection, _ = door.accept()
        connection.setblocking(False)
        _at_once(connection)
        selector.register(connection, EVENT_READ, [b""])


def _serve(
    key: selectors.SelectorKey,
    selector: selectors.BaseSelector,
    uploads: dict[int, ReceivedBytes],
) -> bool:
    """Do what a connection's caller wants; False where the connection has ended."""
    connection, state = key.fileobj, key.data
    assert isinstance(connection, socket.socket)
    try:
        if len(state) == 1:
            return _greet(connection, state, selector)
        tag, wanted, _ = state
        if wanted == DOWN:
            connection.send(_ZEROS)
            return True
        if wanted == UP:
            return uploads.setdefault(tag, ReceivedBytes()).take(connection)
        data = connection.recv(READ_BYTES)
        connection.send(data)
        return bool(data)
    except BlockingIOError:
        return True
    except OSError:
        return False


def _greet(connection: socket.socket, state: list[Any], selector: selectors.BaseSelector) -> bool:
    data = connection.recv(_HELLO.size - len(state[0]))
    state[0] += data
    if len(state[0]) == _HELLO.size:
        state[:] = _HELLO.unpack(state[0])
        if state[1] == DOWN:
            _pace(connection, state[2])
            selector.modify(connection, EVENT_WRITE, state)
    return bool(data)


def caller(endpoint: Endpoint, tag: int, transfer: Transfer) -> Body:
    """Send or take payload for the transfer's time, once told to.

    Returns "ended_ns" (monotonic), the "congestion" control in use, and the "notes" of a download;
    nothing where nobody answers.
    """

    def body(channel: Channel) -> dict[str, Any]:
        enter(endpoint)
        channel.send(Ready())
        channel.receive()
        received = ReceivedBytes()
        wanted = UP if transfer.way == "up" else DOWN
        pace = UNPACED if transfer.pace_kbit is None else round(125 * transfer.pace_kbit)
        lasts_s = transfer.lead_s + transfer.window_s
        try:
            connection = _call(endpoint, tag, wanted, lasts_s, pace)
        except OSError:
            return {}
        # Only now: what asks for a connection may be lost, and is asked again a second later.
        ends_s = time.monotonic() + lasts_s
        used = congestion.used_by(connection.fileno())
        with selectors.DefaultSelector() as selector, contextlib.suppress(OSError):
            connection.setblocking(False)
            selector.register(connection, EVENT_WRITE if transfer.way == "up" else EVENT_READ)
            while (left_s := ends_s - time.monotonic()) > 0:
                if selector.select(left_s) and not _move(connection, transfer.way, received):
                    break
        ended_ns = time.monotonic_ns()
        _abort(connection)
        return {"ended_ns": ended_ns, "notes": received.notes, "congestion": used}

    return body


def _move(connection: socket.socket, way: str, received: ReceivedBytes) -> bool:
    """Send or take what there is room for; False at the stream's end."""
    if way == "down":
        return received.take(connection)
    with contextlib.suppress(BlockingIOError):
        connection.send(_ZEROS)
    return True


def tripper(endpoint: Endpoint, tag: int, trips: Trips) -> Body:
    """Send single bytes to and fro, once told to; returns "trips_ns"."""

    def body(channel: Channel) -> dict[str, Any]:
        enter(endpoint)
        channel.send(Ready())
        channel.receive()
        found: list[int] = []
        ends_s = time.monotonic() + trips.seconds
        with contextlib.suppress(OSError), _call(endpoint, tag, ECHO, trips.seconds) as connection:
            while len(found) < trips.count and (left_s := ends_s - time.monotonic()) > 0:
                connection.settimeout(left_s)
                began_ns = time.monotonic_ns()
                connection.send(b".")
                if not connection.recv(1):
                    break
                found.append(time.monotonic_ns() - began_ns)
        return {"trips_ns": found}

    return body


def _call(
    endpoint: Endpoint, tag: int, wanted: bytes, limit_s: float, pace: int = UNPACED
) -> socket.socket:
    """Raises OSError where nobody answers in that time."""
    connection = socket.create_connection((endpoint.host, endpoint.port), limit_s)
    _at_once(connection)
    _pace(connection, pace)
    connection.sendall(_HELLO.pack(tag, wanted, pace))
    return connection


def _pace(connection: socket.socket, bytes_per_s: int) -> None:
    """Have the kernel pace what is sent; by Reno, whose slow start ends at a loss and at nothing
    else. CUBIC's ends where it takes jitter for a queue, and BBR leaves the line for 200 ms in ten
    seconds. What is not paced has the congestion control of runs, where the host lets it."""
    if bytes_per_s == UNPACED:
        with contextlib.suppress(OSError):
            congestion.set_on(connection.fileno(), congestion.DEFAULT)
        return
    connection.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, bytes_per_s)
    congestion.set_on(connection.fileno(), "reno")


def _at_once(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _abort(connection: socket.socket) -> None:
    """Close without sending what is still buffered: that could take minutes."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
