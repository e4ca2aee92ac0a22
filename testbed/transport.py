"""ZeroMQ sockets: a ROUTER at the server, a DEALER at each client, and what arrived over them.

Every message that arrives is reported to ``report`` with its bytes and times; bytes are counted
where they arrive, so a message counts once, whoever sent it. A message that does not parse is
dropped and reported with its reason.
"""

import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from testbed.wire import (
    MAX_FRAME_BYTES,
    Detail,
    Header,
    Message,
    TensorHeader,
    WireError,
    decode,
    encode_header,
    encode_tensors,
)

Report = Callable[[dict[str, Any]], None]

Encoded = tuple[list[TensorHeader], list[memoryview]]
"""Tensors ready for the wire, so that a broadcast encodes once."""

LINGER_MS = 5_000
"""How long a closing socket keeps sending what it still holds."""
RECONNECT_MS = 100


class Timeout(TimeoutError):
    """Nothing arrived within a wait's limit."""


class Unreachable(ConnectionError):
    """The peer is not connected."""


def _frames(
    kind: str, number: int, encoded: Encoded, details: Mapping[str, Detail]
) -> list[bytes | memoryview]:
    headers, buffers = encoded
    header = Header(kind, number, time.monotonic_ns(), dict(details), headers)
    return [encode_header(header), *buffers]


def _receive(sender: str, frames: list[zmq.Frame], report: Report) -> Message | None:
    """A message out of its frames, reported; None, also reported, where it does not parse."""
    received_ns = time.monotonic_ns()
    size = sum(len(frame) for frame in frames)
    try:
        header, tensors = decode([frame.buffer for frame in frames])
    except WireError as error:
        report({"event": "dropped", "peer": sender, "bytes": size, "reason": str(error)})
        return None
    message = Message(sender, header, tensors, received_ns, size)
    report(
        {
            "event": "message",
            "peer": sender,
            "kind": message.kind,
            "round": message.round,
            "payload_bytes": message.payload_bytes,
            "message_bytes": size,
            "sent_ns": header.sent_ns,
            "received_ns": received_ns,
        }
    )
    return message


def _configure(sock: zmq.Socket[Any]) -> None:
    sock.setsockopt(zmq.LINGER, LINGER_MS)
    sock.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
    sock.setsockopt(zmq.SNDHWM, 0)
    sock.setsockopt(zmq.RCVHWM, 0)
    sock.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)


def _report_connection(event: Mapping[str, Any], report: Report) -> None:
    """Say which congestion control a new connection really uses."""
    if event["event"] not in (zmq.EVENT_CONNECTED, zmq.EVENT_ACCEPTED):
        return
    congestion = None
    if sys.platform == "linux":
        try:
            with socket.socket(fileno=os.dup(event["value"])) as connection:
                name = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
                congestion = name.split(b"\0")[0].decode()
        except OSError:
            return  # Closed again before it was looked at.
    report({"event": "connection", "congestion": congestion})


class ServerTransport:
    """The server's end: any number of clients, told apart by their names."""

    def __init__(self, host: str, port: int, clients: set[str], report: Report) -> None:
        """Bind and listen. Messages of anyone not in ``clients`` are dropped.

        Raises:
            zmq.ZMQError: the address cannot be bound.
        """
        self._clients = clients
        self._report = report
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        _configure(self._socket)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        # A client whose connection broke comes back under its name at once.
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._socket.setsockopt(zmq.BACKLOG, 4096)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_ACCEPTED)
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
        frames = [peer.encode(), *_frames(kind, number, encoded, details)]
        try:
            await self._socket.send_multipart(frames, copy=False)
        except zmq.ZMQError as error:
            raise Unreachable(f"{peer}: {error.strerror}") from error

    async def receive(self) -> Message:
        """The next message that parses, from a client that belongs to the run."""
        while True:
            identity, *frames = await self._socket.recv_multipart(copy=False)
            sender = identity.bytes.decode(errors="replace")
            if sender not in self._clients:
                size = sum(len(frame) for frame in frames)
                self._report(
                    {"event": "dropped", "peer": sender[:100], "bytes": size, "reason": "stranger"}
                )
                continue
            message = _receive(sender, frames, self._report)
            if message is not None:
                return message

    async def watch_connections(self) -> None:
        """Report each connection as it is made; runs until cancelled."""
        while True:
            _report_connection(await recv_monitor_message(self._monitor), self._report)

    def close(self) -> None:
        """Send what is still queued, within the linger time, and end."""
        self._socket.disable_monitor()
        self._monitor.close()
        self._socket.close()
        self._context.term()


class ClientTransport:
    """A client's end: one connection to the server."""

    def __init__(self, name: str, host: str, port: int, report: Report) -> None:
        self._report = report
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        _configure(self._socket)
        self._socket.setsockopt(zmq.IDENTITY, name.encode())
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_CONNECTED)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        self._socket.connect(f"tcp://{host}:{port}")

    def send(
        self,
        kind: str,
        number: int,
        tensors: Mapping[str, torch.Tensor],
        details: Mapping[str, Detail],
    ) -> None:
        """Queue a message; do not write to its tensors until the server has answered it."""
        self._socket.send_multipart(
            _frames(kind, number, encode_tensors(tensors), details), copy=False
        )

    def receive(self, timeout_s: float) -> Message:
        """The next message that parses.

        Raises:
            Timeout: none came within ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            remaining_ms = max(0, round(1000 * (deadline - time.monotonic())))
            ready = dict(self._poller.poll(remaining_ms))
            if self._monitor in ready:
                _report_connection(recv_monitor_message(self._monitor), self._report)
            if self._socket in ready:
                frames = self._socket.recv_multipart(copy=False)
                message = _receive("server", frames, self._report)
                if message is not None:
                    return message
            elif remaining_ms == 0:
                raise Timeout(f"nothing from the server within {timeout_s:g} s")

    def close(self) -> None:
        """Send what is still queued, within the linger time, and end."""
        self._socket.disable_monitor()
        self._monitor.close()
        self._socket.close()
        self._context.term()
