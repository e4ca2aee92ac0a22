"""Lists of profiles in one text: what a comma parts, what a colon counts, and what is quoted.

``4g:12,own.toml:5,rate 10mbit delay 20ms:3`` is a mix; without counts it is a list. A comma or a
colon may stand in a path or in a link's words: commas part neither the name of a file that is
there nor the words of one link, and only a whole number after the last colon is a count. What is
in double quotes is one name in any case, with ``""`` for a quote within.
"""

import os
import re
from typing import NamedTuple

from testbed import outside
from testbed.config_error import ConfigError, excerpt
from testbed.network import link_words
from testbed.units import whole

_PIECE = re.compile(r'\s*"(?:[^"]|"")*"[^,]*|[^,]*')
_QUOTED = re.compile(r'"((?:[^"]|"")*)"(.*)', re.DOTALL)
MAX_CLIENTS = 4096
"""Most clients of a mix: each is a process. A slip of the keyboard must not fill the memory."""
_MOST_COMMAS = 8
"""In a file's name."""


class Piece(NamedTuple):
    """One of a mix."""

    name: str
    """A profile's name, a path, or a link's words."""
    clients: int | None


def split(text: str) -> list[str]:
    """The pieces of a list as they stand there, without the spaces around them."""
    raw = []
    position = 0
    while position <= len(text):
        found = _PIECE.match(text, position)
        assert found is not None
        raw.append(found[0])
        position = found.end() + 1
    pieces, place = [], 0
    while place < len(raw):
        end = _extent(raw, place)
        pieces.append(",".join(raw[place:end]).strip())
        place = end
    return pieces


def listed(text: str) -> list[str]:
    """The pieces of a list without their quotes; empty ones are left out."""
    found = []
    for piece in split(text):
        quoted = _QUOTED.fullmatch(piece)
        found.append(_unquoted(quoted[1]) if quoted and not quoted[2].strip() else piece)
    return [piece for piece in found if piece]


def _extent(raw: list[str], place: int) -> int:
    """Up to which piece that at ``place`` goes."""
    head = raw[place].strip()
    if head.startswith('"'):
        return place + 1
    end = place + 1
    if link_words.is_words(head):
        while end < len(raw) and not _counted(raw[end - 1]) and link_words.goes_on(raw[end]):
            end += 1
        return end
    if not is_path(_name(head)) or not _is_file(_name(head)):
        for end in range(min(len(raw), place + 1 + _MOST_COMMAS), place + 1, -1):
            joined = ",".join(raw[place:end]).strip()
            if _is_file(joined) or _is_file(_name(joined)):
                return end
    return place + 1


def is_path(text: str) -> bool:
    """Whether it names a file, and neither a profile that ships nor a link in words."""
    return text.endswith(".toml") or (os.sep in text and not link_words.is_words(text))


def _is_file(name: str) -> bool:
    try:
        return is_path(name) and os.path.isfile(outside.expanded(name))
    except ConfigError:
        return False


def _counted(piece: str) -> bool:
    return re.search(r":\s*[0-9]+\s*$", piece) is not None


def _name(piece: str) -> str:
    return piece.rpartition(":")[0].strip() if _counted(piece) else piece


def parse(text: str) -> list[Piece]:
    """The pieces of a mix; what has no count is there with None.

    Raises:
        ConfigError: a piece that is empty, or whose count is none.
    """
    return [_parsed(text, piece) for piece in split(text)]


def _parsed(text: str, piece: str) -> Piece:
    where = f"profile mix {text!r}: "
    if not piece:
        raise ConfigError(f"{where}has an empty piece; write NAME:COUNT,NAME:COUNT")
    if piece.startswith('"'):
        quoted = _QUOTED.fullmatch(piece)
        if quoted is None:
            raise ConfigError(f"{where}{piece!r} lacks its closing quote")
        name, rest = _unquoted(quoted[1]), quoted[2].strip()
        if not name:
            raise ConfigError(f"{where}{piece!r} lacks a name")
        if rest and not rest.startswith(":"):
            raise ConfigError(f"{where}{piece!r}: after the quote only :COUNT may stand")
        return Piece(name, _count(where, piece, rest[1:].strip()) if rest else None)
    if ":" not in piece or _is_file(piece) or (is_path(piece) and not _counted(piece)):
        return Piece(piece, None)
    name, _, count = (part.strip() for part in piece.rpartition(":"))
    if not name:
        raise ConfigError(f"{where}{piece!r} lacks a name; write '4g:{count}', say")
    return Piece(name, _count(where, piece, count))


def _count(where: str, piece: str, count: str) -> int:
    found = whole(count)
    if not found:
        raise ConfigError(
            f"{where}{excerpt(repr(piece))}: the count {excerpt(repr(count))} must be a whole "
            f"number of clients, at least 1 and at most {MAX_CLIENTS}"
        )
    return found


def written(pieces: list[Piece]) -> str:
    """The mix as text, which ``parse`` takes apart in the same way wherever it is."""
    found = []
    for name, count in pieces:
        marked = set(',:"') & set(name) or name != name.strip()
        text = '"{}"'.format(name.replace('"', '""')) if marked else name
        found.append(text if count is None else f"{text}:{count}")
    return ",".join(found)


def _unquoted(text: str) -> str:
    return text.replace('""', '"')
