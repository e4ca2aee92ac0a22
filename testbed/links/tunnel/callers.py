"""Callers of a listener who have yet to prove that they know its token: none of them is waited for.

Whoever reaches a port could else keep others from it by calling and saying nothing.
"""

import contextlib
import select
import socket
import time
from collections.abc import Container, Iterator
from typing import NamedTuple

from testbed.links.tunnel import proof
from testbed.links.tunnel.proof import Stranger
from testbed.links.tunnel.streams import Sealed, Stream

MOST = 64
"""At once; whoever knows the token answers within a round trip, and so before as many others."""
LIMIT_S = 2.0
"""For one that has called to say what it has to, and once more to agree on how to seal."""


class Called(NamedTuple):
    """One that has proved itself."""

    name: str
    stream: Stream
    """Blocking, and the caller's of ``take`` from now on."""


class Callers:
    """Those of one listener, which it makes one that does not block; owns their connections."""

    def __init__(
        self,
        listener: socket.socket,
        greeting: bytes,
        token: bytes,
        called: str,
        secure: bool = True,
    ) -> None:
        """``called``: who listens; ``secure``: what follows a proof is sealed."""
        self._listener, self._greeting = listener, greeting
        self._token, self._called, self._secure = token, called, secure
        self._waiting: list[_Waiting] = []
        """In the order in which their time ends."""
        self.last = ""
        """Who was sent away last, and why."""
        listener.setblocking(False)

    def watch(self, waiter: select.poll) -> None:
        """Have calls and what callers say wake ``waiter``."""
        waiter.register(self._listener, select.POLLIN)
        for each in self._waiting:
            waiter.register(each.connection, select.POLLIN)

    @property
    def patience_s(self) -> float | None:
        """Seconds until one is to be sent away."""
        return None if not self._waiting else max(0.0, self._waiting[0].by - time.monotonic())

    def take(self, names: Container[str]) -> Iterator[Called]:
        """Those who have proved by now to be one of ``names``; others are sent away."""
        self._accept()
        for each in list(self._waiting):
            try:
                found = self._proved(each, names)
                if found is None and time.monotonic() >= each.by:
                    raise Stranger("said too little in time")
            except (OSError, Stranger) as error:
                self._send_away(each, error)
                continue
            if found is not None:
                self._waiting.remove(each)
                yield found

    def _proved(self, each: "_Waiting", names: Container[str]) -> Called | None:
        """One that has said all it has to, as it is from then on; raises OSError or Stranger."""
        if each.stream is None:
            if not each.has_said():
                return None
            said = self._greeting, each.ours, bytes(each.said)
            each.name, secret, answer = proof.judged(self._token, *said, names, self._called)
            each.connection.sendall(answer)
            if self._secure:
                each.stream = Sealed(each.connection, secret, serves=True)
            else:
                each.stream = Stream(each.connection)
            each.by = time.monotonic() + LIMIT_S
            self._waiting.remove(each)
            self._waiting.append(each)
        if each.name not in names:
            raise Stranger(f"was {each.name!r}, which is not awaited")
        if isinstance(each.stream, Sealed) and not each.stream.agrees():
            return None
        each.connection.setblocking(True)
        return Called(each.name, each.stream)

    def _accept(self) -> None:
        for _ in range(MOST):
            try:
                connection, (address, _) = self._listener.accept()
            except OSError as error:
                if not isinstance(error, BlockingIOError) and self._waiting:
                    # Out of descriptors, perhaps: the oldest has one.
                    self._send_away(self._waiting[0], error)
                return
            try:
                connection.setblocking(False)
                ours = proof.greet(connection, self._greeting)
            except OSError:
                connection.close()
                continue
            self._waiting.append(_Waiting(connection, address, ours))
            if len(self._waiting) > MOST:
                self._send_away(self._waiting[0], Stranger("had not said enough before others"))

    def _send_away(self, one: "_Waiting", why: Exception) -> None:
        self.last = f"{one.address} called and {why}"
        self._waiting.remove(one)
        one.close()

    def close(self) -> None:
        """Send away all who are left."""
        while self._waiting:
            self._waiting.pop().close()


class _Waiting:
    """One that has called."""

    def __init__(self, connection: socket.socket, address: str, ours: bytes) -> None:
        self.connection, self.address, self.ours = connection, address, ours
        self.by = time.monotonic() + LIMIT_S
        self.said = bytearray()
        self.name = ""
        self.stream: Stream | None = None
        """Once it has proved itself, and has yet to agree."""

    def has_said(self) -> bool:
        """Whether all is here that it has to say; raises OSError or Stranger."""
        while missing := proof.missing(self.said):
            try:
                data = self.connection.recv(missing)
            except BlockingIOError:
                return False
            if not data:
                raise Stranger(proof.CLOSED)
            self.said += data
        return True

    def close(self) -> None:
        with contextlib.suppress(OSError):
            # Forked processes may have copies.
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()
