"""Access links as data: ``netem_profiles/NAME.toml``, or a user's own file, to a LinkProfile.

One file is one profile. What ships looks like this; in a user's own file [up] and [down] suffice::

    title = "4G"
    summary = "what it stands for, and what it does not"
    sources = ["who, what, version or date"]
    composite = false            # true: a blend of several sources
    version = 2                  # 1 where absent; raised whenever a number below changes
    [up]                         # client to server; [down] likewise
    rate_kbit = 6300             # absent: unlimited
    delay_ms = 27.5
    jitter_ms = 15
    loss_percent = 0.2
    queue_ms = 200
    [[schedule]]                 # optional, as testbed/network/schedule.py has it
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
from pathlib import Path
from typing import Any

import msgspec

from testbed import outside
from testbed.config_error import ConfigError, closest, refuse_unknown
from testbed.naming import mark
from testbed.network import direction_table, link_words, mix, schedule, traces
from testbed.network.direction import WAYS, Direction
from testbed.network.mix import MAX_CLIENTS
from testbed.network.schedule import State

PROFILE_DIR = Path(__file__).resolve().parents[2] / "netem_profiles"


class LinkProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Both directions of an access link, and where each number comes from."""

    name: str
    title: str = ""
    summary: str = ""
    """What the link stands for, and what to beware of."""
    sources: tuple[str, ...] = ()
    """Citations with version or date; one at least of what ships."""
    composite: bool = False
    """A blend: its numbers do not all come from one source."""
    version: str = ""
    """The file's number, where it has one, and digits that tell its links from all others:
    "2 (3f2a1c)". Empty of what comes from no profile."""
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


MARK_DIGITS = 6
PROVENANCE = ("sourced", "derived", "assumed")
_DEFAULT = Direction()
_KEYS = tuple(key for key in LinkProfile.__struct_fields__ if key != "name")


def names() -> list[str]:
    """Names of the profiles that ship, sorted."""
    return sorted(path.stem for path in PROFILE_DIR.glob("*.toml"))


def load(name_or_path: str | os.PathLike[str]) -> LinkProfile:
    """Read a shipped profile by its name, a user's own file by its path, or a link in words.

    What holds a path separator or ends in ``.toml`` is a path; the words are ``link_words``'. A
    file of a user's own has its name and a mark of what its link is, so that two of one name are
    told apart, wherever they are; a link in words is called by them.

    Raises:
        ConfigError: no such profile or file, or a mistake in it; the text names file, key, value
            and what would be right.
    """
    text = os.fspath(name_or_path)
    if mix.is_path(text):
        return _read(outside.expanded(text))
    if text in names():
        return _read(PROFILE_DIR / f"{text}.toml", shipped=True)
    if re.search(r"[\s=]", text.strip()):
        up, down = link_words.read(text)
        said = LinkProfile(name=link_words.say(up, down), title="said in words", up=up, down=down)
        return msgspec.structs.replace(said, version=_mark(said))
    raise ConfigError(
        f"profile {text!r}: there is none of that name{closest(text, names()) or '.'} "
        "It is one of "
        f"{', '.join(names())}, the path of your own .toml file, or a link in words, such as "
        f"{link_words.EXAMPLE!r}"
    )


def parse_mix(text: str, clients: int | None = None, default: int = 1) -> list[LinkProfile]:
    """Give each client its profile, in the order written.

    ``"4g"`` is one profile for all: ``clients`` of them, or ``default`` where that is None.
    ``"4g:12,wifi:5,3g:3"`` counts them out; ``clients``, where given, must be the sum.

    Raises:
        ConfigError: a profile that does not load, a count that is none, or a wrong sum.
    """
    if clients is not None and not (isinstance(clients, int) and 1 <= clients <= MAX_CLIENTS):
        raise ConfigError(f"clients = {clients!r}: must be 1 to {MAX_CLIENTS}, a whole number")
    pieces = mix.parse(text)
    if len(pieces) == 1 and pieces[0].clients is None:
        return [load(pieces[0].name)] * (default if clients is None else clients)
    counted: list[tuple[str, int]] = []
    for name, count in pieces:
        if count is None:
            raise ConfigError(
                f"profile mix {text!r}: {name!r} lacks a count; write {name + ':3'!r}, say, and a "
                "name that holds commas in double quotes"
            )
        counted.append((name, count))
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


def absolute_mix(text: str) -> str:
    """The same mix with absolute paths, so that it means the same in any folder."""
    return mix.written([mix.Piece(absolute(name), count) for name, count in mix.parse(text)])


def absolute(name: str) -> str:
    """A profile's name, or its path in whatever folder that is asked."""
    return outside.absolute(name) if mix.is_path(name) else name


def files(text: str) -> dict[str, str]:
    """The name and path of each profile of a mix that is a file."""
    found = {}
    for name in dict.fromkeys(piece.name for piece in mix.parse(text)):
        if mix.is_path(name):
            found[outside.absolute(name)] = name
        elif name in names():
            found[f"profile {name}"] = str(PROFILE_DIR / f"{name}.toml")
    return found


def _read(path: Path, *, shipped: bool = False) -> LinkProfile:
    document = outside.toml(path, "profile")
    try:
        found = _profile(path, document, shipped=shipped)
        number = _version(document, shipped=shipped)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    own = _mark(found)
    name = path.stem if shipped else f"{path.stem}@{own}"
    version = own if number is None else f"{number} ({own})"
    return msgspec.structs.replace(found, name=name, version=version)


def _version(document: dict[str, Any], *, shipped: bool) -> int | None:
    number = document.get("version", 1 if shipped else None)
    if number is not None and (type(number) is not int or number < 1):
        raise ConfigError(f"version = {number!r}: must be a whole number from 1")
    return number


def _mark(profile: LinkProfile) -> str:
    """Six digits of what its links are, traces included."""
    states = [State(0.0, profile.up, profile.down), *profile.schedule]
    links = [direction for state in states for direction in (state.up, state.down)]
    marks = {each.trace: traces.load(each.trace).mark for each in links if each.trace}
    meant = []
    for each in links:
        # What is not at its default, and a trace by what it says, not by where it is.
        said = {field: getattr(each, field) for field in each.__struct_fields__}
        said = {field: own for field, own in said.items() if own != getattr(_DEFAULT, field)}
        meant.append(said | ({"trace": marks[each.trace]} if each.trace else {}))
    return mark([[state.at_s for state in states], meant], MARK_DIGITS)


def _profile(path: Path, document: dict[str, Any], *, shipped: bool) -> LinkProfile:
    """Check a file's contents, naming the key at fault; what ships must say where it is from."""
    refuse_unknown("", document, _KEYS)
    for key in ("title", "summary"):
        value = document.get(key, None if shipped else "")
        if not isinstance(value, str) or not (value.strip() or key not in document):
            raise ConfigError(f"{key} = {value!r}: must be some text" + _missing(value))
    sources = document.get("sources", None if shipped else [])
    if not isinstance(sources, list) or not all(isinstance(s, str) and s.strip() for s in sources):
        raise ConfigError(f"sources = {sources!r}: must be a list of texts" + _missing(sources))
    if shipped and not sources:
        raise ConfigError("sources = []: must name one at least: who, what, version or date")
    composite = document.get("composite", False)
    if not isinstance(composite, bool):
        raise ConfigError(f"composite = {composite!r}: must be true or false")
    up, down = (_direction(path.parent, key, document.get(key)) for key in WAYS)
    states: tuple[State, ...] = ()
    if "schedule" in document:
        states = schedule.states(schedule.read(document["schedule"], path.parent), up, down)
    return LinkProfile(
        name=path.stem,
        title=document.get("title", ""),
        summary=document.get("summary", ""),
        sources=tuple(sources),
        composite=composite,
        up=up,
        down=down,
        schedule=states,
        provenance=_provenance(document, shipped=shipped),
    )


def _direction(folder: Path, key: str, table: Any) -> Direction:
    if not isinstance(table, dict):
        raise ConfigError(f"{key} = {table!r}: must be a table [{key}]" + _missing(table))
    return direction_table.read(f"{key}.", table, folder)


def _provenance(document: dict[str, Any], *, shipped: bool) -> dict[str, str]:
    """Flatten the table, and hold it against the fields that the file sets where it ships."""
    table = document.get("provenance", None if shipped else {})
    if not isinstance(table, dict):
        raise ConfigError(f"provenance = {table!r}: must be a table" + _missing(table))
    flat: dict[str, Any] = {}
    for key, value in table.items():
        nested = isinstance(value, dict)
        flat |= {f"{key}.{field}": why for field, why in value.items()} if nested else {key: value}
    keys = [f"{way}.{key}" for way in WAYS for key in direction_table.KEYS]
    refuse_unknown("provenance.", flat, [*keys, "schedule"])
    kinds = ", ".join(f'"{kind}: why"' for kind in PROVENANCE)
    found: dict[str, str] = {}
    for key, why in flat.items():
        if not isinstance(why, str) or not re.match(rf"({'|'.join(PROVENANCE)}): *\S", why):
            raise ConfigError(f"provenance.{key} = {why!r}: must be one of {kinds}")
        found[_canonical(key)] = why
    numbers = {f"{way}.{key}": value for way in WAYS for key, value in document[way].items()}
    if "schedule" in document:
        numbers["schedule"] = document["schedule"]
    for key, value in numbers.items():
        if shipped and _canonical(key) not in found:
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
