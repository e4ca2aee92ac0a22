"""Sealing of a line's messages: nobody on the hosts' network reads one, or changes one unnoticed.

ChaCha20-Poly1305 (RFC 8439). Its nonce is the direction and the message's number, which no two
messages under one key share.
"""

import hmac
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

TAG_BYTES = 16
_NONCE = struct.Struct("!LQ")


class Seal:
    """One direction of a line, at either end: messages in their order."""

    def __init__(self, key: bytes, direction: int) -> None:
        """``key``: a secret of this connection alone."""
        self._cipher = ChaCha20Poly1305(hmac.digest(key, b"seal", "sha256"))
        self._direction = direction
        self._number = 0

    def close(self, body: bytes) -> bytes:
        """The next message as it is sent: as many bytes as it has, and TAG_BYTES after them."""
        return self._cipher.encrypt(self._nonce(), body, None)

    def open(self, data: bytes) -> bytes | None:
        """The message that was closed; None: this is not the next message of who has the key."""
        try:
            return self._cipher.decrypt(self._nonce(), data, None)
        except InvalidTag:
            return None

    def _nonce(self) -> bytes:
        found = _NONCE.pack(self._direction, self._number)
        self._number += 1
        return found
