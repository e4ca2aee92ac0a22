"""Proof by both ends of a connection that they know a token, which itself does not travel.

Each end makes a key pair for this connection alone (X25519), and shows by a digest, keyed by the
token, that the public keys are of two who know it. What follows is neither encrypted nor signed by
this; both ends get a key for it, which takes a private key and the token to make. Private keys end
with the proof, so that whoever learns the token later has that of no connection.
"""

import hmac
import socket
import time
from collections.abc import Container, Sequence

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

PUBLIC_BYTES = 32
DIGEST_BYTES = 32
CLOSED = "closed the connection: is its token another?"
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
    # By itself, since another version may say less after it.
    if read(connection, len(greeting), by) != greeting:
        raise Stranger(f"is no {greeting.split()[1].decode()} of this version")
    theirs = read(connection, PUBLIC_BYTES, by)
    own, name = X25519PrivateKey.generate(), caller.encode()
    parts = greeting, theirs, public(own), name, called.encode()
    said = bytes([len(name)]) + name + public(own) + digest(token, b"calls", *parts)
    connection.sendall(said)
    answer = read(connection, DIGEST_BYTES, by)
    if not hmac.compare_digest(answer, digest(token, b"listens", *parts)):
        raise Stranger("does not know the token")
    return _key(token, own, theirs, parts)


def greet(connection: socket.socket, greeting: bytes) -> X25519PrivateKey:
    """Say what the end that was called begins with; its key of this connection. Raises OSError."""
    own = X25519PrivateKey.generate()
    connection.sendall(greeting + public(own))
    return own


def missing(said: Sequence[int]) -> int:
    """Bytes that a caller has yet to say, at least; 0: it has said all.

    Raises:
        Stranger: what it has said begins no proof.
    """
    if not said:
        return 1
    if not 1 <= said[0] <= _MOST_NAME_BYTES:
        raise Stranger(f"gave a name of {said[0]} bytes")
    return 1 + said[0] + PUBLIC_BYTES + DIGEST_BYTES - len(said)


def judged(
    token: bytes,
    greeting: bytes,
    own: X25519PrivateKey,
    said: bytes,
    callers: Container[str],
    called: str,
) -> tuple[str, bytes, bytes]:
    """The caller's name, one of ``callers``; the key that both know then; what is to be answered.

    ``own``: what ``greet`` gave; ``said``: all that the caller has.

    Raises:
        Stranger: it is another.
    """
    caller, rest = said[1 : 1 + said[0]], said[1 + said[0] :]
    theirs, proof = rest[:PUBLIC_BYTES], rest[PUBLIC_BYTES:]
    parts = greeting, public(own), theirs, caller, called.encode()
    if not hmac.compare_digest(proof, digest(token, b"calls", *parts)):
        raise Stranger("did not know the token")
    name = caller.decode(errors="replace")
    if name not in callers:
        raise Stranger(f"was {name!r}, which is not awaited")
    return name, _key(token, own, theirs, parts), digest(token, b"listens", *parts)


def public(own: X25519PrivateKey) -> bytes:
    return own.public_key().public_bytes_raw()


def _key(token: bytes, own: X25519PrivateKey, theirs: bytes, parts: Sequence[bytes]) -> bytes:
    try:
        shared = own.exchange(X25519PublicKey.from_public_bytes(theirs))
    except ValueError as error:
        # Of low order: what is shared by it does not hang on our key (RFC 7748, 6.1).
        raise Stranger("gave a public key that makes no secret") from error
    return HKDF(SHA256(), 32, salt=token, info=_framed(b"key", *parts)).derive(shared)


def digest(token: bytes, *parts: bytes) -> bytes:
    """Digest of parts, of 255 bytes at most each, whose bounds count too."""
    return hmac.digest(token, _framed(*parts), "sha256")


def _framed(*parts: bytes) -> bytes:
    return b"".join(bytes([len(part)]) + part for part in parts)


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
