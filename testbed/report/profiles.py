"""Profiles as a table, and one profile with its sources and what it can carry."""

from typing import Any

from rich.table import Table

from testbed.network.capacity import line
from testbed.network.direction import Direction, changes
from testbed.network.direction_table import INSTEAD
from testbed.network.profiles import LinkProfile
from testbed.units import human_seconds

TRANSFERS_MB = (1, 10, 100)
USUAL = ("rate_kbit", "delay_ms", "jitter_ms", "loss_percent", "queue_ms")
"""Shown of every direction; the other fields only where they are set."""
_DEFAULT = Direction()


def transfer_s(direction: Direction, megabytes: float) -> float:
    """Seconds from sending to arrival of that many MB at the most that TCP can carry.

    One delay and the payload at the ideal goodput: slow start, loss and the connection's making
    come on top, so that no transfer is faster.
    """
    return line(direction).transfer_s(round(1e6 * megabytes))


def row(profile: LinkProfile) -> dict[str, Any]:
    """One profile's row of `profiles --json`."""
    return {
        "name": profile.name,
        "title": profile.title,
        "down_kbit": profile.down.line_kbit,
        "up_kbit": profile.up.line_kbit,
        "rtt_ms": profile.rtt_ms,
        "jitter_ms": {"down": profile.down.jitter_ms, "up": profile.up.jitter_ms},
        "loss_percent": {
            "down": profile.down.mean_loss_percent,
            "up": profile.up.mean_loss_percent,
        },
        "composite": profile.composite,
    }


def details(profile: LinkProfile) -> dict[str, Any]:
    """The document of `profiles show --json`: both directions, sources, and what they can carry."""
    found: dict[str, Any] = {
        "name": profile.name,
        "title": profile.title,
        "summary": profile.summary,
        "sources": list(profile.sources),
        "composite": profile.composite,
        "version": profile.version,
        "rtt_ms": profile.rtt_ms,
        "provenance": profile.provenance,
    }
    for name, direction in (("down", profile.down), ("up", profile.up)):
        found[name] = {
            **{field: getattr(direction, field) for field in USUAL},
            **extras(direction),
            "limit_packets": direction.limit_packets,
            "ideal_goodput_kbit": direction.ideal_goodput_kbit,
            "least_seconds": {f"{size} MB": transfer_s(direction, size) for size in TRANSFERS_MB},
        }
    if profile.schedule:
        found["schedule"] = [
            {
                "at_s": state.at_s,
                "down": changes(profile.down, state.down),
                "up": changes(profile.up, state.up),
            }
            for state in profile.schedule
        ]
    return found


def extras(direction: Direction) -> dict[str, Any]:
    """The fields beyond the usual ones that are set, and what follows from a trace or a model."""
    found = {name: each for name, each in changes(_DEFAULT, direction).items() if name not in USUAL}
    if direction.chances is not None:
        found["trace_mean_kbit"] = round(direction.chances.mean_kbit, 3)
        found["trace_period_s"] = direction.chances.period_ms / 1000
    if direction.gilbert_elliott is not None:
        found["mean_loss_percent"] = direction.mean_loss_percent
    return found


def listing(profiles: list[LinkProfile]) -> Table:
    table = Table(title="link profiles", title_justify="left")
    table.add_column("profile", no_wrap=True)
    table.add_column("title")
    for name in ("down, kbit/s", "up, kbit/s", "RTT, ms", "jitter down/up, ms", "loss down/up, %"):
        table.add_column(name, justify="right")
    for profile in profiles:
        down, up = profile.down, profile.up
        table.add_row(
            profile.name,
            profile.title,
            _rate(down),
            _rate(up),
            f"{profile.rtt_ms:g}",
            f"{down.jitter_ms:g} / {up.jitter_ms:g}",
            f"{down.mean_loss_percent:g} / {up.mean_loss_percent:g}",
        )
    return table


def page(profile: LinkProfile) -> Table:
    """Both directions side by side, with where each number comes from."""
    title = f"{profile.name}: {profile.title}, version {profile.version}"
    table = Table(title=title, title_justify="left")
    for name in ("", "down", "up", "down is", "up is"):
        table.add_column(name)
    directions = (profile.down, profile.up)
    more = [extras(direction) for direction in directions]
    for field in dict.fromkeys([*USUAL, *more[0], *more[1]]):
        shown, why = [], []
        for way, direction, extra in zip(("down", "up"), directions, more, strict=True):
            other = INSTEAD.get(field)
            replaced = other is not None and getattr(direction, other) is not None
            usual = field in USUAL and not replaced
            value = getattr(direction, field) if usual else extra.get(field, "-")
            shown.append(f"see {other}" if replaced else _text(value))
            why.append(profile.provenance.get(f"{way}.{field}", "default" if usual else ""))
        table.add_row(field, *shown, *why)
    for state in profile.schedule:
        told = [_in_words(profile.down, state.down), _in_words(profile.up, state.up)]
        table.add_row(f"from {state.at_s:g} s", *told, profile.provenance.get("schedule", ""))
    table.add_section()
    goodputs = [direction.ideal_goodput_kbit for direction in directions]
    table.add_row(
        "most TCP can carry, kbit/s", *(f"{kbit:.0f}" if kbit else "unlimited" for kbit in goodputs)
    )
    for size in TRANSFERS_MB:
        least = [transfer_s(direction, size) for direction in directions]
        table.add_row(f"{size} MB take at least", *(human_seconds(seconds) for seconds in least))
    return table


def _rate(direction: Direction) -> str:
    rate = direction.line_kbit
    return "unlimited" if rate is None else f"{rate:g}"


def _text(value: Any) -> str:
    if value is None:
        return "unlimited"
    if isinstance(value, dict):
        return "\n".join(f"{name} {_text(number)}" for name, number in value.items())
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _in_words(before: Direction, after: Direction) -> str:
    """A state in a few words."""
    if after.outage:
        return "nothing passes"
    # None: another field stands instead.
    found = {name: value for name, value in changes(before, after).items() if value is not None}
    return "\n".join(f"{name} {_text(value)}" for name, value in found.items()) or "as above"
