"""Processes that stand in a node's namespaces and send, receive and count there."""

import contextlib
import hashlib
import select
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from testbed.links.interface import Network
from testbed.links.linux import namespaces
from testbed.network.topology import Node
from testbed.processes.channel import Channel
from testbed.processes.worker import Ready, Result, Stop, Worker

PORT = 7000
LIMIT_S = 60.0
READY = Ready()
_STAMP = struct.Struct("!Id")


class Station:
    """Runs ``body(channel)`` in a node's namespaces; what it returns comes back as ``result``."""

    def __init__(self, network: Network, node: Node, body: Callable[[Channel], Any]) -> None:
        def run(channel: Channel) -> Any:
            namespaces.enter(network.endpoint(node).namespaces)
            return body(channel)

        self.worker = Worker(node.name, run)
        self.close = self.worker.close

    def ready(self) -> "Station":
        """Wait until the body has said READY."""
        self.worker.receive(Ready, LIMIT_S)
        return self

    def stop(self) -> None:
        self.worker.tell(Stop())

    def result(self) -> Any:
        return self.worker.receive(Result, LIMIT_S).value


def take_stream(address: str, answer: bytes = b"", port: int = PORT) -> Callable[[Channel], Any]:
    """Accept one connection, read it to its end, then send ``answer``.

    Returns {"sha256", "bytes", "ended_s"}; the time is the monotonic clock's, one for all.
    """

    def body(channel: Channel) -> Any:
        with socket.create_server((address, port)) as listener:
            listener.settimeout(LIMIT_S)
            channel.send(READY)
            connection, _ = listener.accept()
            with connection:
                found = _read_all(connection)
                connection.sendall(answer)
        return found

    return body


def send_stream(address: str, data: bytes, port: int = PORT) -> Callable[[Channel], Any]:
    """Connect, send ``data``, end it, read the answer to its end.

    Returns what ``take_stream`` does, with "began_s" and the "congestion" control in use.
    """

    def body(channel: Channel) -> Any:
        with socket.create_connection((address, port), LIMIT_S) as connection:
            name = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
            began_s = time.monotonic()
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            found = _read_all(connection)
        return {**found, "began_s": began_s, "congestion": name.split(b"\0")[0].decode()}

    return body


def send_stream_until_told(address: str, block: bytes) -> Callable[[Channel], Any]:
    """Connect, send ``block`` again and again, and end the stream once told to stop.

    Returns {"sha256", "bytes"} of what was sent.
    """

    def body(channel: Channel) -> Any:
        digest, size = hashlib.sha256(), 0
        with socket.create_connection((address, PORT), LIMIT_S) as connection:
            while not select.select([channel], [], [], 0)[0]:
                connection.sendall(block)
                digest.update(block)
                size += len(block)
            connection.shutdown(socket.SHUT_WR)
            _read_all(connection)
        return {"sha256": digest.hexdigest(), "bytes": size}

    return body


def _read_all(connection: socket.socket) -> dict[str, Any]:
    connection.settimeout(LIMIT_S)
    digest, size = hashlib.sha256(), 0
    while data := connection.recv(1 << 16):
        digest.update(data)
        size += len(data)
    return {"sha256": digest.hexdigest(), "bytes": size, "ended_s": time.monotonic()}


def echo(address: str, mark: bytes = b"") -> Callable[[Channel], Any]:
    """Send every datagram back, ``mark`` put before it, until told to stop."""

    def body(channel: Channel) -> Any:
        with _datagrams(address) as sock:
            for data, sender in _arriving(channel, sock):
                sock.sendto(mark + data, sender)

    return body


def ping(address: str, times: int) -> Callable[[Channel], Any]:
    """Exchange ``times`` datagrams one after the other; returns round trips in ms."""

    def body(channel: Channel) -> Any:
        found = []
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(LIMIT_S)
            for _ in range(times):
                began = time.monotonic()
                sock.sendto(b"ping", (address, PORT))
                sock.recv(100)
                found.append(1000 * (time.monotonic() - began))
        return found

    return body


def ask(address: str) -> Callable[[Channel], Any]:
    """Send one datagram; returns the answer as text."""

    def body(channel: Channel) -> Any:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(LIMIT_S)
            sock.sendto(b"", (address, PORT))
            return sock.recv(100).decode()

    return body


def collect(address: str) -> Callable[[Channel], Any]:
    """Take datagrams of ``blast`` until told to stop; returns [number, delay in ms] of each."""

    def body(channel: Channel) -> Any:
        found = []
        with _datagrams(address) as sock:
            for data, _ in _arriving(channel, sock):
                number, sent = _STAMP.unpack_from(data)
                found.append([number, 1000 * (time.monotonic() - sent)])
        return found

    return body


def blast(address: str, count: int, size: int, gap_s: float = 0.0) -> Callable[[Channel], Any]:
    """Send ``count`` numbered datagrams whose IP packets have ``size`` bytes."""
    filling = bytes(size - 28 - _STAMP.size)

    def body(channel: Channel) -> Any:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for number in range(count):
                sock.sendto(_STAMP.pack(number, time.monotonic()) + filling, (address, PORT))
                time.sleep(gap_s)

    return body


def device_counters(channel: Channel) -> Any:
    """[packets, bytes] that wire0 of this namespace has sent, and those it has received."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == namespaces.INTERFACE:
            fields = [int(number) for number in numbers.split()]
            return [fields[9], fields[8]], [fields[1], fields[0]]
    raise AssertionError(f"no {namespaces.INTERFACE}")


def protocol_counters(protocol: str) -> Callable[[Channel], Any]:
    """What this namespace's kernel has counted of "Tcp", "Udp", ..., by the kernel's names."""

    def body(channel: Channel) -> Any:
        names, values = (
            line.split()[1:]
            for line in Path("/proc/net/snmp").read_text().splitlines()
            if line.startswith(f"{protocol}:")
        )
        return {name: int(value) for name, value in zip(names, values, strict=True)}

    return body


def ipv6_addresses(channel: Channel) -> Any:
    path = Path("/proc/net/if_inet6")
    return path.read_text() if path.exists() else ""


@contextlib.contextmanager
def _datagrams(address: str) -> Any:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, 33, 1 << 23)  # SO_RCVBUFFORCE
        sock.bind((address, PORT))
        sock.setblocking(False)
        yield sock


def _arriving(channel: Channel, sock: socket.socket) -> Any:
    """Each datagram with its sender; ends once told to stop, with what is there by then."""
    channel.send(READY)
    stopping = False
    while not stopping:
        stopping = channel in select.select([channel, sock], [], [])[0]
        with contextlib.suppress(BlockingIOError):
            while True:
                yield sock.recvfrom(2048)
