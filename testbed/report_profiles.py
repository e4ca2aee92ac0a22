"""The shipped profiles as a table, and one profile with its sources and what it can carry."""

from typing import Any

from rich.table import Table

from testbed.profiles import Direction, LinkProfile

TRANSFERS_MB = (1, 10, 100)


def transfer_s(direction: Direction, megabytes: float) -> float:
    """Seconds from sending to arrival of that many MB at the most that TCP can carry.

    One delay and the payload at the ideal goodput: slow start, loss and the connection's making
    come on top, so that no transfer is faster.
    """
    goodput = direction.ideal_goodput_kbit
    sending_s = 8000 * megabytes / goodput if goodput else 0.0
    return direction.delay_ms / 1000 + sending_s


def human_seconds(seconds: float) -> str:
    """ "3.2 s", "12 min", "4.1 h" """
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def row(profile: LinkProfile) -> dict[str, Any]:
    """What `profiles --json` lists of one profile."""
    return {
        "name": profile.name,
        "title": profile.title,
        "down_kbit": profile.down.rate_kbit,
        "up_kbit": profile.up.rate_kbit,
        "rtt_ms": profile.rtt_ms,
        "jitter_ms": {"down": profile.down.jitter_ms, "up": profile.up.jitter_ms},
        "loss_percent": {"down": profile.down.loss_percent, "up": profile.up.loss_percent},
        "composite": profile.composite,
    }


def details(profile: LinkProfile) -> dict[str, Any]:
    """What `profiles show --json` gives: both directions, sources, and what they can carry."""
    found: dict[str, Any] = {
        "name": profile.name,
        "title": profile.title,
        "summary": profile.summary,
        "sources": list(profile.sources),
        "composite": profile.composite,
        "rtt_ms": profile.rtt_ms,
        "provenance": profile.provenance,
    }
    for name, direction in (("down", profile.down), ("up", profile.up)):
        found[name] = {
            **{field: getattr(direction, field) for field in Direction.__struct_fields__},
            "limit_packets": direction.limit_packets,
            "ideal_goodput_kbit": direction.ideal_goodput_kbit,
            "least_seconds": {f"{size} MB": transfer_s(direction, size) for size in TRANSFERS_MB},
        }
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
            f"{down.loss_percent:g} / {up.loss_percent:g}",
        )
    return table


def page(profile: LinkProfile) -> Table:
    """Both directions side by side, with where each number comes from."""
    table = Table(title=f"{profile.name}: {profile.title}", title_justify="left")
    for name in ("", "down", "up", "down is", "up is"):
        table.add_column(name)
    for field in Direction.__struct_fields__:
        values = [getattr(direction, field) for direction in (profile.down, profile.up)]
        shown = ["unlimited" if value is None else f"{value:g}" for value in values]
        why = [profile.provenance.get(f"{way}.{field}", "default") for way in ("down", "up")]
        table.add_row(field, *shown, *why)
    table.add_section()
    goodputs = [direction.ideal_goodput_kbit for direction in (profile.down, profile.up)]
    table.add_row(
        "most TCP can carry, kbit/s", *(f"{kbit:.0f}" if kbit else "unlimited" for kbit in goodputs)
    )
    for size in TRANSFERS_MB:
        least = [transfer_s(direction, size) for direction in (profile.down, profile.up)]
        table.add_row(f"{size} MB take at least", *(human_seconds(seconds) for seconds in least))
    return table


def _rate(direction: Direction) -> str:
    return "unlimited" if direction.rate_kbit is None else f"{direction.rate_kbit:g}"
