"""The loopback backend's process: passes each connection's stream on, shaped chunk by chunk."""

import contextlib
import errno
import gc
import heapq
import math
import resource
import select
import selectors
import socket
import struct
import sys
import time
from collections import deque
from itertools import islice
from selectors import EVENT_READ, EVENT_WRITE

import msgspec

from testbed.channel import Channel
from testbed.links import LinkError
from testbed.links.process import BYTES, DOWN, FRAMES, UP, CounterTable
from testbed.links.queue import LATE_S, LinkQueue
from testbed.profiles import FRAME_BYTES, SEGMENT_BYTES, Direction, LinkProfile
from testbed.topology import Plan

HOST = "127.0.0.1"
HEADER_BYTES = FRAME_BYTES - SEGMENT_BYTES
"""Of one frame: Ethernet 14, IP 20, TCP 32 with timestamps. An acknowledgement is this alone."""
CHUNK_S = 0.002
"""A chunk is what the line carries in this time: smooth when slow, cheap when fast."""
REFILL_S = 0.01
"""A queue that was full is filled again when it has room for this time."""
MAX_READ_SEGMENTS = 181
"""256 KiB."""
MAX_SEND_CHUNKS = 64
MAX_QUEUED_FRAMES = 1 << 16
"""Room of a link without a rate, where nothing else bounds the memory: 95 MB."""
MAX_UNWRITTEN_BYTES = 1 << 20
"""Held for a receiver that does not read, beyond the kernel's own buffers."""
MAX_CONNECTIONS = 16
"""Open at once from one client; more wait to be accepted."""
SPARE_DESCRIPTORS = 256
SELECT_LIMIT = 1024
"""Select takes descriptors below this (FD_SETSIZE)."""
_UNBOUNDED_MS = 1e9
_OPEN, _FIN, _RESET, _DONE = range(4)

_Chunk = tuple["_Flow", memoryview, int, int]
"""Its flow, its bytes (none in a FIN or RESET), its kind, its frames."""


def mathis_kbit(loss: float, rtt_s: float) -> float:
    """Line rate in kbit/s at which one TCP connection settles under random loss.

    ``MSS/RTT * sqrt(3/2)/sqrt(p)`` (Mathis, Semke, Mahdavi, Ott: "The Macroscopic Behavior of the
    TCP Congestion Avoidance Algorithm", CCR 27(3), 1997), with a frame for the MSS since rates
    count frames. Infinite without loss (``loss``, a fraction) or without delay.
    """
    if loss <= 0 or rtt_s <= 0:
        return math.inf
    return 8 * FRAME_BYTES / 1000 / rtt_s * math.sqrt(1.5 / loss)


def relay(plan: Plan, channel: Channel, counters: CounterTable) -> None:
    try:
        relay = _Relay(plan, counters)
    except OSError as error:
        raise LinkError(f"open {len(plan.nodes)} ports on {HOST}: {error.strerror}") from error
    gc.freeze()
    relay.run(channel)


class _Hop:
    """One direction of a node's access link, with its room in frames and who waits for room."""

    def __init__(self, node: int, direction: int, table: CounterTable) -> None:
        self.sequence = 2 * node + direction
        self.counter = table.offset(node, direction)
        self.queue: LinkQueue[_Chunk] = LinkQueue(None, seed=self.sequence)
        self.frames = 0
        self.waiting: deque[_Flow] = deque()
        self.shape(Direction(), math.inf)

    def shape(self, direction: Direction, cap_kbit: float) -> None:
        """Take new parameters, at most ``cap_kbit`` fast."""
        rate = min(direction.rate_kbit or math.inf, cap_kbit)
        kbit = rate if rate < math.inf else None
        shaped = msgspec.structs.replace(direction, rate_kbit=kbit, loss_percent=0.0)
        self.limit = min(shaped.limit_packets or MAX_QUEUED_FRAMES, MAX_QUEUED_FRAMES)
        frames_per_s = rate * 1000 / (8 * FRAME_BYTES)
        self.chunk_segments = int(max(1, min(MAX_READ_SEGMENTS, frames_per_s * CHUNK_S)))
        self.refill = int(max(1, min(self.limit / 4, frames_per_s * REFILL_S)))
        # The queue itself must never drop a piece of a stream: room is kept here, by not reading.
        self.queue.shape(msgspec.structs.replace(shaped, queue_ms=_UNBOUNDED_MS))


class _End:
    """One of a connection's two sockets, and what the selector watches it for."""

    __slots__ = ("inflow", "mask", "outflow", "socket")
    inflow: "_Flow"
    """What is written to the socket."""
    outflow: "_Flow"
    """What is read from it."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.mask = 0
        sock.setblocking(False)
        with contextlib.suppress(OSError):  # macOS refuses where the peer has gone again.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class _Flow:
    """One direction of a connection: from ``source`` over the hops of ``path`` to ``sink``."""

    def __init__(self, owner: "_Connection", source: _End, sink: _End, *path: _Hop) -> None:
        self.connection, self.source, self.sink, self.path = owner, source, sink, path
        source.outflow = sink.inflow = self
        self.unwritten: deque[memoryview] = deque()
        self.unwritten_bytes = 0
        self.segments = 0
        self.waiting = False
        """A hop of the path is full and will call."""
        self.ended = False
        """The source has sent its last byte."""
        self.ending = _OPEN
        """_FIN or _RESET when that word has come out of the path, _DONE when it is passed on."""
        self.broken = False
        """The sink is gone: what still comes is thrown away."""


class _Connection:
    """A client's connection and its counterpart to the server; connected once that one is."""

    def __init__(self, node: int, client: _End, server: _End, hops: list[list[_Hop]]) -> None:
        self.node, self.ends = node, (client, server)
        self.connected = self.closed = False
        self.up = _Flow(self, client, server, hops[node][UP], hops[0][DOWN])
        self.down = _Flow(self, server, client, hops[0][UP], hops[node][DOWN])


class _Relay:
    """The relay process: one loop over its sockets and a heap of the hops' next releases."""

    def __init__(self, plan: Plan, counters: CounterTable) -> None:
        self._words = counters.words
        self._profiles = [node.profile or LinkProfile(name="") for node in plan.nodes]
        nodes = range(len(plan.nodes))
        self._hops = [[_Hop(node, way, counters) for way in (UP, DOWN)] for node in nodes]
        for node in nodes:
            self._shape_node(node)
        self._due: list[tuple[float, int, _Hop]] = []
        self._released: dict[_Flow, None] = {}
        self._selector = selectors.DefaultSelector()
        self._precise: list[int] = []
        # epoll counts in milliseconds; select on its descriptor, where it can, in microseconds.
        if sys.platform == "linux" and self._selector.fileno() < SELECT_LIMIT:
            self._precise.append(self._selector.fileno())
        self._most_connections = _allowed_connections(len(nodes) - 1)
        self._open = [0 for _ in nodes]
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Any address: BSD lets a second socket bind a port only with a more precise one.
        self._reserved.bind(("", 0))
        self._server = (HOST, self._reserved.getsockname()[1])
        self._listeners = [self._reserved]
        for node in nodes[1:]:
            self._listeners.append(socket.create_server((HOST, 0)))
            self._listeners[node].setblocking(False)
            self._selector.register(self._listeners[node], EVENT_READ, node)
        self._connections = self._releases = self._late = 0
        self._lateness_sum_s = self._lateness_max_s = 0.0

    def run(self, channel: Channel) -> None:
        """Relay until ``channel`` says stop or closes."""
        self._selector.register(channel, EVENT_READ, channel)
        channel.send({"up": True, "ports": [sock.getsockname()[1] for sock in self._listeners]})
        while True:
            for key, mask in self._ready():
                if isinstance(key.data, _End):
                    self._serve(key.data, mask)
                elif isinstance(key.data, int):
                    self._accept(key.data)
                elif self._obey(channel):
                    return
            self._release()

    def _ready(self) -> list[tuple[selectors.SelectorKey, int]]:
        wait_s = max(0.0, self._due[0][0] - time.monotonic()) if self._due else None
        if self._precise and wait_s:
            select.select(self._precise, [], [], wait_s)
            wait_s = 0
        return self._selector.select(wait_s)

    # Connections

    def _accept(self, node: int) -> None:
        """Take a client's connection and begin its counterpart to the server."""
        try:
            sock, _ = self._listeners[node].accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise LinkError(f"accept a connection of node {node}: {error.strerror}") from error
            return  # It has gone again.
        self._connections += 1
        self._open[node] += 1
        if self._open[node] >= self._most_connections:
            self._selector.unregister(self._listeners[node])
        connection = _Connection(node, _End(sock), _End(socket.socket()), self._hops)
        if connection.ends[1].socket.connect_ex(self._server) in (0, errno.EINPROGRESS):
            self._watch(connection.ends[1], EVENT_WRITE, True)
        else:
            self._close(connection, reset=True)

    def _connected(self, connection: _Connection) -> None:
        """The connection to the server stands, or was refused: then reading from it says so."""
        connection.connected = True
        self._watch(connection.ends[1], EVENT_WRITE, False)
        self._settle(connection.up)
        self._settle(connection.down)

    def _close(self, connection: _Connection, reset: bool) -> None:
        connection.closed = True
        for end in connection.ends:
            self._watch(end, EVENT_READ | EVENT_WRITE, False)
            if reset:
                with contextlib.suppress(OSError):
                    linger = struct.pack("ii", 1, 0)
                    end.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            end.socket.close()
        if self._open[connection.node] == self._most_connections:
            listener = self._listeners[connection.node]
            self._selector.register(listener, EVENT_READ, connection.node)
        self._open[connection.node] -= 1

    def _watch(self, end: _End, events: int, wanted: bool) -> None:
        mask = end.mask | events if wanted else end.mask & ~events
        if mask == end.mask:
            return
        if not end.mask:
            self._selector.register(end.socket, mask, end)
        elif not mask:
            self._selector.unregister(end.socket)
        else:
            self._selector.modify(end.socket, mask, end)
        end.mask = mask

    def _serve(self, end: _End, mask: int) -> None:
        connection = end.outflow.connection
        if not connection.connected:
            self._connected(connection)
            return
        if mask & EVENT_WRITE:
            self._write(end.inflow)
        if mask & EVENT_READ:
            self._read(end.outflow)

    # The way of a chunk: read, offered to two hops one after the other, released, written

    def _settle(self, flow: _Flow) -> bool:
        """Have a flow wait for what it lacks: its receiver, room in its path, or bytes to read."""
        if flow.ended or flow.waiting or flow.connection.closed:
            return False
        ready = flow.unwritten_bytes < MAX_UNWRITTEN_BYTES
        for hop in flow.path:
            if ready and hop.frames >= hop.limit:
                hop.waiting.append(flow)
                flow.waiting = True
                ready = False
        self._watch(flow.source, EVENT_READ, ready)
        return ready

    def _read(self, flow: _Flow) -> None:
        """Take one chunk, if there is room for it and it is there."""
        if not self._settle(flow):
            return
        room = min([hop.limit - hop.frames for hop in flow.path])
        kind = _OPEN
        try:
            data = flow.source.socket.recv(min(room, MAX_READ_SEGMENTS) * SEGMENT_BYTES)
            if not data:
                kind = _RESET if flow.source.inflow.broken else _FIN
        except BlockingIOError:
            return
        except OSError:
            data, kind = b"", _RESET
        self._enter(flow, data, kind)
        self._settle(flow)

    def _enter(self, flow: _Flow, data: bytes, kind: int) -> None:
        now = time.monotonic()
        hop = flow.path[0]
        if kind != _OPEN:
            flow.ended = True
            self._watch(flow.source, EVENT_READ, False)
            self._offer(hop, now, (flow, memoryview(b""), kind, 1))
        view = memoryview(data)
        size = min(hop.chunk_segments for hop in flow.path) * SEGMENT_BYTES
        for start in range(0, len(data), size):
            piece = view[start : start + size]
            frames = -(-len(piece) // SEGMENT_BYTES)
            self._count(hop, frames, len(piece))
            self._offer(hop, now, (flow, piece, kind, frames))

    def _offer(self, hop: _Hop, now: float, chunk: _Chunk) -> None:
        _, data, _, frames = chunk
        hop.frames += frames
        if not hop.queue.offer(now, len(data) + frames * HEADER_BYTES, chunk):
            raise AssertionError("a piece of a stream was dropped")
        if len(hop.queue) == 1:
            heapq.heappush(self._due, (hop.queue.due, hop.sequence, hop))

    def _release(self) -> None:
        """Move on every chunk whose time has come, by the model's time and not the clock's.

        What one flow has due is written at once: sending is the dear part, and a relay that is
        behind catches up so.
        """
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            _, _, hop = heapq.heappop(self._due)
            release, chunk = hop.queue.pop()
            if hop.queue:
                heapq.heappush(self._due, (hop.queue.due, hop.sequence, hop))
            hop.frames -= chunk[3]
            if hop is chunk[0].path[0]:
                self._offer(chunk[0].path[1], release, chunk)
            else:
                self._deliver(chunk, now - release)
            self._call_waiting(hop)
        for flow in self._released:
            self._write(flow)
        self._released.clear()

    def _call_waiting(self, hop: _Hop) -> None:
        """Let flows read, in turn, while there is room."""
        while hop.waiting and hop.limit - hop.frames >= hop.refill:
            flow = hop.waiting.popleft()
            flow.waiting = False
            self._read(flow)

    def _deliver(self, chunk: _Chunk, late_s: float) -> None:
        flow, data, kind, frames = chunk
        self._releases += 1
        self._lateness_sum_s += late_s
        self._lateness_max_s = max(self._lateness_max_s, late_s)
        self._late += late_s > LATE_S
        if kind == _OPEN:
            self._count(flow.path[1], frames, len(data))
            # A receiver acknowledges every second segment.
            acknowledged = (flow.segments + frames) // 2 - flow.segments // 2
            flow.segments += frames
            for hop in flow.sink.outflow.path:
                self._count(hop, acknowledged, 0)
            if flow.broken:
                return
            flow.unwritten.append(data)
            flow.unwritten_bytes += len(data)
        else:
            flow.ending = kind
        self._released[flow] = None

    def _count(self, hop: _Hop, frames: int, payload_bytes: int) -> None:
        self._words[hop.counter + FRAMES] += frames
        self._words[hop.counter + BYTES] += payload_bytes + frames * HEADER_BYTES

    def _write(self, flow: _Flow) -> None:
        """Give the receiver what it takes; at the end of the stream, the end."""
        if flow.connection.closed:
            return
        unwritten, sink = flow.unwritten, flow.sink
        stalled = flow.unwritten_bytes >= MAX_UNWRITTEN_BYTES
        try:
            while unwritten:
                sent = sink.socket.sendmsg(islice(unwritten, MAX_SEND_CHUNKS))
                flow.unwritten_bytes -= sent
                while unwritten and sent >= len(unwritten[0]):
                    sent -= len(unwritten.popleft())
                if sent:
                    unwritten[0] = unwritten[0][sent:]
            if flow.ending == _FIN:
                flow.ending = _DONE
                sink.socket.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass
        except OSError:
            self._break(flow)
        self._watch(sink, EVENT_WRITE, bool(unwritten))
        if flow.ending == _RESET and not unwritten:
            self._close(flow.connection, reset=True)
        elif flow.ending == _DONE and sink.outflow.ending == _DONE:
            self._close(flow.connection, reset=False)
        elif stalled:
            self._settle(flow)

    def _break(self, flow: _Flow) -> None:
        """The receiver is gone: its sender learns so by the way back, behind what is in it."""
        flow.broken = True
        flow.unwritten.clear()
        flow.unwritten_bytes = 0
        if flow.sink.outflow.ended:
            self._enter(flow.sink.outflow, b"", _RESET)

    # Orders

    def _shape_node(self, node: int) -> None:
        server, client = self._profiles[0], self._profiles[node]
        caps = (math.inf, math.inf)
        if node:
            rtt_s = (server.rtt_ms + client.rtt_ms) / 1000
            caps = (
                mathis_kbit(_either(client.up, server.down), rtt_s),
                mathis_kbit(_either(server.up, client.down), rtt_s),
            )
        for way, direction in enumerate((client.up, client.down)):
            self._hops[node][way].shape(direction, caps[way])
            self._call_waiting(self._hops[node][way])

    def _obey(self, channel: Channel) -> bool:
        """Do what the supervisor says; True where it says stop or is gone."""
        for order in channel.drain():
            if "stop" in order:
                with contextlib.suppress(ConnectionError):
                    channel.send({"closing": self._closing_facts()})
                return True
            if "shape" in order:
                node = order["shape"]
                link = {"name": "", "up": order["up"], "down": order["down"]}
                self._profiles[node] = msgspec.convert(link, LinkProfile)
                # The server's delay and loss are part of every client's.
                for changed in [node] if node else range(len(self._profiles)):
                    self._shape_node(changed)
        return channel.closed

    def _closing_facts(self) -> dict[str, float | int]:
        return {
            "connections": self._connections,
            "releases": self._releases,
            "late_releases": self._late,
            "lateness_mean_ms": 1000 * self._lateness_sum_s / max(1, self._releases),
            "lateness_max_ms": 1000 * self._lateness_max_s,
        }


def _either(first: Direction, second: Direction) -> float:
    """Chance that one of two lines in a row loses a packet, as a fraction."""
    return 1 - (1 - first.loss_percent / 100) * (1 - second.loss_percent / 100)


def _allowed_connections(clients: int) -> int:
    """Connections at once for each client that the limit on open files leaves, once raised.

    Raises:
        LinkError: not even one.
    """
    wanted = SPARE_DESCRIPTORS + clients * (1 + 2 * MAX_CONNECTIONS)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return MAX_CONNECTIONS
    target = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with contextlib.suppress(ValueError, OSError):  # macOS has a lower limit of its own.
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
        soft = target
    allowed = ((soft - SPARE_DESCRIPTORS) // clients - 1) // 2
    if allowed < 1:
        needed = SPARE_DESCRIPTORS + 3 * clients
        raise LinkError(f"relay {clients} clients: {needed} open files needed, {soft} allowed")
    return min(MAX_CONNECTIONS, allowed)
