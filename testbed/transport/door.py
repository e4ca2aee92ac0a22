"""The door of a socket: who a message is of, and whether it can be taken; else why not.

With keys the sender's name is that of its key, whatever it says. Without, it is what it says.
"""

from collections.abc import Container, Mapping
from typing import Any

import zmq

from testbed import clock
from testbed.record import events
from testbed.record.events import Report
from testbed.transport import connections
from testbed.transport.keys import Doorkeeper, Keys
from testbed.transport.unproved import Unproved
from testbed.transport.wire import Message, WireError, decode

LEEWAY_NS = 1_000_000_000
"""By how much a message's time may lie after its arrival, or before the run."""
EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
"""What a door's monitor has to tell it. Not why a handshake has failed: libzmq 4.3.5 that is to say
so leaves a connection open on which a later message was forged, and reads no more of it."""


def receive(sender: str, frames: list[zmq.Frame], since_ns: int, report: Report) -> Message | None:
    """A message out of its frames, reported; None, also reported, where it cannot be taken.

    ``since_ns``: nothing of the run was sent before.
    """
    received_ns = clock.monotonic_ns()
    size = sum(len(frame) for frame in frames)
    try:
        header, tensors = decode([frame.buffer for frame in frames])
        _check_time(header.sent_ns, since_ns, received_ns)
    except WireError as error:
        report(events.Dropped(peer=sender, bytes=size, reason=str(error)))
        return None
    message = Message(sender, header, tensors, received_ns, size)
    report(
        events.Message(
            peer=sender,
            kind=message.kind,
            round=message.round,
            payload_bytes=message.payload_bytes,
            message_bytes=size,
            sent_ns=header.sent_ns,
            received_ns=received_ns,
        )
    )
    return message


def _check_time(sent_ns: int, since_ns: int, received_ns: int) -> None:
    """Raise WireError where a message cannot have been sent when it says."""
    if sent_ns > received_ns + LEEWAY_NS:
        raise WireError("sent after it arrived, it says")
    if sent_ns < since_ns - LEEWAY_NS:
        raise WireError("sent before the run began, it says")


class Door:
    """A socket's way to tell who sends: the callers it knows, and what proves them."""

    def __init__(
        self, sock: zmq.Socket[Any], names: Container[str], keys: Keys | None, since_ns: int
    ) -> None:
        """Have a ROUTER take calls, the only one of its context that does, once it is bound."""
        self._names, self._keys, self._since_ns = names, keys, since_ns
        self._by_word = {m.word: name for name, m in keys.callers.items()} if keys else {}
        self._unproved: dict[int, None] = {}
        """Connections by their descriptors, in their order."""
        self._bound = Unproved(len(self._by_word))
        self._speakers: dict[int, str] = {}
        """Who has spoken over a connection that is there, by its descriptor."""
        # A client whose connection broke comes back under its name at once.
        sock.setsockopt(zmq.ROUTER_HANDOVER, 1)
        if keys is not None:
            Doorkeeper(sock.context, keys.callers)
            # Without a doorkeeper nobody is let in.
            sock.setsockopt(zmq.ZAP_DOMAIN, b"run")
            sock.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
            sock.setsockopt(zmq.CURVE_SERVER, 1)
            sock.setsockopt(zmq.CURVE_SECRETKEY, keys.secret.encode())

    def watch(self, event: Mapping[str, Any], report: Report) -> None:
        """Take what the socket's monitor tells, and report who left without a proof.

        Whose handshake was done it does not tell: of many at once the sum is right, at the latest
        when all have gone.
        """
        kind, connection = event["event"], event["value"]
        if kind in (zmq.EVENT_ACCEPTED, zmq.EVENT_DISCONNECTED):
            self._speakers.pop(connection, None)
        if self._keys is None:
            return
        if kind == zmq.EVENT_DISCONNECTED:
            self._bound.discard(connection)
        if kind == zmq.EVENT_ACCEPTED:
            self._bound.add(connection)
            self._unproved[connection] = None
        elif kind == zmq.EVENT_HANDSHAKE_SUCCEEDED and self._unproved:
            del self._unproved[next(iter(self._unproved))]
        elif kind == zmq.EVENT_DISCONNECTED and connection in self._unproved:
            del self._unproved[connection]
            report(events.Dropped(peer="stranger", bytes=0, reason="it proved no key of this run"))

    def word(self, name: str) -> bytes:
        """Word by which a caller calls itself."""
        return (self._keys.callers[name].word if self._keys else name).encode()

    def take(self, frames: list[zmq.Frame], report: Report) -> Message | None:
        """A message, if its sender belongs to the run."""
        word, *frames = frames
        sender = said = word.bytes.decode(errors="replace")
        if self._keys is not None:
            sender = str(frames[0].get("User-Id"))
            said = self._by_word.get(said, "another")
        if said != sender or sender not in self._names:
            size = sum(len(frame) for frame in frames)
            report(events.Dropped(peer=sender[:100], bytes=size, reason="stranger"))
            return None
        self._speakers[int(frames[0].get(zmq.SRCFD))] = sender
        return receive(sender, frames, self._since_ns, report)

    def hang_up(self, name: str) -> bool:
        """End the connections of a caller, with what they have yet to take; whether there are."""
        own = [connection for connection, who in self._speakers.items() if who == name]
        for connection in own:
            connections.end(connection)
        return bool(own)
