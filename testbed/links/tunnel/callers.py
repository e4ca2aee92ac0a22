"""Callers of a listener who have yet to prove that they know its token: none of them is waited for.

Whoever reaches a port could else keep others from it by calling and saying nothing.
"""

import contextlib
import select
import socket
import time
from collections.abc import Container, Iterator
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from testbed.links.tunnel import proof
from testbed.links.tunnel.proof import Stranger

MOST = 64
"""At once; whoever knows the token answers within a round trip, and so before as many others."""
LIMIT_S = 2.0
"""For one that has called to say what it has to."""


class Called(NamedTuple):
    """One that has proved itself."""

    name: str
    connection: socket.socket
    """Blocking, and the caller's of ``take`` from now on."""
    key: bytes


class Callers:
    """Those of one listener, which it makes one that does not block; owns their connections."""

    def __init__(self, listener: socket.socket, greeting: bytes, token: bytes, called: str) -> None:
        """``called``: who listens."""
        self._listener, self._greeting = listener, greeting
        self._token, self._called = token, called
        self._waiting: list[_Waiting] = []
        """The oldest first."""
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
                if not each.has_said():
                    if time.monotonic() >= each.by:
                        raise Stranger("said too little in time")
                    continue
                said = self._greeting, each.own, bytes(each.said)
                name, key, answer = proof.judged(self._token, *said, names, self._called)
                each.connection.setblocking(True)
                each.connection.sendall(answer)
            except (OSError, Stranger) as error:
                self._send_away(each, error)
                continue
            self._waiting.remove(each)
            yield Called(name, each.connection, key)

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
                own = proof.greet(connection, self._greeting)
            except OSError:
                connection.close()
                continue
            self._waiting.append(_Waiting(connection, address, own))
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

    def __init__(self, connection: socket.socket, address: str, own: X25519PrivateKey) -> None:
        self.connection, self.address, self.own = connection, address, own
        self.by = time.monotonic() + LIMIT_S
        self.said = bytearray()

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
