"""One direction as a table of a TOML file: a Direction's fields, or Mininet's names for them."""

import re
from pathlib import Path
from typing import Any

import msgspec

from testbed import outside
from testbed.config_error import ConfigError, refuse_unknown
from testbed.network.direction import Direction, GilbertElliott, is_number

_OF_RUNS = ("outage", "trace_stretch")
"""What a schedule or a dilation makes of a direction."""
FIELDS = tuple(field for field in Direction.__struct_fields__ if field not in _OF_RUNS)
MININET = {
    "bw": "rate_kbit",
    "delay": "delay_ms",
    "jitter": "jitter_ms",
    "loss": "loss_percent",
    "max_queue_size": "max_packets",
}
"""Names of Mininet and Mininet-WiFi: ``bw`` in Mbit/s, ``delay`` and ``jitter`` as "5ms", ``loss``
in %, ``max_queue_size`` in packets."""
KEYS = (*FIELDS, *MININET)

INSTEAD = {
    "rate_kbit": "trace",
    "loss_percent": "gilbert_elliott",
    "queue_ms": "max_packets",
}
"""Fields, and what may stand instead of each."""
_DEFAULTS = Direction()
_DURATION = re.compile(r"(-?[0-9]+(?:\.[0-9]+)?) *(us|ms|s)")
_MS_PER = {"us": 0.001, "ms": 1.0, "s": 1000.0}


def read(prefix: str, table: Any, folder: Path, base: Direction = _DEFAULTS) -> Direction:
    """``base`` with what ``table`` says; a trace's path is relative to ``folder``.

    Raises:
        ConfigError: naming ``prefix`` and key, the value and what would be right.
    """
    if isinstance(table, dict) and "outage" in table:
        raise ConfigError(
            f"{prefix}outage = {table['outage']!r}: does not belong here; "
            "write a [[schedule]] entry with at_s and outage_s"
        )
    refuse_unknown(prefix, table, KEYS)
    written: dict[str, str] = {}
    fields: dict[str, Any] = {}
    for key, value in table.items():
        field = MININET.get(key, key)
        if field in written:
            raise ConfigError(
                f"{prefix}{key} = {value!r}: says the same as {written[field]}; leave one out"
            )
        written[field] = key
        fields[field] = _value(prefix, key, value, folder)
    for pair in INSTEAD.items():
        said = [field for field in pair if field in fields]
        if pair == ("queue_ms", "max_packets") and len(said) == 2:
            key = written["max_packets"]
            raise ConfigError(
                f"{prefix}{key} = {table[key]!r}: stands instead of queue_ms; leave one out"
            )
        if len(said) == 1:
            other = pair[1 - pair.index(said[0])]
            fields[other] = getattr(_DEFAULTS, other)
    try:
        return msgspec.structs.replace(base, **fields)
    except ConfigError as error:
        field = str(error).partition(" = ")[0]
        key = written.get(field, field)
        if key != field:
            raise ConfigError(f"{prefix}{key} = {table[key]!r}: is {error}") from None
        own = field in FIELDS and field not in written
        hint = "; it is the profile's own, say it here too" if own else ""
        raise ConfigError(f"{prefix}{error}{hint}") from None


def _value(prefix: str, key: str, value: Any, folder: Path) -> Any:
    """A key's value in the unit of its Direction's field; what is not of its kind stays."""
    if key == "bw":
        if not is_number(value):
            raise ConfigError(f"{prefix}bw = {value!r}: must be a number, in Mbit/s")
        return round(1000 * value, 6)
    if key in ("delay", "jitter"):
        return _milliseconds(f"{prefix}{key}", value)
    if key == "gilbert_elliott":
        return _gilbert_elliott(f"{prefix}{key}", value)
    if key == "trace" and isinstance(value, str) and value:
        return outside.absolute(folder / outside.expanded(value))
    return value


def _milliseconds(key: str, value: Any) -> float:
    """ "5ms" -> 5.0"""
    found = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        number = re.fullmatch(r"[0-9.]+", str(value))
        right = f"{value}ms" if number else "5ms"
        raise ConfigError(f'{key} = {value!r}: must be a text with its unit (us, ms, s): "{right}"')
    return round(float(found[1]) * _MS_PER[found[2]], 6)


def _gilbert_elliott(key: str, value: Any) -> GilbertElliott:
    if not isinstance(value, dict):
        raise ConfigError(
            f"{key} = {value!r}: must be a table "
            "{ good_to_bad_percent = 1, bad_to_good_percent = 25 }, say"
        )
    refuse_unknown(f"{key}.", value, GilbertElliott.__struct_fields__)
    for field in ("good_to_bad_percent", "bad_to_good_percent"):
        if field not in value:
            raise ConfigError(f"{key} = {value!r}: lacks {field}, above 0 and at most 100")
    try:
        return GilbertElliott(**value)
    except ConfigError as error:
        raise ConfigError(f"{key}.{error}") from None
