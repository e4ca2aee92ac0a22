"""Saturation of a fast line by one TCP connection.

One process has both of its ends, where a run has one host. Of several, each has its own: who sends
then knows what has arrived by its acknowledgements.
"""

import contextlib
import fcntl
import math
import select
import socket
import struct
import sys
import termios
import time

from testbed.fidelity.paths import Path
from testbed.links.interface import Endpoint, Network
from testbed.network.topology import Plan
from testbed.probing import saturation
from testbed.probing.saturation import Fill, Note
from testbed.probing.timestamps import TIMESTAMP_SPACE, enter, listen, stamp_arrivals, timestamp_ns

CONNECT_LIMIT_S = 1.0
_CHUNK = memoryview(bytes(1 << 16))
_READ_BYTES = 1 << 20
_LOOK_MS = 1


def probe(plan: Plan, network: Network, paths: list[Path]) -> list[dict[str, list[Note]]]:
    """Fill the paths' fast directions one after the other; of each path by way what came."""
    found: list[dict[str, list[Note]]] = [{} for _ in paths]
    lines = sum(len(path.fast_ways) for path in paths)
    if not lines:
        return found
    server = network.endpoint(plan.server)
    enter(server)
    with listen(server) as listener:
        listener.settimeout(CONNECT_LIMIT_S)
        for path, notes in zip(paths, found, strict=True):
            endpoint = network.endpoint(path.client)
            enter(endpoint)
            with contextlib.suppress(OSError):
                for way in path.fast_ways:
                    notes[way] = fill_between(
                        endpoint, listener, way, planned_fill(path, way, lines)
                    )
    return found


def longest_s(paths: list[Path]) -> float:
    """How long that takes if every link is what was asked."""
    lines = [(path, way) for path in paths for way in path.fast_ways]
    return sum(planned_fill(path, way, len(lines)).seconds for path, way in lines)


def planned_fill(path: Path, way: str, lines: int) -> Fill:
    """The transfer that fills one way of a path, one of so many lines of all paths."""
    here = path.here
    return saturation.fill(dict(here.ways)[way], here.back(way), lines)


def call(endpoint: Endpoint) -> socket.socket:
    """A client's end of a connection; raises OSError where none comes about."""
    enter(endpoint)
    return socket.create_connection((endpoint.host, endpoint.port), CONNECT_LIMIT_S)


def send(sender: socket.socket, planned: Fill) -> None:
    """Keep the window full for the planned time; the other end takes it on another host."""
    _prepare(sender)
    ends_s = time.monotonic() + planned.seconds
    poller = select.poll()
    poller.register(sender, select.POLLIN)
    with contextlib.suppress(OSError):
        while (now_s := time.monotonic()) < ends_s:
            with contextlib.suppress(BlockingIOError):
                while (room := planned.window_bytes - _unacknowledged_bytes(sender)) > 0:
                    sender.send(_CHUNK[:room])
            # Acknowledgements wake nobody.
            poller.poll(min(_LOOK_MS, math.ceil(1000 * (ends_s - now_s))))


def take(taker: socket.socket, planned: Fill) -> list[Note]:
    """Arrivals once the line was full, from an end on another host."""
    _prepare(taker)
    stamp_arrivals(taker)
    notes: list[Note] = []
    buffer, taken = bytearray(_READ_BYTES), 0
    poller = select.poll()
    poller.register(taker, select.POLLIN)
    watched_s = time.monotonic() + planned.lead_s
    ends_s = watched_s + planned.window_s
    with contextlib.suppress(OSError):
        while (now_s := time.monotonic()) < ends_s:
            poller.poll(math.ceil(1000 * (ends_s - now_s)))
            with contextlib.suppress(BlockingIOError):
                size, ancillary, _, _ = taker.recvmsg_into([buffer], TIMESTAMP_SPACE)
                if not size:
                    break
                taken += size
                if now_s >= watched_s:
                    notes.append((timestamp_ns(ancillary), taken))
    return notes


def _unacknowledged_bytes(sender: socket.socket) -> int:
    """Payload that its kernel still keeps."""
    return int(struct.unpack("i", fcntl.ioctl(sender, termios.TIOCOUTQ, bytes(4)))[0])


def _prepare(end: socket.socket) -> None:
    end.setblocking(False)
    if sys.platform == "linux":
        # Its slow start ends at a loss and at nothing else.
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")


def fill_between(
    endpoint: Endpoint, listener: socket.socket, way: str, planned: Fill
) -> list[Note]:
    """Arrivals of a transfer both of whose ends are here, in the namespaces of ``endpoint``.

    Raises:
        OSError: nothing gets through.
    """
    address = endpoint.host, endpoint.port
    with socket.create_connection(address, CONNECT_LIMIT_S) as near:
        far, _ = listener.accept()
        with far:
            return _fill(near, far, planned) if way == "up" else _fill(far, near, planned)


def _fill(sender: socket.socket, taker: socket.socket, planned: Fill) -> list[Note]:
    """Keep the window full for the planned time; what arrived once the line was full.

    What is on its way then is waited for: later it would count as the first round's bytes.
    """
    for end in (sender, taker):
        _prepare(end)
    stamp_arrivals(taker)
    notes: list[Note] = []
    buffer = bytearray(_READ_BYTES)
    sent = taken = 0
    poller = select.poll()
    poller.register(taker, select.POLLIN)
    watched_s = time.monotonic() + planned.lead_s
    ends_s = watched_s + planned.window_s
    empty_s = ends_s + planned.lead_s
    while (now_s := time.monotonic()) < ends_s or (taken < sent and now_s < empty_s):
        filling = now_s < ends_s
        with contextlib.suppress(BlockingIOError):
            while filling and (room := planned.window_bytes - sent + taken) > 0:
                sent += sender.send(_CHUNK[:room])
        poller.poll(math.ceil(1000 * ((ends_s if filling else empty_s) - now_s)))
        with contextlib.suppress(BlockingIOError):
            size, ancillary, _, _ = taker.recvmsg_into([buffer], TIMESTAMP_SPACE)
            if not size:
                raise ConnectionError("the stream ended")
            taken += size
            if filling and now_s >= watched_s:
                notes.append((timestamp_ns(ancillary), taken))
    return notes
