"""Short names of things whose own names may be long or alike: for folders, and for tables."""

import hashlib
from collections.abc import Iterable
from pathlib import PurePath
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


def short(texts: Iterable[str]) -> dict[str, str]:
    """Each text as a table has it: of an absolute path as many last parts as no other ends with."""
    known = set(texts)
    ends = {text: _ends(text) for text in known}
    return {
        text: next((end for end in ends[text] if _is_own(end, text, ends)), text) for text in known
    }


def _ends(text: str) -> list[str]:
    """ "vit", "models/vit", "/models/vit" """
    path = PurePath(text)
    if not path.is_absolute():
        return [text]
    return [str(PurePath(*path.parts[-count:])) for count in range(1, len(path.parts) + 1)]


def _is_own(end: str, text: str, ends: dict[str, list[str]]) -> bool:
    return not any(end in others for other, others in ends.items() if other != text)
