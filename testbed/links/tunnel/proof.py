"""Proof by both ends of a connection that they know a token, which itself does not travel.

Each end answers the other's random number with a keyed digest. What follows is neither encrypted
nor signed by this; both ends get a key of their own for it.
"""

import hashlib
import hmac
import os
import socket
import time
from collections.abc import Container

NONCE_BYTES = 16
DIGEST_BYTES = 32
_MOST_NAME_BYTES = 63


class Stranger(Exception):
    """An end that is none of those awaited; the text says why."""


def call(
    connection: socket.socket, greeting: bytes, token: bytes, caller: str, called: str, by: float
) -> bytes:
    """Prove this end, which has called, and have the other proved; a key that both know then.

    ``greeting``: its second word is what is spoken; ``by``: a time of ``time.monotonic``.

    Raises:
        OSError: it does not answer in time.
        Stranger: it is another.
    """
    head = read(connection, len(greeting) + NONCE_BYTES, by)
    theirs = head[len(greeting) :]
    if head[: len(greeting)] != greeting:
        raise Stranger(f"is no {greeting.split()[1].decode()} of this version")
    ours, own = os.urandom(NONCE_BYTES), caller.encode()
    parts = theirs, ours, own, called.encode()
    connection.sendall(bytes([len(own)]) + own + ours + digest(token, b"calls", *parts))
    if not hmac.compare_digest(
        read(connection, DIGEST_BYTES, by), digest(token, b"listens", *parts)
    ):
        raise Stranger("does not know the token")
    return digest(token, b"key", *parts)


def answer(
    connection: socket.socket,
    greeting: bytes,
    token: bytes,
    callers: Container[str],
    called: str,
    by: float,
) -> tuple[str, bytes]:
    """The same of the end that was called: who calls, one of ``callers``, and the key.

    Raises:
        OSError: it does not speak in time.
        Stranger: it is another.
    """
    ours = os.urandom(NONCE_BYTES)
    connection.settimeout(max(0.001, by - time.monotonic()))
    connection.sendall(greeting + ours)
    length = read(connection, 1, by)[0]
    if not 1 <= length <= _MOST_NAME_BYTES:
        raise Stranger(f"gave a name of {length} bytes")
    caller = read(connection, length, by)
    theirs = read(connection, NONCE_BYTES, by)
    proof = read(connection, DIGEST_BYTES, by)
    parts = ours, theirs, caller, called.encode()
    if not hmac.compare_digest(proof, digest(token, b"calls", *parts)):
        raise Stranger("did not know the token")
    name = caller.decode(errors="replace")
    if name not in callers:
        raise Stranger(f"was {name!r}, which is not awaited")
    connection.sendall(digest(token, b"listens", *parts))
    return name, digest(token, b"key", *parts)


def digest(token: bytes, *parts: bytes) -> bytes:
    """Digest of parts, of 255 bytes at most each, whose bounds count too."""
    found = hmac.new(token, digestmod=hashlib.sha256)
    for part in parts:
        found.update(bytes([len(part)]) + part)
    return found.digest()


def read(connection: socket.socket, count: int, by: float) -> bytes:
    """So many bytes; raises OSError or Stranger where they do not come."""
    found = b""
    while len(found) < count:
        connection.settimeout(max(0.001, by - time.monotonic()))
        data = connection.recv(count - len(found))
        if not data:
            raise Stranger("closed the connection: is its token another?")
        found += data
    return found
