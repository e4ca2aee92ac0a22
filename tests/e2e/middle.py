"""`cli.py` with a man in the middle between its links and its server; each node prints what it had.

    python middle.py HOW launch ...

HOW is flip, drop or replay: what becomes of bytes of the first two connections. On loopback links
he passes streams on between the relay and the server, on userspace links he is the link process as
it hands packets to the server. Into nodes.log go digests: of all weights that a node has made, and
of all that one has taken.
"""

import contextlib
import hashlib
import itertools
import socket
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import cli
from methods import fedavg
from testbed.links.loopback import backend as loopback
from testbed.links.userspace import forwarder
from testbed.processes.child import Child

HOST = "127.0.0.1"
AT = 300_000
"""Byte of a connection at which it does: amid a model."""
PIECE = 5_000
SERVERS_DOWNLINK = 1
FULL = 1000
HARMED = (400_000, 1_500_000, 3_000_000)
"""At how many bytes to the server full packets come to harm; three rounds are seven million."""


class Middle:
    """Passes connections on, changed."""

    def __init__(self, how: str) -> None:
        self._how = how
        self.listener = socket.create_server((HOST, 0))

    def carry(self) -> None:
        told, _ = self.listener.accept()
        port = int(told.makefile().readline())
        for number in itertools.count():
            one, _ = self.listener.accept()
            other = socket.create_connection((HOST, port))
            # Of the first connection what goes up is changed, of the second what comes down.
            harmed = {0: one, 1: other}.get(number)
            for source, sink in ((one, other), (other, one)):
                given = (source, sink, source is harmed, port)
                threading.Thread(target=self._pass, args=given, daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, harmed: bool, port: int) -> None:
        seen = bytearray()
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                before, seen = len(seen), seen + data
                if harmed and before < AT <= len(seen):
                    data = self._changed(data)
                    if self._how == "replay":
                        # All that was said, to the server once more.
                        again = socket.create_connection((HOST, port))
                        again.sendall(seen)
                        again.close()
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _changed(self, data: bytes) -> bytes:
        if self._how == "flip":
            # Amid a tensor: not all of a frame's header is proved, nor does all of it count.
            at = len(data) // 2
            return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        return data[PIECE:] if self._how == "drop" else data + data[-PIECE:]


def between_relay_and_server(how: str) -> None:
    middle = Middle(how)
    relay = loopback.relay

    def to_the_middle(plan: Any, channel: Any, counters: Any, server: tuple[str, int]) -> Any:
        address = middle.listener.getsockname()
        with socket.create_connection(address) as telling:
            telling.sendall(f"{server[1]}\n".encode())
        return relay(plan, channel, counters, address)

    loopback.relay = to_the_middle
    Child("middle", middle.carry)


def within_the_link_process(how: str) -> None:
    deliver = forwarder.Carrier._deliver
    left = list(HARMED)
    carried = 0

    def changed(self: Any, line: Any, segments: Any) -> None:
        nonlocal carried
        release, packet, first, count, *rest, size = segments
        if line.sequence != SERVERS_DOWNLINK or size < FULL or not left:
            deliver(self, line, segments)
            return
        carried += count * size
        if carried < left[0]:
            deliver(self, line, segments)
            return
        del left[0]
        if how == "drop":
            return
        if how == "replay":
            deliver(self, line, segments)
        else:
            # Its checksum is left to the receiver's device, to which it is right.
            packet = flipped(packet, first + count)
        deliver(self, line, (release, packet, first, count, *rest, size))

    forwarder.Carrier._deliver = changed


def flipped(packet: Any, until: int) -> Any:
    """The same with another last byte of the segment before number ``until``."""
    if isinstance(packet, bytes):
        return packet[:-1] + bytes([packet[-1] ^ 1])
    data = bytearray(packet.data)
    end = min(len(data), packet._payload_at + until * packet._segment_bytes)
    data[end - 1] ^= 1
    return forwarder.Burst(bytes(data))


def tell(what: str, tensors: Mapping[str, Any]) -> None:
    content = b"".join(name.encode() + tensors[name].numpy().tobytes() for name in sorted(tensors))
    print(f"weights {what} {hashlib.sha256(content).hexdigest()}", flush=True)


def tell_weights() -> None:
    made, take, update = fedavg.trainable_state, fedavg.Server.take, fedavg.Client.update

    def making(model: Any) -> Any:
        found = made(model)
        tell("made", found)
        return found

    def taking(self: Any, message: Any, fleet: Any) -> bool:
        tell("taken", message.tensors)
        return take(self, message, fleet)

    def updating(self: Any, start: Any) -> Any:
        tell("taken", start)
        return update(self, start)

    fedavg.trainable_state, fedavg.Server.take, fedavg.Client.update = making, taking, updating


if __name__ == "__main__":
    how = sys.argv.pop(1)
    between_relay_and_server(how)
    within_the_link_process(how)
    tell_weights()
    cli.run()
