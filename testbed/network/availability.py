"""Availability of clients: ``--availability`` to times away, in seconds since training began.

A client that is away has no link, and no round chooses it. One that leaves in a round works on, and
its answer counts if it comes back in time. Three ways to say it::

    on:120,off:30          # mean seconds there and away, drawn for each client from the seed

    [[away]]               # a .toml file
    clients = [1, 2]       # counted from 1; absent: every client
    at_s = 30
    for_s = 60             # absent: for good
    [churn]                # besides, or instead
    on_s = 120
    off_s = 30
    clients = [3, 4, 5]    # absent: every client

    client,leaves_s,returns_s      # a .csv file, such as a trace of real devices
    1,30,90
    2,45.5,                        # for good

Drawn times are exponential, and a client begins there or away as it is in the long run.
"""

import csv
import io
import math
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from testbed import outside
from testbed.config_error import ConfigError, refuse_unknown
from testbed.network.schedule import MAX_S, client_number, client_numbers, seconds
from testbed.units import decimal

Away = tuple[float, float]
"""From when to when; infinity is for good."""

LEAST_MEAN_S = 0.1
MOST_CHANGES = 1_000_000
"""Of all clients, drawn; and as many that a file says. A time away is two."""
_COLUMNS = ["client", "leaves_s", "returns_s"]


def load(text: str, clients: int, seed: int, until_s: float) -> list[tuple[Away, ...]]:
    """Times when each client is away, in order and without overlaps.

    ``until_s``: how long the run can last; nothing is drawn beyond.

    Raises:
        ConfigError: naming the file, the place, the value and what would be right.
    """
    away: list[list[Away]] = [[] for _ in range(clients)]
    if is_means(text):
        churn = _means(text)
        _draw(f"availability {text!r}: ", churn, away, range(1, clients + 1), seed, until_s)
    elif text.lower().endswith(".toml"):
        _read_toml(outside.expanded(text), away, seed, until_s)
    elif text.lower().endswith(".csv"):
        _read_csv(outside.expanded(text), away)
    else:
        raise ConfigError(
            f"availability = {text!r}: must be on:120,off:30 (mean seconds there and away), or a "
            "file that ends in .toml or .csv"
        )
    return [_joined(own) for own in away]


def is_means(text: str) -> bool:
    """Whether it gives means, and names no file."""
    return text.startswith("on:")


def _means(text: str) -> tuple[float, float]:
    """ "on:120,off:30" to (120.0, 30.0)."""
    parts = [part.partition(":") for part in text.split(",")]
    if [name for name, _, _ in parts] != ["on", "off"]:
        raise ConfigError(f"availability = {text!r}: must be as on:120,off:30, in seconds")
    found = []
    for name, _, value in parts:
        if (mean_s := decimal(value)) is None:
            raise ConfigError(f"availability = {text!r}: {name} must be seconds, as 120")
        found.append(mean_s)
    return found[0], found[1]


def _read_toml(file: Path, away: list[list[Away]], seed: int, until_s: float) -> None:
    document = outside.toml(file, "availability")
    refuse_unknown(f"{file}: ", document, ("away", "churn"))
    rows, churn = document.get("away", []), document.get("churn")
    if not isinstance(rows, list) or not (rows or churn):
        raise ConfigError(f"{file}: away = {rows!r}: must be [[away]] entries, or [churn] be there")
    changes = 0
    for number, row in enumerate(rows, start=1):
        where = f"{file}: away entry {number}: "
        if not isinstance(row, dict):
            raise ConfigError(f"{where}{row!r}: must be a table with at_s")
        refuse_unknown(where, row, ("clients", "at_s", "for_s"))
        at_s = seconds(where, "at_s", row.get("at_s"))
        for_s = seconds(where, "for_s", row["for_s"]) if "for_s" in row else math.inf
        if for_s == 0:
            raise ConfigError(f"{where}for_s = 0: must be above 0 s")
        whom = _clients(where, row, len(away))
        changes += 2 * len(whom)
        _refuse_many(where, changes)
        for client in whom:
            away[client - 1].append((at_s, round(at_s + for_s, 6)))
    if churn is not None:
        where = f"{file}: churn: "
        if not isinstance(churn, dict):
            raise ConfigError(f"{where}{churn!r}: must be a table with on_s and off_s")
        refuse_unknown(where, churn, ("clients", "on_s", "off_s"))
        means = [seconds(where, key, churn.get(key)) for key in ("on_s", "off_s")]
        whom = _clients(where, churn, len(away))
        _draw(where, (means[0], means[1]), away, whom, seed, until_s)


def _read_csv(file: Path, away: list[list[Away]]) -> None:
    reader = csv.reader(io.StringIO(outside.text(file, "availability")))
    try:
        # Lines may be empty.
        rows: list[tuple[int, list[str]]] = []
        for row in reader:
            if row:
                _refuse_many(f"{file} line {reader.line_num}: ", 2 * len(rows))
                rows.append((reader.line_num, [cell.strip() for cell in row]))
    except csv.Error as error:
        raise ConfigError(f"{file}: is not CSV: {error}") from error
    if not rows or rows[0][1] != _COLUMNS:
        raise ConfigError(f"{file}: the first line must be {','.join(_COLUMNS)}")
    if len(rows) == 1:
        raise ConfigError(
            f"{file}: has no line after the first, so nobody is ever away: give it one such as "
            "1,30,90, or leave --availability out"
        )
    for number, row in rows[1:]:
        where = f"{file} line {number}: "
        if len(row) != len(_COLUMNS):
            raise ConfigError(f"{where}{','.join(row)!r}: must be {','.join(_COLUMNS)}")
        client = client_number(row[0], len(away))
        if client is None:
            raise ConfigError(f"{where}client = {row[0][:40]!r}: must be 1 to {len(away)}")
        leaves_s = seconds(where, "leaves_s", _number(row[1]))
        returns_s = seconds(where, "returns_s", _number(row[2])) if row[2] else math.inf
        if returns_s <= leaves_s:
            raise ConfigError(f"{where}returns_s = {row[2]}: must be after leaves_s = {row[1]}")
        away[client - 1].append((leaves_s, returns_s))


def _draw(
    where: str,
    means_s: tuple[float, float],
    away: list[list[Away]],
    whom: Iterable[int],
    seed: int,
    until_s: float,
) -> None:
    """Add times drawn for the clients of these numbers."""
    on_s, off_s = means_s
    for name, mean_s in (("on", on_s), ("off", off_s)):
        if not LEAST_MEAN_S <= mean_s <= MAX_S:
            raise ConfigError(f"{where}{name} = {mean_s:g}: must be {LEAST_MEAN_S} to {MAX_S:g} s")
    whom = list(whom)
    if (changes := 2 * len(whom) * until_s / (on_s + off_s)) > MOST_CHANGES:
        raise ConfigError(
            f"{where}some {changes:.0f} times to draw in the {until_s:g} s that the run can last, "
            f"more than {MOST_CHANGES}; take longer means, or a lower time_limit_s"
        )
    for client in whom:
        generator = random.Random(f"availability {seed} {client}")
        now_s = 0.0
        there = generator.random() < on_s / (on_s + off_s)
        while now_s < until_s:
            lasts_s = round(generator.expovariate(1 / (on_s if there else off_s)), 6)
            if not there and lasts_s:
                away[client - 1].append((now_s, round(now_s + lasts_s, 6)))
            now_s = round(now_s + lasts_s, 6)
            there = not there


def _refuse_many(where: str, changes: int) -> None:
    if changes > MOST_CHANGES:
        raise ConfigError(
            f"{where}makes more than {MOST_CHANGES // 2} times away of all clients; write fewer, "
            "or name fewer clients"
        )


def _joined(times: list[Away]) -> tuple[Away, ...]:
    found: list[Away] = []
    for begins_s, ends_s in sorted(times):
        if found and begins_s <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], ends_s))
        else:
            found.append((begins_s, ends_s))
    return tuple(found)


def _number(text: str) -> float | str:
    found = decimal(text)
    return text if found is None else found


def _clients(where: str, table: dict[str, Any], clients: int) -> list[int]:
    if "clients" not in table:
        return list(range(1, clients + 1))
    return client_numbers(where, table["clients"], clients)
