"""Access links as data: ``netem_profiles/NAME.toml``, or a user's own file, to a LinkProfile.

One file is one profile; its name is the file's. A file looks like this::

    title = "4G"
    summary = "what it stands for, and what it does not"
    sources = ["who, what, version or date"]
    composite = false            # true: a blend of several sources
    [up]                         # client to server; [down] likewise
    rate_kbit = 6300             # absent: unlimited
    delay_ms = 27.5
    jitter_ms = 15
    loss_percent = 0.2
    queue_ms = 200
    [[schedule]]                 # optional, as testbed/schedule.py has it
    at_s = 30
    outage_s = 5
    [provenance]                 # for each field set: sourced, derived or assumed, and why
    up.rate_kbit = "sourced: the average upload of the first source"

[up] and [down] take every field of a Direction but ``outage``, and Mininet's names for some.

Rates count the frame: the IP packet and 14 bytes of Ethernet header. Sources mostly give what a
speed test saw, which is goodput; it stands here as the line's rate, 4.6 % more than the line
then carries.
"""

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from testbed import direction_table, schedule
from testbed.config_error import ConfigError, closest, refuse_unknown
from testbed.direction import Direction
from testbed.schedule import State

PROFILE_DIR = Path(__file__).resolve().parent.parent / "netem_profiles"

MAX_CLIENTS = 4096
"""Most clients of a mix: each is a process. A slip of the keyboard must not fill the memory."""


class LinkProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Both directions of an access link, and where each number comes from."""

    name: str
    title: str = ""
    summary: str = ""
    """What the link stands for, and what to beware of."""
    sources: tuple[str, ...] = ()
    """Citations with version or date. A file must have one; a profile made in code need not."""
    composite: bool = False
    """A blend: its numbers do not all come from one source."""
    up: Direction = msgspec.field(default_factory=Direction)
    """Client to server."""
    down: Direction = msgspec.field(default_factory=Direction)
    """Server to client."""
    schedule: tuple[State, ...] = ()
    """How the link changes once training has begun, in ascending order of ``at_s``."""
    provenance: dict[str, str] = {}
    """``"down.rate_kbit": "sourced: why"``; the first word is one of PROVENANCE."""

    @property
    def rtt_ms(self) -> float:
        """Round trip of an idle link: the delays of both directions."""
        return self.up.delay_ms + self.down.delay_ms


PROVENANCE = ("sourced", "derived", "assumed")
_DIRECTIONS = ("up", "down")
_KEYS = tuple(key for key in LinkProfile.__struct_fields__ if key != "name")


def names() -> list[str]:
    """Names of the profiles that ship, sorted."""
    return sorted(path.stem for path in PROFILE_DIR.glob("*.toml"))


def load(name_or_path: str | os.PathLike[str]) -> LinkProfile:
    """Read a shipped profile by its name, or a user's own file by its path.

    What holds a path separator or ends in ``.toml`` is a path.

    Raises:
        ConfigError: no such profile or file, or a mistake in it; the text names file, key, value
            and what would be right.
    """
    text = os.fspath(name_or_path)
    if is_path(text):
        path = Path(text)
    elif text in names():
        path = PROFILE_DIR / f"{text}.toml"
    else:
        raise ConfigError(
            f"profile {text!r}: there is none of that name{closest(text, names())}; "
            f"it is one of {', '.join(names())}, or the path of your own .toml file"
        )
    try:
        return _profile(path, tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"profile {text!r}: cannot read {path}: {error.strerror}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except ValueError as error:  # of tomllib, of UTF-8, or of a path that cannot be one
        raise ConfigError(f"{path}: is not TOML: {error}") from error


def is_path(text: str) -> bool:
    """Whether it names a file and not a profile that ships."""
    return os.sep in text or text.endswith(".toml")


def parse_mix(text: str, clients: int | None = None, default: int = 1) -> list[LinkProfile]:
    """Give each client its profile, in the order written.

    ``"4g"`` is one profile for all: ``clients`` of them, or ``default`` where that is None.
    ``"4g:12,wifi:5,3g:3"`` counts them out; ``clients``, where given, must be the sum.

    Raises:
        ConfigError: a profile that does not load, a count that is none, or a wrong sum.
    """
    if clients is not None and not 1 <= clients <= MAX_CLIENTS:
        raise ConfigError(f"clients = {clients}: must be 1 to {MAX_CLIENTS}")
    pieces = [piece.strip() for piece in text.split(",")]
    if len(pieces) == 1 and pieces[0] and ":" not in pieces[0]:
        return [load(pieces[0])] * (default if clients is None else clients)
    counted = [_counted(text, piece) for piece in pieces]
    total = sum(count for _, count in counted)
    sums = " + ".join(str(count) for _, count in counted)
    arithmetic = f"{sums} = {total}" if len(counted) > 1 else f"{total}"
    if total > MAX_CLIENTS:
        raise ConfigError(f"profile mix {text!r}: {arithmetic} clients; at most {MAX_CLIENTS}")
    if clients is not None and clients != total:
        raise ConfigError(
            f"profile mix {text!r}: the counts give {arithmetic} clients, but clients = {clients}; "
            f"make them agree, or leave clients out"
        )
    loaded = {name: load(name) for name, _ in counted}
    return [loaded[name] for name, count in counted for _ in range(count)]


def _counted(text: str, piece: str) -> tuple[str, int]:
    """``"4g:12"`` -> ("4g", 12)."""
    name, colon, count = (part.strip() for part in piece.rpartition(":"))
    if not piece:
        raise ConfigError(f"profile mix {text!r}: has an empty piece; write NAME:COUNT,NAME:COUNT")
    if not colon or not name:
        missing = "a count" if not colon else "a name"
        right = f"{count}:3" if not colon else f"4g{colon}{count}"
        raise ConfigError(f"profile mix {text!r}: {piece!r} lacks {missing}; write {right!r}, say")
    # len: int() refuses thousands of digits with a ValueError of its own
    if not re.fullmatch("[0-9]+", count) or len(count) > 18 or int(count) == 0:
        raise ConfigError(
            f"profile mix {text!r}: {piece!r}: the count {count!r} must be a whole number of "
            "clients, at least 1"
        )
    return name, int(count)


def absolute_mix(text: str) -> str:
    """The same mix with absolute paths, so that it means the same in any folder.

    A path that would then hold one of a mix's own marks stays as it is.
    """
    pieces = []
    for piece in text.split(","):
        name, colon, count = piece.rpartition(":") if ":" in piece else (piece, "", "")
        absolute = str(Path(name.strip()).resolve()) if is_path(name) else name
        pieces.append((name if set(",:") & set(absolute) else absolute) + colon + count)
    return ",".join(pieces)


def _profile(path: Path, document: dict[str, Any]) -> LinkProfile:
    """Check a file's contents, naming the key at fault."""
    refuse_unknown("", document, _KEYS)
    for key in ("title", "summary"):
        value = document.get(key)
        if not isinstance(value, str) or not value.strip():
            raise ConfigError(f"{key} = {value!r}: must be some text" + _missing(value))
    sources = document.get("sources")
    if not isinstance(sources, list) or not all(isinstance(s, str) and s.strip() for s in sources):
        raise ConfigError(f"sources = {sources!r}: must be a list of texts" + _missing(sources))
    if not sources:
        raise ConfigError("sources = []: must name one at least: who, what, version or date")
    composite = document.get("composite", False)
    if not isinstance(composite, bool):
        raise ConfigError(f"composite = {composite!r}: must be true or false")
    up, down = (_direction(path.parent, key, document.get(key)) for key in _DIRECTIONS)
    states: tuple[State, ...] = ()
    if "schedule" in document:
        states = schedule.states(schedule.read(document["schedule"], path.parent), up, down)
    return LinkProfile(
        name=path.stem,
        title=document["title"],
        summary=document["summary"],
        sources=tuple(sources),
        composite=composite,
        up=up,
        down=down,
        schedule=states,
        provenance=_provenance(document),
    )


def _direction(folder: Path, key: str, table: Any) -> Direction:
    if not isinstance(table, dict):
        raise ConfigError(f"{key} = {table!r}: must be a table [{key}]" + _missing(table))
    return direction_table.read(f"{key}.", table, folder)


def _provenance(document: dict[str, Any]) -> dict[str, str]:
    """Flatten the table, and hold it against the fields that the file sets."""
    table = document.get("provenance")
    if not isinstance(table, dict):
        raise ConfigError(f"provenance = {table!r}: must be a table" + _missing(table))
    flat: dict[str, Any] = {}
    for key, value in table.items():
        nested = isinstance(value, dict)
        flat |= {f"{key}.{field}": why for field, why in value.items()} if nested else {key: value}
    keys = [f"{way}.{key}" for way in _DIRECTIONS for key in direction_table.KEYS]
    refuse_unknown("provenance.", flat, [*keys, "schedule"])
    kinds = ", ".join(f'"{kind}: why"' for kind in PROVENANCE)
    found: dict[str, str] = {}
    for key, why in flat.items():
        if not isinstance(why, str) or not re.match(rf"({'|'.join(PROVENANCE)}): *\S", why):
            raise ConfigError(f"provenance.{key} = {why!r}: must be one of {kinds}")
        found[_canonical(key)] = why
    numbers = {f"{way}.{key}": value for way in _DIRECTIONS for key, value in document[way].items()}
    if "schedule" in document:
        numbers["schedule"] = document["schedule"]
    for key, value in numbers.items():
        if _canonical(key) not in found:
            raise ConfigError(
                f"{key} = {value!r}: has no provenance; add {key} under [provenance], "
                f"one of {kinds}"
            )
    return found


def _canonical(key: str) -> str:
    """ "up.bw" -> "up.rate_kbit" """
    way, _, name = key.rpartition(".")
    return f"{way}.{direction_table.MININET[name]}" if name in direction_table.MININET else key


def _missing(value: Any) -> str:
    return " (it is missing)" if value is None else ""
