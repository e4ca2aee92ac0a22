"""Wi-Fi by distance and movement: ``--positions FILE.toml`` to a LinkProfile a station.

::

    step_s = 1                   # how often a moving station's link is looked at; 1 where absent
    [access_point]
    position = [0, 0, 0]         # metres; the last one may be left out
    mode = "g"                   # a, b, g, n, ac, ax
    range_m = 100
    [[station]]                  # one a client, in the clients' order
    position = [10, 0, 0]
    [[station]]
    path = [[0, 10, 0, 0], [60, 120, 0, 0]]     # [seconds since training began, x, y, z]

Between waypoints a station moves straight and evenly; before the first and after the last one it
stands. What a distance makes of a link are the numbers of Mininet-WiFi's TC mode
(github.com/intrig-unicamp/mininet-wifi, mn_wifi/link.py, commit eaa5accb of 2025-11-19), its
rounding included: the distance to the centimetre, the rate to 0.1 kbit/s, the latency to 10
microseconds, the loss to 0.1 %.
"""

import bisect
import math
import os
from collections.abc import Callable
from typing import Any

import msgspec

from testbed import outside
from testbed.config_error import ConfigError, refuse_unknown
from testbed.naming import mark
from testbed.network.direction import Direction, is_number
from testbed.network.mix import MAX_CLIENTS
from testbed.network.profiles import MARK_DIGITS, LinkProfile
from testbed.network.schedule import MAX_S, State

RATE_MBIT = {"a": 11, "b": 3, "g": 11, "n": 600, "ac": 1000, "ax": 1000}
LEAST_MBIT = 0.1
MAX_RANGE_M = 10_000
"""Far beyond any Wi-Fi; at 50 km everything would be lost."""
MAX_M = 1e7
"""Of a coordinate."""
MIN_STEP_S = 0.001
MAX_STEPS = 500_000
"""Of all stations together: each may become a state that the run holds in memory."""

Point = tuple[float, float, float]


class AccessPoint(msgspec.Struct, frozen=True):
    """An access point: where it stands, and how links follow from the distance to it."""

    position: Point
    mode: str
    range_m: float


def wifi(mode: str, distance_m: float) -> Direction:
    """Either direction of a link over that distance, whatever the range."""
    distance = round(distance_m, 2)
    latency_ms, loss_percent = distance / 20, 2 * distance / 1000
    return Direction(
        rate_kbit=round(1000 * max(LEAST_MBIT, RATE_MBIT[mode] * 1.01**-distance), 1),
        delay_ms=round(latency_ms, 2) if latency_ms > 0.1 else 0.0,
        loss_percent=round(loss_percent, 1) if loss_percent > 0.1 else 0.0,
    )


def load(path: str | os.PathLike[str]) -> list[LinkProfile]:
    """Read a file of positions: one profile a station, named like the file and what it says.

    Raises:
        ConfigError: naming file, station, key, value and what would be right.
    """
    file = outside.expanded(path)
    document = outside.toml(file, "positions")
    try:
        return profiles(f"{file.stem}@{mark(document, MARK_DIGITS)}", document)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def profiles(name: str, document: dict[str, Any]) -> list[LinkProfile]:
    """One profile a ``[[station]]`` of the document, all called ``name``."""
    refuse_unknown("", document, ("step_s", "access_point", "station"))
    right = f"{MIN_STEP_S} to {MAX_S:.0f} s"
    step_s = _number("step_s", document.get("step_s", 1), right, lambda n: MIN_STEP_S <= n <= MAX_S)
    point = _access_point(document.get("access_point"))
    rows = document.get("station")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        missing = " (there is none)" if rows is None else ""
        raise ConfigError(f"station = {rows!r}: must be [[station]] tables, one a client{missing}")
    if len(rows) > MAX_CLIENTS:
        raise ConfigError(f"{len(rows)} [[station]] tables: at most {MAX_CLIENTS} clients")
    paths = [_path(f"station {number}: ", row) for number, row in enumerate(rows, start=1)]
    steps = sum(path[-1][0] / step_s for path in paths)
    if steps > MAX_STEPS:
        raise ConfigError(
            f"step_s = {step_s:g}: makes {steps:.0f} steps of all stations; at most {MAX_STEPS}, "
            f"so take {math.ceil(step_s * steps / MAX_STEPS)} or more"
        )
    return [link(name, point, path, step_s) for path in paths]


def link(
    name: str, point: AccessPoint, path: list[tuple[float, Point]], step_s: float
) -> LinkProfile:
    """The link of a station that goes along ``path``: (seconds, where), ascending.

    Until training begins it stands where it is at 0 s; if that is out of range, at the edge of
    the range, so that it can join.
    """
    last_s = path[-1][0]
    times = [round(k * step_s, 6) for k in range(math.ceil(last_s / step_s))] + [last_s]
    first_m = math.dist(_where(path, 0.0), point.position)
    shown = start = wifi(point.mode, min(first_m, point.range_m))
    states = []
    for at_s in times:
        distance_m = math.dist(_where(path, at_s), point.position)
        now = wifi(point.mode, min(distance_m, point.range_m))
        if round(distance_m, 2) > point.range_m:
            now = msgspec.structs.replace(now, outage=True)
        if now != shown:
            states.append(State(at_s, now, now))
            shown = now
    return LinkProfile(name=name, up=start, down=start, schedule=tuple(states))


def _where(path: list[tuple[float, Point]], at_s: float) -> Point:
    after = bisect.bisect_right(path, at_s, key=lambda waypoint: waypoint[0])
    if after == 0:
        return path[0][1]
    if after == len(path):
        return path[-1][1]
    (began_s, start), (ends_s, end) = path[after - 1], path[after]
    share = (at_s - began_s) / (ends_s - began_s)
    x, y, z = (a + share * (b - a) for a, b in zip(start, end, strict=True))
    return x, y, z


def _access_point(table: Any) -> AccessPoint:
    if not isinstance(table, dict):
        missing = " (it is missing)" if table is None else ""
        raise ConfigError(f"access_point = {table!r}: must be a table [access_point]{missing}")
    where = "access_point."
    refuse_unknown(where, table, AccessPoint.__struct_fields__)
    mode = table.get("mode")
    if not isinstance(mode, str) or mode not in RATE_MBIT:
        raise ConfigError(f"{where}mode = {mode!r}: must be one of {', '.join(RATE_MBIT)}")
    position = _point(f"{where}position", table.get("position"))
    right = f"above 0 m, at most {MAX_RANGE_M}"
    range_m = _number(
        f"{where}range_m", table.get("range_m"), right, lambda n: 0 < n <= MAX_RANGE_M
    )
    return AccessPoint(position, mode, range_m)


def _path(where: str, row: dict[str, Any]) -> list[tuple[float, Point]]:
    """A station's waypoints; one that stands has a single one."""
    refuse_unknown(where, row, ("position", "path"))
    if ("position" in row) == ("path" in row):
        said = "has both position and path" if row else "says nothing"
        raise ConfigError(f"{where}{said}; write position = [x, y, z] or path = [[at_s, x, y, z]]")
    if "position" in row:
        return [(0.0, _point(f"{where}position", row["position"]))]
    waypoints = row["path"]
    if not isinstance(waypoints, list) or not waypoints:
        raise ConfigError(f"{where}path = {waypoints!r}: must be a list of [at_s, x, y, z]")
    found: list[tuple[float, Point]] = []
    for number, waypoint in enumerate(waypoints, start=1):
        key = f"{where}path: waypoint {number}"
        if not isinstance(waypoint, list) or len(waypoint) not in (3, 4):
            raise ConfigError(f"{key} = {waypoint!r}: must be [at_s, x, y, z], or without z")
        at_s = _number(f"{key}: at_s", waypoint[0], "0 s or more", lambda n: 0 <= n <= MAX_S)
        if found and at_s <= found[-1][0]:
            raise ConfigError(
                f"{key} = {waypoint!r}: is not after {found[-1][0]:g} s of the one before; "
                "times must ascend"
            )
        found.append((at_s, _point(key, waypoint[1:])))
    return found


def _point(key: str, value: Any) -> Point:
    """Metres, with 0 for a height that is not given."""
    if not isinstance(value, list) or len(value) not in (2, 3):
        raise ConfigError(f"{key} = {value!r}: must be [x, y, z] in metres, or without z")
    x, y, z = (
        _number(
            key, number, f"a number, at most {MAX_M:.0f} m either way", lambda n: abs(n) <= MAX_M
        )
        for number in [*value, 0][:3]
    )
    return x, y, z


def _number(key: str, value: Any, right: str, fits: Callable[[float], bool]) -> float:
    if not is_number(value) or not fits(value):
        raise ConfigError(f"{key} = {value!r}: must be {right}")
    return float(value)
