"""Links said in a line, in the words of tc and of Mininet: no file is needed to try one.

::

    down 20mbit up 5mbit delay 20ms loss 0.1%
    rate 10mbit delay 20ms 5ms limit 100            # tc: delay and jitter, packets
    bw=10,delay=5ms,loss=1,max_queue_size=100       # Mininet: Mbit/s, percent, packets
    rate 10mbit up delay 30ms down delay 10ms

A word holds for both directions, wherever it stands; right after ``up`` or ``down`` for that one
alone. ``up`` and ``down`` before a number are rates. Delays are one way. Rates have tc's units:
bit, kbit, mbit, gbit, tbit of 1000, kibit and so on of 1024.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec

from testbed.config_error import ConfigError, closest
from testbed.network import direction_table
from testbed.network.direction import WAYS, Direction, GilbertElliott

_PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_BINARY = {"ki": 2.0**10, "mi": 2.0**20, "gi": 2.0**30, "ti": 2.0**40}
_KBIT_PER = {f"{name}bit": bits / 1000 for name, bits in (_PREFIXES | _BINARY).items()}
_BYTES = re.compile("([kmgt]?)i?bps")
"""tc means bytes a second by these; most who write them mean bits."""
_MS_PER = {
    **dict.fromkeys(("us", "usec", "usecs"), 0.001),
    **dict.fromkeys(("ms", "msec", "msecs"), 1.0),
    **dict.fromkeys(("s", "sec", "secs"), 1000.0),
}
_SHOWN = (("gbit", 1e6), ("mbit", 1e3), ("kbit", 1.0))
_NUMBER = re.compile(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?)(.*)", re.DOTALL)
_GEMODEL = ("good_to_bad", "bad_to_good", "bad_loss", "good_loss")
EXAMPLE = "down 20mbit up 5mbit delay 20ms loss 0.1%"


class _Kind(NamedTuple):
    """The kind of value that stands after a word."""

    right: str
    read: Callable[[str, str], float | None]
    """From a number and what follows it; None where that is no such value."""


def _rate(number: str, unit: str) -> float | None:
    factor = _KBIT_PER.get(unit.removesuffix("/s"))
    return None if factor is None else float(number) * factor


def _mininet_rate(number: str, unit: str) -> float | None:
    return 1000 * float(number) if not unit else _rate(number, unit)


def _time(number: str, unit: str) -> float | None:
    return float(number) * _MS_PER[unit] if unit in _MS_PER else None


def _percent(number: str, unit: str) -> float | None:
    return float(number) if unit in ("", "%") else None


def _count(number: str, unit: str) -> int | None:
    plain = number.isascii() and number.isdecimal() and len(number) < 10
    return int(number) if plain and unit in ("", "p", "packets") else None


def _plain(number: str, unit: str) -> float | None:
    return None if unit else float(number)


_RATE = _Kind("a rate with its unit, such as 10mbit", _rate)
_TIME = _Kind("a time with its unit, such as 20ms", _time)
_PERCENT = _Kind("a share in percent, such as 0.1%", _percent)
_PACKETS = _Kind("a whole number of packets, such as 100", _count)
_WORDS = {
    "rate": ("rate_kbit", _RATE),
    "bw": ("rate_kbit", _Kind("a number of Mbit/s, such as 10", _mininet_rate)),
    "delay": ("delay_ms", _TIME),
    "jitter": ("jitter_ms", _TIME),
    "loss": ("loss_percent", _PERCENT),
    "duplicate": ("duplicate_percent", _PERCENT),
    "reorder": ("reorder_percent", _PERCENT),
    "corrupt": ("corrupt_percent", _PERCENT),
    "queue": ("queue_ms", _TIME),
    "limit": ("max_packets", _PACKETS),
    "max_queue_size": ("max_packets", _PACKETS),
    **{
        field: (field, _PACKETS if field == "max_packets" else _Kind("a number", _plain))
        for field in direction_table.FIELDS
        if field not in ("trace", "gilbert_elliott")
    },
}
_SAID = ("delay", "jitter", "loss", "duplicate", "reorder", "corrupt", "queue", "limit")
"""Words of a canonical line, after the rates."""
_DEFAULTS = Direction()


def is_words(text: str) -> bool:
    """Whether it begins as a link that is said in words, and not as a name or a path."""
    words = _tokens(text)
    if len(words) < 2 or text.rstrip().endswith(".toml"):
        return False
    return words[0] in _WORDS or words[0] in WAYS


def goes_on(text: str) -> bool:
    """Whether it can stand after a comma within a link's words."""
    words = _tokens(text)
    return bool(words) and (words[0] in _WORDS or words[0] in WAYS)


def read(text: str) -> tuple[Direction, Direction]:
    """Both directions, up and down.

    Raises:
        ConfigError: naming the word, its value and what would be right.
    """
    fields: dict[str, dict[str, Any]] = {way: {} for way in WAYS}
    words = _tokens(text)
    refused = f"link {text!r}: "
    if not words:
        raise ConfigError(f"{refused}says nothing; say it as {EXAMPLE!r}")
    while words:
        ways: tuple[str, ...] = WAYS
        word = words.pop(0)
        if word in WAYS:
            ways = (word,)
            if words and words[0] in _WORDS:
                word = words.pop(0)
        if word not in _WORDS and word not in WAYS:
            raise ConfigError(
                f"{refused}{word!r} is no word of a link{closest(word, [*WAYS, *_WORDS]) or '.'} "
                f"Say it as {EXAMPLE!r}, with {', '.join((*WAYS, 'rate', 'bw', *_SAID))}"
            )
        for field, value in _values(refused, word, words):
            for way in ways:
                if field in fields[way]:
                    raise ConfigError(
                        f"{refused}{word} is said twice for {way}; a word alone is for both "
                        f"directions, as 'down {word}' and 'up {word}' are for one"
                    )
                fields[way][field] = value
    found = []
    for way in WAYS:
        if "max_packets" in fields[way] and "queue_ms" in fields[way]:
            raise ConfigError(f"{refused}limit stands instead of queue; leave one out")
        try:
            found.append(Direction(**fields[way]))
        except ConfigError as error:
            raise ConfigError(f"{refused}{way}: {error}") from None
    return found[0], found[1]


def _tokens(text: str) -> list[str]:
    return re.sub("[=,;]", " ", text).lower().split()


def _values(refused: str, word: str, words: list[str]) -> Iterator[tuple[str, Any]]:
    """The fields that a word sets, by what is taken from those after it."""
    if word == "loss" and words[:1] == ["random"]:
        del words[0]
    if word == "loss" and words[:1] == ["gemodel"]:
        del words[0]
        yield "gilbert_elliott", _gilbert_elliott(refused, words)
        return
    field, kind = _WORDS["rate" if word in WAYS else word]
    yield field, _value(refused, word, kind, words)
    if word == "delay" and words and _number(words[0]):
        yield "jitter_ms", _value(refused, "delay's jitter", _TIME, words)
    if words and _number(words[0]):
        raise ConfigError(
            f"{refused}{words[0]!r} after {word}: is one number too many; correlations are none "
            "of what a link has here"
        )


def _number(text: str) -> re.Match[str] | None:
    return _NUMBER.fullmatch(text)


def _value(refused: str, word: str, kind: _Kind, words: list[str]) -> float:
    said = words.pop(0) if words else ""
    found = _number(said)
    if found is None:
        raise ConfigError(f"{refused}{word} {said!r}: must be {kind.right}")
    number, unit = found.groups()
    if not unit and words and words[0] not in _WORDS and words[0] not in WAYS:
        together = kind.read(number, words[0])
        if together is not None:  # "20 ms"
            del words[0]
            return _rounded(together)
    value = kind.read(number, unit)
    if value is None:
        doubt = _BYTES.fullmatch(unit)
        right = kind.right
        if doubt and kind.read("1", "kbit") is not None:
            prefix, eightfold = doubt[1], 8 * float(number)
            right = f"{number}{prefix}bit; tc means bytes by {unit}, so {eightfold:g}{prefix}bit"
        raise ConfigError(f"{refused}{word} {said!r}: must be {right}")
    return _rounded(value)


def _rounded(value: float) -> float:
    """Without what a unit's factor leaves in the last places."""
    return value if isinstance(value, int) else float(f"{value:.12g}")


def _gilbert_elliott(refused: str, words: list[str]) -> GilbertElliott:
    """tc's ``gemodel p r 1-h 1-k``, the last two as there where they are left out."""
    shares: list[float] = []
    while words and _number(words[0]) and len(shares) < len(_GEMODEL):
        shares.append(_value(refused, "loss gemodel", _PERCENT, words))
    if len(shares) < 2:
        raise ConfigError(
            f"{refused}loss gemodel: must be its chances p and r in percent, such as 1% 25%"
        )
    fields = {f"{name}_percent": share for name, share in zip(_GEMODEL, shares, strict=False)}
    try:
        return GilbertElliott(**fields)
    except ConfigError as error:
        raise ConfigError(f"{refused}loss gemodel: {error}") from None


def say(up: Direction, down: Direction) -> str:
    """The same link in its one canonical line, which ``read`` takes."""
    said = []
    if up.rate_kbit == down.rate_kbit:
        said += [f"rate {_rate_text(up.rate_kbit)}"] if up.rate_kbit else []
    else:
        ways = (("down", down), ("up", up))
        said += [f"{way} {_rate_text(own.rate_kbit)}" for way, own in ways if own.rate_kbit]
    for word in _SAID:
        texts = [_text(word, direction) for direction in (down, up)]
        if texts[0] == texts[1]:
            said += [f"{word} {texts[0]}"] if texts[0] else []
        else:
            pairs = zip(("down", "up"), texts, strict=True)
            said += [f"{way} {word} {text}" for way, text in pairs if text]
    return " ".join(said) or "delay 0ms"


def _rate_text(kbit: float | None) -> str:
    assert kbit is not None
    unit, factor = next((each for each in _SHOWN if kbit >= each[1]), _SHOWN[-1])
    return f"{kbit / factor:.12g}{unit}"


def _text(word: str, direction: Direction) -> str:
    """The value of a word, or nothing where it is the default."""
    field, kind = _WORDS[word]
    if word == "loss" and direction.gilbert_elliott is not None:
        shares = msgspec.structs.astuple(direction.gilbert_elliott)
        return "gemodel " + " ".join(f"{share:.12g}%" for share in shares)
    value = getattr(direction, field)
    if value == getattr(_DEFAULTS, field):
        return ""
    return f"{value:.12g}{ {_TIME: 'ms', _PERCENT: '%'}.get(kind, '') }"
