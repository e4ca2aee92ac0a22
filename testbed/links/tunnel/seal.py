"""Seals of a connection between hosts, one a direction: nobody else reads what goes that way.

ChaCha20-Poly1305 (RFC 8439). Its nonce is the direction and the message's number, which no two
messages under one key share. A message goes as its length, itself closed, and a tag; it is opened
in its place alone, so that what is changed, left out, said twice, swapped or sent back is none.
"""

import struct
from collections.abc import Iterator
from itertools import count

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

TAG_BYTES = 16
_HEAD = struct.Struct("!I")
HEAD_BYTES = _HEAD.size
_NONCE = struct.Struct("!LQ")


class Broken(ConnectionError):
    """Something has come that is not the next of what was sealed; the text says why."""

    def __init__(self, why: str) -> None:
        super().__init__(f"what came is not what was sealed there ({why})")
        self.strerror = str(self)


class Seal:
    """The end that closes."""

    def __init__(self, key: bytes, *, calls: bool) -> None:
        """``key``: 32 bytes, a secret of this connection alone; ``calls``: this end has called."""
        self._cipher = ChaCha20Poly1305(key)
        self._nonces = _nonces(calls)

    def close(self, body: bytes | memoryview) -> bytes:
        """The next message as it is sent."""
        return _HEAD.pack(len(body)) + self._cipher.encrypt(next(self._nonces), body, None)


class Opener:
    """The end that opens."""

    def __init__(self, key: bytes, most_bytes: int, *, calls: bool) -> None:
        """``most_bytes``: of a message; ``calls``: the end that closes has called."""
        self._cipher = ChaCha20Poly1305(key)
        self._nonces = _nonces(calls)
        self._most_bytes = most_bytes
        self._partial = bytearray()

    def open(self, data: bytes) -> Iterator[bytes]:
        """The messages that are whole with ``data``, which has come.

        Raises:
            Broken: after those before it, of one that is not the next of who has the key.
        """
        partial = self._partial
        partial += data
        while len(partial) >= HEAD_BYTES:
            (length,) = _HEAD.unpack_from(partial)
            if length > self._most_bytes:
                raise Broken(f"a message of {length} bytes")
            end = HEAD_BYTES + length + TAG_BYTES
            if len(partial) < end:
                return
            try:
                body = self._cipher.decrypt(next(self._nonces), partial[HEAD_BYTES:end], None)
            except InvalidTag as error:
                raise Broken("its tag is wrong") from error
            del partial[:end]
            yield body


def _nonces(calls: bool) -> Iterator[bytes]:
    return (_NONCE.pack(calls, number) for number in count())
