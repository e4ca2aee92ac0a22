"""Short names of things whose own names may be long or alike: for folders, and for tables."""

import hashlib
from typing import Any

import msgspec

SLUG_BYTES = 100
"""Of a folder's name, which file systems mostly bound at 255 bytes."""
_KEPT = "-.=+@"


def slug(text: str, most_bytes: int = SLUG_BYTES) -> str:
    """``text`` as part of a file's name: readable, but no longer told from every other."""
    kept = "".join(c if c.isalnum() or c in _KEPT else "_" for c in text)
    whole = kept.encode(errors="ignore")
    return kept if len(whole) <= most_bytes else whole[:most_bytes].decode(errors="ignore")


def mark(value: Any, digits: int) -> str:
    """Hexadecimal digits that tell ``value``, of plain JSON types, from others."""
    written = msgspec.json.encode(value, order="deterministic")
    return hashlib.sha256(written).hexdigest()[:digits]
