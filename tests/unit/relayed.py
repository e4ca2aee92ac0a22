"""A loopback network that is up, and streams through it."""

import contextlib
import random
import select
import socket
import struct
import time

from testbed.links.loopback import backend as loopback
from testbed.network.direction import FRAME_BYTES, SEGMENT_BYTES, Direction
from testbed.network.profiles import LinkProfile
from testbed.network.topology import Node, Plan
from testbed.probing.timestamps import listen

LIMIT_S = 20.0
FREE = Direction()


def link(up: Direction = FREE, down: Direction = FREE) -> LinkProfile:
    return LinkProfile(name="test", up=up, down=down)


def rate(mbit: float, **fields: float) -> Direction:
    return Direction(rate_kbit=1000 * mbit, **fields)


class Bench:
    """A network that is up, a server that listens on it, and what tests do with the two."""

    def __init__(self, stack: contextlib.ExitStack, clients, server=None) -> None:
        profiles = [server, *clients]
        nodes = (Node(i, f"node-{i}", "127.0.0.1", p) for i, p in enumerate(profiles))
        self.stack = stack
        self.plan = Plan(tuple(nodes))
        self.network = loopback.up(self.plan)
        stack.callback(self.network.down)
        self.listen()

    def listen(self) -> None:
        self.server = self.stack.enter_context(listen(self.network.endpoint(self.plan.server)))
        self.server.settimeout(LIMIT_S)

    def connect(self, client: int = 1) -> tuple[socket.socket, socket.socket]:
        """A connection's two ends: the client's and the server's."""
        ours = self.call(client)
        theirs, _ = self.server.accept()
        theirs.settimeout(LIMIT_S)
        return ours, self.stack.enter_context(theirs)

    def call(self, client: int = 1) -> socket.socket:
        called = self.network.endpoint(self.plan.nodes[client])
        address = called.host, called.port
        return self.stack.enter_context(socket.create_connection(address, LIMIT_S))

    def accepted_says(self, text: bytes) -> bool:
        """Whether the next connection at the server, if it has not broken yet, says ``text``."""
        server, _ = self.server.accept()
        server.settimeout(LIMIT_S)
        with server, contextlib.suppress(ConnectionResetError):
            return server.recv(10) == text
        return False

    def counters(self, node: int):
        return self.network.counters()[node]


def carry(*jobs: tuple[socket.socket, bytes, socket.socket]) -> list[float]:
    """Send each job's bytes, all at once; when each had all of it, in seconds from the start."""
    left = {job[0]: memoryview(job[1]) for job in jobs}
    got = {job[2]: bytearray() for job in jobs}
    wanted = {job[2]: job[1] for job in jobs}
    times = {}
    start = time.monotonic()
    for sock in {*left, *got}:
        sock.setblocking(False)
    while len(times) < len(jobs):
        readers, writers = [s for s in got if s not in times], [s for s in left if left[s]]
        readable, writable, _ = select.select(readers, writers, [], LIMIT_S)
        assert readable or writable, "nothing moves"
        for sock in writable:
            left[sock] = left[sock][sock.send(left[sock][: 1 << 18]) :]
        for sock in readable:
            data = sock.recv(1 << 18)
            assert data, "the stream ended early"
            got[sock] += data
            if len(got[sock]) >= len(wanted[sock]):
                times[sock] = time.monotonic() - start
    for sock in {*left, *got}:
        sock.settimeout(LIMIT_S)
    assert all(got[sock] == wanted[sock] for sock in got), "the bytes are not those sent"
    return list(times[job[2]] for job in jobs)


def read_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(1 << 18), b""))


def echo_s(client: socket.socket, server: socket.socket) -> float:
    return carry((client, b"x", server))[0] + carry((server, b"y", client))[0]


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def line_s(size_bytes: int, mbit: float) -> float:
    """What the line needs for that much of a stream, in full frames."""
    return 8 * size_bytes * FRAME_BYTES / SEGMENT_BYTES / (mbit * 1e6)


def noise(size_bytes: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


BLOCK = noise(1 << 16)


def fill(sock: socket.socket) -> int:
    """Send BLOCK over and over until nobody takes more; how many bytes were taken."""
    sock.setblocking(False)
    sent = 0
    while select.select([], [sock], [], 0.1)[1]:
        sent += sock.send(BLOCK[sent % len(BLOCK) :])
        assert sent < 100_000_000, "nothing holds the sender back"
    return sent
