"""A stream's way through the relay: read, sent over its hops in chunks, written.

What a flow lacks, it waits for: its receiver, room in its path, the end of an outage, or bytes.
"""

import contextlib
import errno
import selectors
import socket
import struct
from collections.abc import Callable
from itertools import islice
from selectors import EVENT_READ, EVENT_WRITE

from testbed.links.loopback.connection import DONE, FIN, OPEN, RESET, Connection, End, Flow
from testbed.links.loopback.hop import HEADER_BYTES, MAX_CHUNK_SEGMENTS, Chunk, Lines
from testbed.network.direction import SEGMENT_BYTES

MAX_SEND_CHUNKS = 64
MAX_UNWRITTEN_BYTES = 1 << 20
"""Held for a receiver that does not read, beyond the kernel's own buffers."""


class Streams:
    """Every connection's bytes, between the selector and the lines."""

    def __init__(
        self, selector: selectors.BaseSelector, lines: Lines[Flow], now: Callable[[], float]
    ) -> None:
        """``now``: the time that the lines go by."""
        self._selector, self._lines, self._now = selector, lines, now
        self._unflushed: dict[Flow, None] = {}

    def open(
        self, node: int, sock: socket.socket, server: tuple[str, int], ended: Callable[[], None]
    ) -> Connection:
        """Call the server for a node's connection; ``ended`` is called when it is over."""
        hops = self._lines.hops
        connection = Connection(End(sock), End(socket.socket()), hops[node], hops[0], ended)
        counterpart = connection.ends[1]
        if counterpart.socket.connect_ex(server) in (0, errno.EINPROGRESS):
            self._watch(counterpart, EVENT_WRITE, True)
        else:
            self._close(connection, reset=True)
        return connection

    def cut(self, connection: Connection) -> None:
        """End a connection at both ends, now."""
        if not connection.closed:
            self._close(connection, reset=True)

    def serve(self, end: End, mask: int) -> None:
        """Do what a socket is ready for."""
        connection = end.outflow.connection
        if not connection.connected:
            # Or it was refused: then reading from it says so.
            connection.connected = True
            self._watch(end, EVENT_WRITE, False)
            self._settle(connection.up)
            self._settle(connection.down)
            return
        if mask & EVENT_WRITE:
            self._write(end.inflow)
        if mask & EVENT_READ:
            self._read(end.outflow)

    def deliver(self, chunk: Chunk[Flow]) -> None:
        """Take a chunk that has crossed its path; ``flush`` writes it."""
        flow, data, kind, frames = chunk
        self._unflushed[flow] = None
        if kind != OPEN:
            flow.ending = kind
            return
        flow.path[1].count(frames, len(data))
        # A receiver acknowledges every second segment.
        acknowledged = (flow.segments + frames) // 2 - flow.segments // 2
        flow.segments += frames
        for hop in flow.sink.outflow.path:
            hop.count(acknowledged, 0)
        if not flow.broken:
            flow.unwritten.append(data)
            flow.unwritten_bytes += len(data)

    def flush(self) -> None:
        """Let flows read where there is room again, in turn, and write what was delivered.

        What one flow has is written at once: sending is the dear part, and a relay that is behind
        catches up so.
        """
        for hop in self._lines.roomier:
            while hop.waiting and hop.room >= hop.refill:
                flow = hop.waiting.popleft()
                flow.waiting = False
                self._read(flow)
        self._lines.roomier.clear()
        for flow in self._unflushed:
            self._write(flow)
        self._unflushed.clear()

    def _watch(self, end: End, events: int, wanted: bool) -> None:
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

    def _settle(self, flow: Flow) -> bool:
        """Have a flow wait for what it lacks; whether that is only bytes."""
        if flow.ended or flow.waiting or flow.connection.closed:
            return False
        ready = flow.unwritten_bytes < MAX_UNWRITTEN_BYTES
        obstacle = flow.obstacle() if ready else None
        if obstacle is not None:
            obstacle.waiting.append(flow)
            flow.waiting = True
            ready = False
        self._watch(flow.source, EVENT_READ, ready)
        return ready

    def _read(self, flow: Flow) -> None:
        """Take one chunk, if there is room for it and it is there."""
        if not self._settle(flow):
            return
        room = min(hop.room for hop in flow.path)
        kind = OPEN
        try:
            data = flow.source.socket.recv(min(room, MAX_CHUNK_SEGMENTS) * SEGMENT_BYTES)
            if not data:
                kind = RESET if flow.source.inflow.broken else FIN
        except BlockingIOError:
            return
        except OSError:
            data, kind = b"", RESET
        self._enter(flow, data, kind)
        self._settle(flow)

    def _enter(self, flow: Flow, data: bytes, kind: int) -> None:
        now = self._now()
        hop = flow.path[0]
        if kind != OPEN:
            flow.ended = True
            self._watch(flow.source, EVENT_READ, False)
            self._lines.offer(hop, now, Chunk(flow, memoryview(b""), kind, 1))
        view = memoryview(data)
        size = min([hop.chunk_segments(now) for hop in flow.path]) * SEGMENT_BYTES
        for start in range(0, len(data), size):
            piece = view[start : start + size]
            frames = -(-len(piece) // SEGMENT_BYTES)
            hop.count(frames, len(piece))
            flow.sent_bytes += len(piece) + HEADER_BYTES * frames
            self._lines.offer(hop, now, Chunk(flow, piece, kind, frames))

    def _write(self, flow: Flow) -> None:
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
            if flow.ending == FIN:
                flow.ending = DONE
                sink.socket.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass
        except OSError:
            self._break(flow)
        self._watch(sink, EVENT_WRITE, bool(unwritten))
        if flow.ending == RESET and not unwritten:
            self._close(flow.connection, reset=True)
        elif flow.ending == DONE and sink.outflow.ending == DONE:
            self._close(flow.connection, reset=False)
        elif stalled:
            self._settle(flow)

    def _break(self, flow: Flow) -> None:
        """The receiver is gone: its sender learns so by the way back, behind what is in it."""
        flow.broken = True
        flow.unwritten.clear()
        flow.unwritten_bytes = 0
        if flow.sink.outflow.ended:
            self._enter(flow.sink.outflow, b"", RESET)

    def _close(self, connection: Connection, reset: bool) -> None:
        connection.closed = True
        for end in connection.ends:
            self._watch(end, EVENT_READ | EVENT_WRITE, False)
            if reset:
                with contextlib.suppress(OSError):
                    linger = struct.pack("ii", 1, 0)
                    end.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            end.socket.close()
        connection.ended()
