"""Sealing of a line's messages: nobody on the hosts' network reads one, or changes one unnoticed.

Encrypted, then signed: a message is combined with the bytes that SHAKE-256 makes of a key, the
direction and the message's number, which no two messages share, and has an HMAC-SHA256 by another
key over what became of it, direction and number too. Neither the standard library nor anything
that this depends on has a cipher to call.
"""

import hashlib
import hmac
import struct

DIGEST_BYTES = 32
_PLACE = struct.Struct("!BQ")


class Seal:
    """One direction of a line, at either end: messages in their order."""

    def __init__(self, key: bytes, direction: int) -> None:
        """``key``: a secret of this connection alone."""
        self._signs = hmac.digest(key, b"sign", "sha256")
        self._hides = hmac.digest(key, b"hide", "sha256")
        self._direction = direction
        self._number = 0

    def close(self, body: bytes) -> bytes:
        """The next message as it is sent: its digest, and after it as many bytes as it has."""
        place = self._place()
        hidden = self._combined(place, body)
        return self._digest(place, hidden) + hidden

    def open(self, data: bytes) -> bytes | None:
        """The message that was closed; None: this is not the next message of who has the key."""
        place = self._place()
        digest, hidden = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
        if not hmac.compare_digest(digest, self._digest(place, hidden)):
            return None
        return self._combined(place, hidden)

    def _place(self) -> bytes:
        found = _PLACE.pack(self._direction, self._number)
        self._number += 1
        return found

    def _digest(self, place: bytes, hidden: bytes) -> bytes:
        return hmac.digest(self._signs, place + hidden, "sha256")

    def _combined(self, place: bytes, data: bytes) -> bytes:
        # Of one length always, so that no two keys and places are the same bytes.
        stream = hashlib.shake_256(self._hides + place).digest(len(data))
        found = int.from_bytes(data, "big") ^ int.from_bytes(stream, "big")
        return found.to_bytes(len(data), "big")
