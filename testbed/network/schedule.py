"""Schedules of an access link while a run goes on: ``[[schedule]]`` entries to States.

The entries stand in a profile's own file, or in one for all clients (``--schedule``)::

    [[schedule]]
    at_s = 30                                    # counted from where training begins
    up = { rate_kbit = 1000, delay_ms = 80 }     # what is not named is the profile's own
    down = { rate_kbit = 4000 }
    [[schedule]]
    at_s = 60
    outage_s = 10                                # nothing passes; then what held before goes on

Each step stands by itself: it changes the profile and not the step before. An entry with both a
step and an outage is an outage with the step after it.
"""

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from testbed import outside
from testbed.config_error import ConfigError, refuse_unknown
from testbed.network import direction_table
from testbed.network.direction import WAYS, Direction, is_number

MAX_S = 1e6
"""As long as a run may last."""

_KEYS = ("at_s", "up", "down", "outage_s")


class State(msgspec.Struct, frozen=True):
    """A link's state from a moment on, until the next one."""

    at_s: float
    """Seconds since training began."""
    up: Direction
    down: Direction


class Entry(msgspec.Struct, frozen=True):
    """One ``[[schedule]]`` entry, as written; its tables are read when it meets a link."""

    number: int
    """Its place in the file, from 1."""
    at_s: float
    up: dict[str, Any] | None
    down: dict[str, Any] | None
    outage_s: float
    """0 where it is no outage."""
    clients: tuple[int, ...] | None
    """Whom it is for, counted from 1; None is everybody."""
    folder: Path
    """What a trace's path is relative to."""


def load(path: str | os.PathLike[str], clients: int) -> list[Entry]:
    """Read a file of entries for a run of that many clients.

    Raises:
        ConfigError: naming file, entry, key, value and what would be right.
    """
    file = outside.expanded(path)
    document = outside.toml(file, "schedule")
    try:
        refuse_unknown("", document, ("schedule",))
        return read(document.get("schedule"), file.parent, clients)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def read(rows: Any, folder: Path, clients: int | None = None) -> list[Entry]:
    """Check the entries of a TOML document, all but their directions.

    Args:
        clients: how many clients an entry may name; None in a profile's own schedule, where it
            names none.

    Raises:
        ConfigError: naming entry, key, value and what would be right.
    """
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        missing = " (there is none)" if rows is None else ""
        raise ConfigError(f"schedule = {rows!r}: must be [[schedule]] entries{missing}")
    entries: list[Entry] = []
    for number, row in enumerate(rows, start=1):
        where = f"schedule entry {number}: "
        if clients is None and "clients" in row:
            raise ConfigError(
                f"{where}clients = {row['clients']!r}: is only for a file of --schedule; "
                "a profile's schedule is for every client that has the profile"
            )
        refuse_unknown(where, row, _KEYS if clients is None else (*_KEYS, "clients"))
        at_s = seconds(where, "at_s", row.get("at_s"))
        if entries and at_s < entries[-1].at_s:
            raise ConfigError(
                f"{where}at_s = {at_s:g}: is before {entries[-1].at_s:g} of entry {number - 1}; "
                "entries stand in the order of their times"
            )
        for key in WAYS:
            if not isinstance(row.get(key, {}), dict):
                raise ConfigError(
                    f"{where}{key} = {row[key]!r}: must be a table {{ rate_kbit = 1000 }}, say"
                )
        outage_s = seconds(where, "outage_s", row["outage_s"]) if "outage_s" in row else None
        if outage_s == 0:
            raise ConfigError(f"{where}outage_s = 0: must be above 0 s")
        if outage_s is None and "up" not in row and "down" not in row:
            raise ConfigError(
                f"{where}at_s = {at_s:g}: says nothing of the link; add up, down or outage_s "
                "(up = {} is the profile's own again)"
            )
        named = None
        if "clients" in row and clients:
            named = tuple(client_numbers(where, row["clients"], clients))
        entries.append(
            Entry(number, at_s, row.get("up"), row.get("down"), outage_s or 0.0, named, folder)
        )
    return entries


def states(entries: Sequence[Entry], up: Direction, down: Direction) -> tuple[State, ...]:
    """States of a link that is ``up`` and ``down`` by itself, by their times.

    Only changes are given. Outages may overlap, and steps may come within one: they show at its
    end.

    Raises:
        ConfigError: a direction that cannot be, or two steps at one time; naming entry, key,
            value and what would be right.
    """
    steps: dict[float, State] = {}
    outages: list[tuple[float, float]] = []
    for entry in entries:
        where = f"schedule entry {entry.number}: "
        if entry.outage_s:
            outages.append((entry.at_s, round(entry.at_s + entry.outage_s, 6)))
        if entry.up is None and entry.down is None:
            continue
        if entry.at_s in steps:
            raise ConfigError(
                f"{where}at_s = {entry.at_s:g}: the link has a step at that time already; "
                "make one entry of the two"
            )
        steps[entry.at_s] = State(
            entry.at_s,
            direction_table.read(f"{where}up.", entry.up or {}, entry.folder, up),
            direction_table.read(f"{where}down.", entry.down or {}, entry.folder, down),
        )
    return interrupted(tuple(steps.values()), up, down, outages)


def interrupted(
    states: Sequence[State],
    up: Direction,
    down: Direction,
    outages: Sequence[tuple[float, float]],
) -> tuple[State, ...]:
    """The states of a link, ``up`` and ``down`` before the first, with outages over them.

    Args:
        outages: from when to when, in seconds since training began; infinity is for good. They
            may overlap; states that come within one show at its end.
    """
    steps = {state.at_s: (state.up, state.down) for state in states}
    until_s: dict[float, float] = {}
    for begins_s, ends_s in outages:
        until_s[begins_s] = max(ends_s, until_s.get(begins_s, 0.0))
    moments = {*steps, *until_s, *until_s.values()} - {math.inf}
    found: list[State] = []
    shown = held = (up, down)
    outage_until_s = 0.0
    for at_s in sorted(moments):
        held = steps.get(at_s, held)
        outage_until_s = max(outage_until_s, until_s.get(at_s, 0.0))
        state = held
        if at_s < outage_until_s:
            state = shown if shown[0].outage else (_cut(held[0]), _cut(held[1]))
        if state != shown:
            found.append(State(at_s, *state))
            shown = state
    return tuple(found)


def _cut(direction: Direction) -> Direction:
    return msgspec.structs.replace(direction, outage=True)


def seconds(where: str, key: str, value: Any) -> float:
    """A moment of a run, or how long something lasts there.

    Raises:
        ConfigError: naming where, key, value and what would be right.
    """
    if not is_number(value) or not 0 <= value <= MAX_S:
        missing = " (it is missing)" if value is None else ""
        raise ConfigError(f"{where}{key} = {value!r}: must be 0 to {MAX_S:.0f} seconds{missing}")
    return round(float(value), 6)


def client_numbers(where: str, value: Any, clients: int) -> list[int]:
    """Whom an entry names, counted from 1.

    Raises:
        ConfigError: naming where, the value and what would be right.
    """
    right = f"must be a list of client numbers, 1 to {clients}"
    if not isinstance(value, list) or not value:
        raise ConfigError(f"{where}clients = {value!r}: {right}")
    found = [client_number(number, clients) for number in value]
    for number, said in zip(found, value, strict=True):
        if number is None:
            raise ConfigError(f"{where}clients = {value!r}: {said!r} is no client; {right}")
    return [number for number in found if number is not None]


def client_number(value: Any, clients: int) -> int | None:
    """A whole number from 1 to ``clients``, be it 3, 3.0 or "3.0" as spreadsheets write it."""
    if isinstance(value, str):
        if not re.fullmatch(r"[0-9]{1,9}(\.0*)?", value):
            return None
        value = float(value)
    whole = is_number(value) and value == int(value) and 1 <= value <= clients
    return int(value) if whole else None
