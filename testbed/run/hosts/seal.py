"""Sealing of what others on the hosts' network are not to read: nodes' states, which are models.

Bytes are combined with those that SHAKE-256 makes of a key and a number that no two messages share.
That nobody changed them, the line sees to.
"""

import hashlib


class Seal:
    """One direction of a line, at either end: it seals what is sent, and opens what is read."""

    def __init__(self, key: bytes) -> None:
        """``key``: a secret of this run, line and direction alone."""
        self._key = key
        self._number = 0

    def __call__(self, data: bytes) -> bytes:
        """The next message, sealed or opened; both ends count alike."""
        own = self._key + self._number.to_bytes(8, "big")
        self._number += 1
        stream = hashlib.shake_256(own).digest(len(data))
        found = int.from_bytes(data, "big") ^ int.from_bytes(stream, "big")
        return found.to_bytes(len(data), "big")
