"""Meeting of the hosts of a run: one TCP connection a pair, both ends of which prove that they
know the run's token (``proof``), and which is sealed from then on (``streams``).

Of two hosts the one that stands first listens, the other calls.
"""

import contextlib
import os
import select
import socket
import time
from collections.abc import Mapping
from typing import NamedTuple

from testbed.config_error import in_words
from testbed.links.interface import LinkError
from testbed.links.tunnel import proof, silence
from testbed.links.tunnel.callers import Callers
from testbed.links.tunnel.proof import Stranger
from testbed.links.tunnel.streams import Sealed, Stream

TOKEN_BYTES = 32
LIMIT_S = 30.0
"""For all hosts to have met."""
UNANSWERED_S = 3.5
"""A host whose kernel neither takes nor refuses a call for so long, three tries of TCP's, is cut
off: it had its listener before anybody was told to call."""
CONGESTION = ("cubic", "reno")
"""Congestion control of the connections, the first that the kernel lets us have. By bbr one that
had little to do for seconds carries the first burst too slowly, which a fast line shows."""
_AGAIN_S = 0.05
_GREETING = b"wiretune tunnel 5\n"
"""Its number changes with what is said."""


class Meeting(NamedTuple):
    """A host's way to the others of its run."""

    host: str
    """Which of them this is."""
    addresses: Mapping[str, tuple[str, int]]
    """IPv4 address and port of every host's listener, in the order that all have them in."""
    listener: socket.socket
    """Bound to this host's; owned by who made it."""
    token: bytes
    """The run's, TOKEN_BYTES of chance."""
    secure: bool = True
    """Whether what follows is sealed."""

    @property
    def others(self) -> list[str]:
        return [name for name in self.addresses if name != self.host]


def new_token() -> bytes:
    return os.urandom(TOKEN_BYTES)


def listen(address: str, port: int = 0) -> socket.socket:
    """A listener at that address alone; port 0: any.

    Raises:
        LinkError: the machine has no such address, or the port is taken.
    """
    try:
        return socket.create_server((address, port), backlog=1024)
    except OSError as error:
        raise LinkError(f"listen for other hosts at {address}:{port}: {error.strerror}") from error


def meet(meeting: Meeting, limit_s: float = LIMIT_S) -> dict[str, Stream]:
    """A stream to each other host, blocking and agreed on, in the order of ``addresses``.

    Raises:
        LinkError: naming the host that was not met within ``limit_s``, and why.
    """
    deadline = time.monotonic() + limit_s
    names = list(meeting.addresses)
    place = names.index(meeting.host)
    met: dict[str, Stream] = {}
    try:
        for name in names[:place]:
            met[name] = _call(meeting, name, deadline, limit_s)
        _await(meeting, set(names[place + 1 :]), met, deadline, limit_s)
    except BaseException:
        for connection in met.values():
            connection.close()
        raise
    return {name: met[name] for name in meeting.others}


def _call(meeting: Meeting, name: str, deadline: float, limit_s: float) -> Stream:
    """Connect to a host that listens, or will."""
    address = meeting.addresses[name]
    where = f"host {name} at {address[0]}:{address[1]}"
    answered_s = time.monotonic()
    while True:
        until_s, within_s = min((deadline, limit_s), (answered_s + UNANSWERED_S, UNANSWERED_S))
        try:
            left_s = until_s - time.monotonic()
            connection = socket.create_connection(address, max(0.001, left_s))
            break
        except OSError as error:
            if isinstance(error, ConnectionRefusedError):
                answered_s, until_s, within_s = time.monotonic(), deadline, limit_s
            if time.monotonic() >= until_s - _AGAIN_S:
                why = error.strerror or "no answer"
                raise LinkError(f"reach {where} within {within_s:g} s: {why}") from error
        time.sleep(_AGAIN_S)
    silence.end_by(connection)
    try:
        secret = proof.call(connection, _GREETING, meeting.token, meeting.host, name, deadline)
        stream = Stream(connection)
        if meeting.secure:
            stream = Sealed(connection, secret, serves=False)
            stream.agree(deadline)
    except (OSError, Stranger) as error:
        connection.close()
        raise LinkError(f"be known to {where}: {in_words(error)}") from error
    return _settled(stream)


def _await(
    meeting: Meeting,
    awaited: set[str],
    met: dict[str, Stream],
    deadline: float,
    limit_s: float,
) -> None:
    """Let the hosts call that are to; strangers are sent away."""
    token, secure = meeting.token, meeting.secure
    callers = Callers(meeting.listener, _GREETING, token, meeting.host, secure)
    with contextlib.closing(callers):
        while awaited:
            if (left_s := deadline - time.monotonic()) <= 0:
                last = f"; {callers.last}" if callers.last else ""
                missing = ", ".join(sorted(awaited))
                raise LinkError(f"no call from host {missing} within {limit_s:g} s{last}")
            waiter = select.poll()
            callers.watch(waiter)
            patience_s = callers.patience_s
            waiter.poll(1000 * (left_s if patience_s is None else min(left_s, patience_s)))
            for found in callers.take(awaited):
                awaited.remove(found.name)
                met[found.name] = _settled(found.stream)


def _settled(stream: Stream) -> Stream:
    # A host may be cut off before its first word, by which a tunnel knows of it.
    connection = stream.connection
    silence.end_by(connection)
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name in CONGESTION:
        with contextlib.suppress(OSError, AttributeError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
            break
    connection.settimeout(None)
    return stream
