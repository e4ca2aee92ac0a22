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
    [provenance]                 # for each field set: sourced, derived or assumed, and why
    up.rate_kbit = "sourced: the average upload of the first source"

Rates count the frame: the IP packet and 14 bytes of Ethernet header. Sources mostly give what a
speed test saw, which is goodput; it stands here as the line's rate, 4.6 % more than the line
then carries.
"""

import math
import os
import re
import tomllib
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import msgspec

from testbed.config_error import ConfigError

PROFILE_DIR = Path(__file__).resolve().parent.parent / "netem_profiles"

MTU_BYTES = 1500
"""Greatest IP packet."""
FRAME_OVERHEAD_BYTES = 14
"""Ethernet header, which the rate counts; preamble, checksum and gap are not counted."""
FRAME_BYTES = MTU_BYTES + FRAME_OVERHEAD_BYTES
SEGMENT_BYTES = 1448
"""TCP payload of a full packet: 1500 less 20 (IP), 20 (TCP) and 12 (timestamps)."""

MIN_LIMIT_PACKETS = 4
"""With fewer in flight TCP never sees three duplicate ACKs, and each loss waits for a timeout."""
MAX_CLIENTS = 4096
"""Most clients of a mix: each is a process. A slip of the keyboard must not fill the memory."""


class Direction(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One direction of an access link.

    Raises:
        ConfigError: a value that no link can have; the text names the field and what is right.
    """

    rate_kbit: float | None = None
    """Line rate in kbit/s (1000 bit/s), above 0; None is unlimited."""
    delay_ms: float = 0.0
    """One-way delay, at least 0."""
    jitter_ms: float = 0.0
    """Each packet's delay is uniform in delay ± jitter, as netem's default; at most the delay."""
    loss_percent: float = 0.0
    """Chance that a packet is lost, independent of the others: 0 <= loss < 100."""
    queue_ms: float = 200.0
    """What the buffer holds, as the time the line needs to send it; above 0."""

    def __post_init__(self) -> None:
        for field in self.__struct_fields__:
            problem = _problem(field, getattr(self, field))
            if problem:
                raise ConfigError(f"{field} = {getattr(self, field)!r}: {problem}")
        if self.jitter_ms > self.delay_ms:
            raise ConfigError(
                f"jitter_ms = {self.jitter_ms!r}: must be at most delay_ms = {self.delay_ms!r}, "
                "for no packet arrives before it is sent"
            )

    @property
    def limit_packets(self) -> int | None:
        """Packets that delay line and queue hold together (netem's ``limit``).

        ``ceil(rate*(delay+jitter)/frame) + ceil(rate*queue/frame)`` in full frames, and
        MIN_LIMIT_PACKETS at least; None where the rate is unlimited, for then nothing queues.
        """
        if self.rate_kbit is None:
            return None
        flying = _frames(self.rate_kbit, self.delay_ms + self.jitter_ms)
        return max(flying + _frames(self.rate_kbit, self.queue_ms), MIN_LIMIT_PACKETS)

    @property
    def ideal_goodput_kbit(self) -> float | None:
        """Most that TCP can deliver, in kbit/s of payload; None where the rate is unlimited."""
        if self.rate_kbit is None:
            return None
        return self.rate_kbit * SEGMENT_BYTES / FRAME_BYTES


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
    provenance: dict[str, str] = {}
    """``"down.rate_kbit": "sourced: why"``; the first word is one of PROVENANCE."""

    @property
    def rtt_ms(self) -> float:
        """Round trip of an idle link: the delays of both directions."""
        return self.up.delay_ms + self.down.delay_ms


PROVENANCE = ("sourced", "derived", "assumed")
_DIRECTIONS = ("up", "down")
_FIELDS = Direction.__struct_fields__
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
    if os.sep in text or text.endswith(".toml"):
        path = Path(text)
    elif text in names():
        path = PROFILE_DIR / f"{text}.toml"
    else:
        raise ConfigError(
            f"profile {text!r}: there is none of that name{_closest(text, names())}; "
            f"it is one of {', '.join(names())}, or the path of your own .toml file"
        )
    try:
        return _profile(path.stem, tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"profile {text!r}: cannot read {path}: {error.strerror}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except ValueError as error:  # of tomllib, of UTF-8, or of a path that cannot be one
        raise ConfigError(f"{path}: is not TOML: {error}") from error


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


def _frames(rate_kbit: float, time_ms: float) -> int:
    """Full frames that the line sends in that time, rounded up."""
    # round: 0.1 * 3 must not make one frame more
    return math.ceil(round(rate_kbit * time_ms / (8 * FRAME_BYTES), 9))


def _problem(field: str, value: Any) -> str | None:
    """What is wrong with a Direction's field, or None; kbit/s times ms is bits."""
    if field == "rate_kbit" and value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return "must be a finite number"
    if field == "rate_kbit" and value <= 0:
        return "must be above 0 kbit/s; leave it out for an unlimited line"
    if field == "queue_ms" and value <= 0:
        return "must be above 0 ms: 200 is usual"
    if field == "loss_percent" and not 0 <= value < 100:
        return "must be at least 0 and below 100 %"
    if value < 0:
        return "must be at least 0 ms"
    return None


def _profile(name: str, document: dict[str, Any]) -> LinkProfile:
    """Check a file's contents, naming the key at fault."""
    _known("", document, _KEYS)
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
    up, down = (_direction(key, document.get(key)) for key in _DIRECTIONS)
    return LinkProfile(
        name=name,
        title=document["title"],
        summary=document["summary"],
        sources=tuple(sources),
        composite=composite,
        up=up,
        down=down,
        provenance=_provenance(document),
    )


def _direction(key: str, table: Any) -> Direction:
    if not isinstance(table, dict):
        raise ConfigError(f"{key} = {table!r}: must be a table [{key}]" + _missing(table))
    _known(f"{key}.", table, _FIELDS)
    try:
        return Direction(**table)
    except ConfigError as error:
        raise ConfigError(f"{key}.{error}") from None


def _provenance(document: dict[str, Any]) -> dict[str, str]:
    """Flatten the table, and hold it against the fields that the file sets."""
    table = document.get("provenance")
    if not isinstance(table, dict):
        raise ConfigError(f"provenance = {table!r}: must be a table" + _missing(table))
    flat: dict[str, Any] = {}
    for key, value in table.items():
        nested = isinstance(value, dict)
        flat |= {f"{key}.{field}": why for field, why in value.items()} if nested else {key: value}
    known = [f"{key}.{field}" for key in _DIRECTIONS for field in _FIELDS]
    _known("provenance.", flat, known)
    kinds = ", ".join(f'"{kind}: why"' for kind in PROVENANCE)
    for key, why in flat.items():
        if not isinstance(why, str) or not re.match(rf"({'|'.join(PROVENANCE)}): *\S", why):
            raise ConfigError(f"provenance.{key} = {why!r}: must be one of {kinds}")
    for direction in _DIRECTIONS:
        for field, value in document[direction].items():
            if f"{direction}.{field}" not in flat:
                raise ConfigError(
                    f"{direction}.{field} = {value!r}: has no provenance; "
                    f"add {direction}.{field} under [provenance], one of {kinds}"
                )
    return flat


def _known(prefix: str, table: dict[str, Any], known: Iterable[str]) -> None:
    """Refuse the first key that is not one of ``known``."""
    known = list(known)
    for key, value in table.items():
        if key not in known:
            raise ConfigError(
                f"{prefix}{key} = {value!r}: is no key here{_closest(key, known)}; "
                f"it is one of {', '.join(known)}"
            )


def _closest(wrong: str, known: list[str]) -> str:
    """``: did you mean ...?`` or nothing; a key without its unit finds the one with it."""
    low = wrong.lower()
    stem = low.split("_")[0]
    inside = [name for name in known if stem and stem in name]
    close = get_close_matches(low, known, n=3, cutoff=0.6)
    best = list(dict.fromkeys([*close, *inside]))[:3]
    return f": did you mean {' or '.join(best)}?" if best else ""


def _missing(value: Any) -> str:
    return " (it is missing)" if value is None else ""
