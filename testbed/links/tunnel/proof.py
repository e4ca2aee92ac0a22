"""Proof by both ends of a connection that they know a token, which itself does not travel.

Each end answers the other's random number with a keyed digest, of what is spoken too. What follows
is neither encrypted nor signed by this; both ends get a secret of the connection for it, which
whoever learns the token can make of what both have said, then or later.
"""

import hmac
import os
import socket
import time
from collections.abc import Container, Sequence

NONCE_BYTES = 16
DIGEST_BYTES = 32
CLOSED = "closed the connection: is its token another?"
_MOST_NAME_BYTES = 63


class Stranger(Exception):
    """An end that is none of those awaited; the text says why."""


def call(
    connection: socket.socket, greeting: bytes, token: bytes, caller: str, called: str, by: float
) -> bytes:
    """Prove this end, which has called, and have the other proved; a secret that both know then.

    ``greeting``: its second word is what is spoken; ``by``: a time of ``time.monotonic``.

    Raises:
        OSError: it does not answer in time.
        Stranger: it is another.
    """
    # By itself, since another version may say less after it.
    if read(connection, len(greeting), by) != greeting:
        raise Stranger(f"is no {greeting.split()[1].decode()} of this version")
    theirs, ours, name = read(connection, NONCE_BYTES, by), os.urandom(NONCE_BYTES), caller.encode()
    parts = greeting, theirs, ours, name, called.encode()
    connection.sendall(bytes([len(name)]) + name + ours + digest(token, b"calls", *parts))
    answer = read(connection, DIGEST_BYTES, by)
    if not hmac.compare_digest(answer, digest(token, b"listens", *parts)):
        raise Stranger("does not know the token")
    return digest(token, b"key", *parts)


def greet(connection: socket.socket, greeting: bytes) -> bytes:
    """Say what the end that was called begins with; its random number. Raises OSError."""
    ours = os.urandom(NONCE_BYTES)
    connection.sendall(greeting + ours)
    return ours


def missing(said: Sequence[int]) -> int:
    """Bytes that a caller has yet to say, at least; 0: it has said all.

    Raises:
        Stranger: what it has said begins no proof.
    """
    if not said:
        return 1
    if not 1 <= said[0] <= _MOST_NAME_BYTES:
        raise Stranger(f"gave a name of {said[0]} bytes")
    return 1 + said[0] + NONCE_BYTES + DIGEST_BYTES - len(said)


def judged(
    token: bytes,
    greeting: bytes,
    ours: bytes,
    said: bytes,
    callers: Container[str],
    called: str,
) -> tuple[str, bytes, bytes]:
    """The caller's name, one of ``callers``; the secret that both know then; the answer to it.

    ``ours``: the random number of this end; ``said``: all that the caller has.

    Raises:
        Stranger: it is another.
    """
    caller, rest = said[1 : 1 + said[0]], said[1 + said[0] :]
    theirs, proof = rest[:NONCE_BYTES], rest[NONCE_BYTES:]
    parts = greeting, ours, theirs, caller, called.encode()
    if not hmac.compare_digest(proof, digest(token, b"calls", *parts)):
        raise Stranger("did not know the token")
    name = caller.decode(errors="replace")
    if name not in callers:
        raise Stranger(f"was {name!r}, which is not awaited")
    return name, digest(token, b"key", *parts), digest(token, b"listens", *parts)


def digest(token: bytes, *parts: bytes) -> bytes:
    """Digest of parts, of 255 bytes at most each, whose bounds count too."""
    return hmac.digest(token, b"".join(bytes([len(part)]) + part for part in parts), "sha256")


def read(connection: socket.socket, count: int, by: float) -> bytes:
    """So many bytes; raises OSError or Stranger where they do not come."""
    found = b""
    while len(found) < count:
        connection.settimeout(max(0.001, by - time.monotonic()))
        data = connection.recv(count - len(found))
        if not data:
            raise Stranger(CLOSED)
        found += data
    return found
