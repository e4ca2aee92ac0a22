"""ZeroMQ sockets: a ROUTER at the server, a DEALER at each client, and what arrived over them.

Every message that arrives is reported to ``report`` with its bytes and times; bytes are counted
where they arrive, so a message counts once, whoever sent it. A message that does not parse, or
whose time cannot be, is dropped and reported with its reason.

With keys every connection is encrypted, and both its ends are proved (``keys``).
"""

import asyncio
import contextlib
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
import zmq
from zmq.utils.monitor import parse_monitor_message, recv_monitor_message

from testbed import clock
from testbed.network.topology import SERVER
from testbed.record import events
from testbed.record.events import Report
from testbed.transport import congestion
from testbed.transport.door import EVENTS, Door, receive
from testbed.transport.keys import Keys
from testbed.transport.wire import (
    MAX_FRAME_BYTES,
    Detail,
    Header,
    Message,
    TensorHeader,
    WireError,
    encode_header,
    encode_tensors,
)
from testbed.transport.zmq_receive import MessageReceiver, read

Encoded = tuple[list[TensorHeader], list[memoryview]]
"""Tensors ready for the wire, so that a broadcast encodes once."""

Neighbours = Mapping[str, tuple[str, int]]
"""Host and port of other clients, by name."""

ASK_AFTER_S, ASK_EVERY_S = 15.0, 3.0
"""A caller asks the other's TCP (keepalive) after so long a silence, and so often until that
answers: the other may have given up a connection over which this one only listens. An empty
segment, outside the stream, and none is sent while data are on their way."""
PATIENCE_S = 4 * 3600.0
"""How long a caller goes on where nothing is acknowledged. Much longer than Linux's own 15 minutes:
who still asks hears at once when the other is back, and a healthy line may be slow."""
_MOST_QUESTIONS, _MOST_KEEPALIVE_S, _MOST_INT = 127, 32_767, (1 << 31) - 1
LINGER_MS = 5_000
"""How long a closing socket keeps sending what it still holds."""
LOOK_S, MOST_LOOKS = 0.01, 100
"""Whether connections with those who are gone have ended, which takes milliseconds."""
RECONNECT_MS = 100
MOST_UNREAD = 1_000
"""Messages of one connection that wait to be read; more wait with who sends them."""
HANDSHAKE_S = 60.0
"""After so long a connection that has proved nothing is closed. A line of 5 kbit/s carries what
that takes in 2 s."""
_TAKES_CALLS = zmq.EVENT_LISTENING | EVENTS


class Timeout(TimeoutError):
    """Nothing arrived within a wait's limit."""


class Unreachable(ConnectionError):
    """The peer is not connected."""


def _frames(
    kind: str, number: int, encoded: Encoded, details: Mapping[str, Detail]
) -> list[bytes | memoryview]:
    headers, buffers = encoded
    header = Header(kind, number, clock.monotonic_ns(), dict(details), headers)
    return [encode_header(header), *buffers]


def _checked(encoded: Encoded, most_bytes: int) -> Encoded:
    """The same; WireError where the receiver would end the connection for it."""
    for header, buffer in zip(*encoded, strict=True):
        if buffer.nbytes > most_bytes:
            raise WireError(
                f"{header.name}: {buffer.nbytes} bytes; at most {most_bytes} can be sent in a run "
                "of such a model"
            )
    return encoded


def _configure(sock: zmq.Socket[Any], calls: bool, most_frame_bytes: int) -> None:
    if calls:
        # TCP_USER_TIMEOUT, which also stands in for the count of unanswered questions.
        sock.setsockopt(zmq.TCP_MAXRT, min(round(1000 * clock.host_s(PATIENCE_S)), _MOST_INT))
        sock.setsockopt(zmq.TCP_KEEPALIVE, 1)
        sock.setsockopt(zmq.TCP_KEEPALIVE_CNT, _MOST_QUESTIONS)
        for option, seconds in (
            (zmq.TCP_KEEPALIVE_IDLE, ASK_AFTER_S),
            (zmq.TCP_KEEPALIVE_INTVL, ASK_EVERY_S),
        ):
            sock.setsockopt(option, min(math.ceil(clock.host_s(seconds)), _MOST_KEEPALIVE_S))
    sock.setsockopt(zmq.LINGER, round(clock.host_s(LINGER_MS)))
    sock.setsockopt(zmq.HANDSHAKE_IVL, min(round(1000 * clock.host_s(HANDSHAKE_S)), _MOST_INT))
    sock.setsockopt(zmq.MAXMSGSIZE, most_frame_bytes)
    sock.setsockopt(zmq.SNDHWM, 0)
    sock.setsockopt(zmq.RCVHWM, MOST_UNREAD)
    sock.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)


def _on_connection(event: Mapping[str, Any], wanted: str | None, report: Report) -> None:
    """Give a socket the congestion control asked for; of a connection, say which it really uses."""
    if event["event"] not in (zmq.EVENT_LISTENING, zmq.EVENT_ACCEPTED, zmq.EVENT_CONNECTED):
        return
    try:
        if wanted is not None:
            congestion.set_on(event["value"], wanted)
        if event["event"] in (zmq.EVENT_CONNECTED, zmq.EVENT_ACCEPTED):
            used = congestion.used_by(event["value"])
            report(events.Connection(congestion=used))
    except OSError:
        return  # Closed again before it was looked at.


class ServerTransport:
    """The server's end: any number of clients, told apart by their names."""

    def __init__(
        self,
        host: str,
        port: int,
        clients: Collection[str],
        report: Report,
        congestion: str | None = None,
        listener: int | None = None,
        keys: Keys | None = None,
        since_ns: int = 0,
        most_frame_bytes: int = MAX_FRAME_BYTES,
    ) -> None:
        """Bind and listen. Messages of anyone not in ``clients`` are dropped.

        ``listener``: descriptor of a socket that listens there already, which this owns from now
        on. ``congestion``: of every connection; None leaves the host's default. ``keys``: None
        leaves connections in the clear. ``since_ns``: when the run began. ``most_frame_bytes``: a
        connection that announces a longer frame is ended, and none is sent.

        Raises:
            zmq.ZMQError: the address cannot be bound.
        """
        self.payload_bytes = 0
        """Of tensors that were sent and received."""
        self._report = report
        self._congestion = congestion
        self._most_frame_bytes = most_frame_bytes
        self._context = zmq.Context()
        self._socket: zmq.Socket[Any] = self._context.socket(zmq.ROUTER)
        _configure(self._socket, calls=False, most_frame_bytes=most_frame_bytes)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._door = Door(self._socket, clients, keys, since_ns)
        self._socket.setsockopt(zmq.BACKLOG, 4096)
        if listener is not None:
            self._socket.setsockopt(zmq.USE_FD, listener)
        self._monitor = self._socket.get_monitor_socket(_TAKES_CALLS)
        self._arrivals, self._events = MessageReceiver(self._socket), MessageReceiver(self._monitor)
        try:
            self._socket.bind(f"tcp://{host}:{port}")
        except zmq.ZMQError:
            self.close()
            raise

    async def send(
        self, peer: str, kind: str, number: int, encoded: Encoded, details: Mapping[str, Detail]
    ) -> None:
        """Queue a message for ``peer``.

        Raises:
            Unreachable: ``peer`` is not connected.
        """
        encoded = _checked(encoded, self._most_frame_bytes)
        frames = [self._door.word(peer), *_frames(kind, number, encoded, details)]
        try:
            self._socket.send_multipart(frames, zmq.DONTWAIT, copy=False)
            self.payload_bytes += sum(buffer.nbytes for buffer in encoded[1])
        except zmq.ZMQError as error:
            raise Unreachable(f"{peer}: no connection with it ({error.strerror})") from error
        finally:
            self._arrivals.look()

    async def receive(self) -> Message:
        """The next message that parses, from a client that belongs to the run."""
        while True:
            message = self._door.take(await self._arrivals.receive(), self._report)
            if message is not None:
                self.payload_bytes += message.payload_bytes
                return message

    async def watch_connections(self) -> None:
        """Report each connection as it is made; runs until cancelled."""
        while True:
            event = parse_monitor_message([each.bytes for each in await self._events.receive()])
            _on_connection(event, self._congestion, self._report)
            self._door.watch(event, self._report)

    async def hang_up(self, clients: Iterable[str]) -> None:
        """Speak no more with clients that are gone, and forget what they have yet to take."""
        left = [client for client in clients if self._door.hang_up(client)]
        # A socket that is closed before its connection has ended would wait for both.
        for _ in range(MOST_LOOKS):
            if not (left := [client for client in left if self._reaches(client)]):
                break
            await asyncio.sleep(LOOK_S)

    def _reaches(self, client: str) -> bool:
        try:
            self._socket.send_multipart([self._door.word(client), b""], zmq.DONTWAIT)
        except zmq.ZMQError:
            return False
        finally:
            self._arrivals.look()
        return True

    def close(self) -> None:
        """Send what is still queued, within the linger time, and end."""
        self._socket.disable_monitor()
        self._monitor.close()
        self._socket.close()
        self._context.term()


class ClientTransport:
    """A client's end: one connection to the server and, where asked, one to each neighbour."""

    def __init__(
        self,
        name: str,
        host: str,
        port: int,
        report: Report,
        congestion: str | None = None,
        keys: Keys | None = None,
        since_ns: int = 0,
        most_frame_bytes: int = MAX_FRAME_BYTES,
    ) -> None:
        """``congestion``: of the connection; None leaves the host's default.

        ``keys``, ``since_ns``, ``most_frame_bytes``: as of ServerTransport.
        """
        self._most_frame_bytes = most_frame_bytes
        self._name = name
        self._keys = keys
        self._since_ns = since_ns
        self._report = report
        self._congestion = congestion
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        self._monitors: dict[zmq.Socket[Any], zmq.Socket[Any]] = {}
        self._listener: zmq.Socket[Any] | None = None
        self._neighbours: Neighbours = {}
        self._addresses: dict[zmq.Socket[Any], str] = {}
        self._broken: set[zmq.Socket[Any]] = set()
        """Whose connection has ended, and not come back."""
        self._sockets = {SERVER: self._call(SERVER, host, port)}

    def listen(self, host: str, port: int, neighbours: Neighbours) -> None:
        """Take messages of ``neighbours``, other clients by name, and be able to send to them.

        Raises:
            zmq.ZMQError: the address cannot be bound.
        """
        self._neighbours = neighbours
        self._listener = self._open(zmq.ROUTER, _TAKES_CALLS)
        self._door = Door(self._listener, neighbours, self._keys, self._since_ns)
        self._listener.bind(f"tcp://{host}:{port}")
        self._poller.register(self._listener, zmq.POLLIN)

    def send(
        self,
        kind: str,
        number: int,
        tensors: Mapping[str, torch.Tensor],
        details: Mapping[str, Detail],
        to: str = SERVER,
    ) -> None:
        """Queue a message; do not write to its tensors until the receiver has answered it."""
        if to not in self._sockets:
            self._sockets[to] = self._call(to, *self._neighbours[to])
        encoded = _checked(encode_tensors(tensors), self._most_frame_bytes)
        sock = self._sockets[to]
        self._call_again(sock)
        sock.send_multipart(_frames(kind, number, encoded, details), copy=False)

    def hang_up(self, neighbour: str) -> None:
        """Call a neighbour no more, and forget what it has yet to take, until the next sending."""
        sock = self._sockets.pop(neighbour, None)
        if sock is not None:
            self._broken.discard(sock)
            del self._addresses[sock]
            self._close(sock, self._monitors.pop(sock), linger_ms=0)

    def receive(self, timeout_s: float) -> Message:
        """The next message that parses, of the server or a neighbour.

        Raises:
            Timeout: none came within ``timeout_s``.
        """
        deadline = clock.monotonic() + timeout_s
        while True:
            remaining_ms = max(0, round(1000 * clock.host_s(deadline - clock.monotonic())))
            # What becomes of a connection after its end is told by nothing that could be awaited.
            wait_ms = min(remaining_ms, RECONNECT_MS) if self._broken else remaining_ms
            with clock.waiting() if wait_ms else contextlib.nullcontext():
                ready = dict(self._poller.poll(wait_ms))
            for sock, monitor in self._monitors.items():
                if monitor in ready:
                    event = recv_monitor_message(monitor)
                    _on_connection(event, self._congestion, self._report)
                    if sock is self._listener:
                        self._door.watch(event, self._report)
                    elif event["event"] == zmq.EVENT_DISCONNECTED:
                        self._broken.add(sock)
                    else:
                        self._broken.discard(sock)
            for sock in self._broken:
                self._call_again(sock)
            message = None
            if self._sockets[SERVER] in ready:
                frames = read(self._sockets[SERVER])
                message = receive(SERVER, frames, self._since_ns, self._report)
            elif self._listener is not None and self._listener in ready:
                message = self._door.take(read(self._listener), self._report)
            elif remaining_ms == 0:
                raise Timeout(f"nothing within {timeout_s:g} s")
            if message is not None:
                clock.wait_turn()
                return message

    def _call_again(self, sock: zmq.Socket[Any]) -> None:
        """Connect where libzmq does not: it gives up a connection over which came what is wrong."""
        # It keeps a place for messages while it goes on by itself, and without one sending blocks.
        if not int(sock.getsockopt(zmq.EVENTS)) & zmq.POLLOUT:
            # A second connection to one address it takes for the first.
            sock.disconnect(self._addresses[sock])
            sock.connect(self._addresses[sock])

    def _call(self, called: str, host: str, port: int) -> zmq.Socket[Any]:
        sock = self._open(zmq.DEALER, zmq.EVENT_CONNECTED | zmq.EVENT_DISCONNECTED)
        word = self._name
        if self._keys is not None:
            public, word = self._keys.called[called]
            sock.setsockopt(zmq.CURVE_SERVERKEY, public.encode())
            sock.setsockopt(zmq.CURVE_PUBLICKEY, self._keys.public.encode())
            sock.setsockopt(zmq.CURVE_SECRETKEY, self._keys.secret.encode())
        sock.setsockopt(zmq.IDENTITY, word.encode())
        self._poller.register(sock, zmq.POLLIN)
        self._addresses[sock] = f"tcp://{host}:{port}"
        sock.connect(self._addresses[sock])
        return sock

    def _open(self, kind: int, events: int) -> zmq.Socket[Any]:
        sock: zmq.Socket[Any] = self._context.socket(kind)
        _configure(sock, kind == zmq.DEALER, self._most_frame_bytes)
        self._monitors[sock] = sock.get_monitor_socket(events)
        self._poller.register(self._monitors[sock], zmq.POLLIN)
        return sock

    def close(self) -> None:
        """Send what is still queued, within the linger time, and end."""
        for sock, monitor in self._monitors.items():
            self._close(sock, monitor)
        self._context.term()

    def _close(
        self, sock: zmq.Socket[Any], monitor: zmq.Socket[Any], linger_ms: int | None = None
    ) -> None:
        for each in (sock, monitor):
            self._poller.unregister(each)
        sock.disable_monitor()
        monitor.close()
        sock.close(linger_ms)
