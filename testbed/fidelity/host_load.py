"""The host's part of the certificate: whether this machine had time for what it stood for.

A node that waited for a core while its device would have been done, or packets that left their link
late, lengthen rounds as the network and the devices would not. Pure: figures in, words out.
"""

import math
from typing import Any

import msgspec

from testbed.fidelity.paths import RTT_TOLERANCE_MS
from testbed.network.topology import SERVER

LATE_SHARE = 0.05
"""Of the time of all rounds, by which a node may be late in them."""
AIMED_SHARE = 0.02
"""What a dilation is chosen for."""
SPARE = 0.6
"""Share of this machine's time that is planned with."""
_LINKS_LATENESS = "lateness_p99_ms"

Row = dict[str, Any]


class Host(msgspec.Struct, frozen=True):
    """Its part of the certificate."""

    verdict: str
    """pass, fail or skipped."""
    reason: str
    latest: str | None = None
    """The node that was late for the greatest part of the rounds."""
    late_share: float | None = None
    """That part."""
    links_late_ms: float | None = None
    """What one packet of a hundred was late at least; None where the links do not say."""
    dilation_needed: float | None = None
    """With which it would pass, as far as this run tells: ``cure`` says how to ask for it."""
    busy_cores: float | None = None
    """In the mean while rounds went on, whoever kept them busy."""


def judge(summary: dict[str, Any], links: dict[str, Any], busy_cores: float | None = None) -> Host:
    """Hold a run that has ended against what it was to be.

    ``summary``: as summary.json has it. ``links``: closing facts of the links.
    """
    rounds_s = _rounds_s(summary)
    if not rounds_s:
        return Host("skipped", "no round was finished")
    rows = rows_with_lateness(summary)
    if not rows:
        return Host("skipped", "this system does not say how long a process waits for a core")
    latest = max(rows, key=lambda row: row["late_s"])
    share = latest["late_s"] / rounds_s
    links_late_ms = links.get(_LINKS_LATENESS)
    needed = enough(summary, links)
    failures = []
    if share > LATE_SHARE:
        failures.append(_late(summary, latest, share))
    if links_late_ms is not None and links_late_ms > RTT_TOLERANCE_MS:
        failures.append(
            f"one packet of a hundred left its link {links_late_ms:.1f} ms late or more, of which "
            f"{RTT_TOLERANCE_MS:g} are allowed"
        )
    figures = (latest["node"], round(share, 4), links_late_ms, needed, busy_cores)
    if failures:
        return Host("fail", "; ".join(failures), *figures)
    packets = "" if links_late_ms is None else f", packets {links_late_ms:.1f} ms late"
    reason = f"{latest['node']} was late for {100 * share:.1f} % of the rounds' time{packets}"
    return Host("pass", reason, *figures)


def cure(dilation_needed: float) -> str:
    """The option that gives each node the time it needs."""
    return f"--dilation={dilation_needed:g}"


def _late(summary: dict[str, Any], row: Row, share: float) -> str:
    """ "client-7 waited 41 % of the rounds' time for a core (20 clients on 2 cores)" """
    compute = summary["compute"]
    server = row["node"] == SERVER
    device = compute["server_device_class" if server else "device_class"]
    does = f"waited {100 * share:.0f} % of the rounds' time for a core"
    if compute["mode"] == "modelled" or device:
        does = f"was behind its device for {100 * share:.0f} % of the rounds' time"
    clients, cores = summary["clients"], (summary["environment"] or {}).get("cores")
    return f"{row['node']} {does} ({_count(clients, 'client')} on {_count(cores or 0, 'core')})"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def enough(summary: dict[str, Any], links: dict[str, Any]) -> float:
    """A dilation with which such a run's nodes and links would be on time.

    What a node was busy for on this machine, waiting for a core included, is to be no more than its
    device needs and a little of the rounds as they should have been; the links' lateness, which is
    this machine's, no more than is allowed. A tenth or a whole number, rounded up.
    """
    dilation = summary["dilation"]
    rows = rows_with_lateness(summary)
    worst_s = max((row["late_s"] for row in rows), default=0.0)
    rounds_s = max([_rounds_s(summary) - worst_s, *map(device_s, rows)])
    found = 1.0
    for row in rows:
        if row["late_s"] > 0:
            busy_s = dilation * (device_s(row) + row["late_s"])
            found = max(found, busy_s / (device_s(row) + AIMED_SHARE * rounds_s) / SPARE)
        if row.get("cpu_s", 0.0) > row.get("device_s", 0.0):
            # A device that is faster than a core can be shown by nothing else.
            found = max(found, row["cpu_s"] / row["device_s"] / SPARE)
    late_ms = links.get(_LINKS_LATENESS, 0.0) * dilation
    if late_ms > RTT_TOLERANCE_MS:
        found = max(found, late_ms / RTT_TOLERANCE_MS / SPARE)
    return rounded_up(found)


def rounded_up(dilation: float) -> float:
    """The factor rounded up to a tenth below 10, to a whole number beyond."""
    return math.ceil(10 * dilation) / 10 if dilation < 10 else float(math.ceil(dilation))


def _rounds_s(summary: dict[str, Any]) -> float:
    return float(sum(entry["seconds"] or 0.0 for entry in summary["rounds"]))


def rows_with_lateness(summary: dict[str, Any]) -> list[Row]:
    """Rows of the nodes whose lateness is known."""
    return [row for row in summary["compute"]["nodes"] if row.get("late_s") is not None]


def device_s(row: Row) -> float:
    """Seconds that a node's computing takes its device."""
    return float(row["modelled_s"] if "modelled_s" in row else row["device_s"])


def combined(links: dict[str, Any], host: dict[str, Any]) -> dict[str, Any]:
    """summary.json's "fidelity": both parts, the worse verdict with its reason, and the checks."""
    parts = [{key: part[key] for key in ("verdict", "reason")} for part in (links, host)]
    order = ("fail", "skipped", "pass")
    worst = min(parts, key=lambda part: order.index(part["verdict"]))
    return {
        **worst,
        "checks": links["checks"],
        "not_probed": links.get("not_probed", []),
        "links": parts[0],
        "host": host,
    }
