"""Hosts of a run on several, a row each: what they are, their load, clock and network."""

from typing import Annotated

import msgspec
from msgspec import UNSET, UnsetType

from testbed.record import events
from testbed.record.events import Count, Event, Figure, known


class HostSummary(msgspec.Struct, kw_only=True):
    """One of them; ways are those between it and the driver's own, which is the first."""

    name: str
    address: str
    cores: Count
    memory_mb: Annotated[Count, "free as the run began, MB of 10^6 bytes"]
    nodes: Annotated[Count, "that it has"]
    busy_cores: Annotated[
        Figure | None, "that worked in the mean while it had its part; null: unknown"
    ] = None
    rtt_ms: Annotated[Figure | None, "there and back, the median; null: the driver's own"] = None
    rate_to_kbit: Annotated[Figure | None, "that the way to it carries; likewise"] = None
    rate_from_kbit: Annotated[Figure | None, "and the way from it"] = None
    clock_drifted_ms: Annotated[
        Figure | None, "of its nodes' times, by how much they were put right, at most"
    ] = None
    clock_error_ms: Annotated[Figure | None, "bound of the error that is left of that"] = None
    frames: Annotated[Count, "that came to it from other hosts"] = 0
    late_frames: Annotated[Count, "of these, more than 1 ms after their time"] = 0
    links_late_ms: Annotated[
        Figure | None, "what one packet of a hundred left its link late by, at least"
    ] = None
    gone: Annotated[str | None, "how it is known that it is"] = None
    cut_from: Annotated[
        list[str] | UnsetType, "other hosts that it could not reach from some moment on"
    ] = UNSET
    files_brought: Annotated[
        Count | UnsetType, "of `exec`, on another host: that its nodes' own folders had"
    ] = UNSET
    bytes_brought: Annotated[Count | UnsetType, "in them"] = UNSET


class HostRows:
    """Takes every event of a run; ``rows`` are empty where it has one host."""

    def __init__(self) -> None:
        self._rows: dict[str, HostSummary] = {}

    def take(self, event: Event) -> None:
        if isinstance(event, events.Resumed):
            # It may be on others, or on one.
            self._rows.clear()
        elif isinstance(event, events.Hosts):
            self._begin(event)
        elif isinstance(event, events.HostGone) and event.host in self._rows:
            self._rows[event.host].gone = event.reason
        elif isinstance(event, events.HostsCut):
            self._cut(event)
        elif isinstance(event, events.HostClock) and event.host in self._rows:
            row = self._rows[event.host]
            row.clock_drifted_ms = _more(row.clock_drifted_ms, abs(1000 * event.behind_s))
            row.clock_error_ms = _more(row.clock_error_ms, 1000 * event.error_s)
        elif isinstance(event, events.Brought) and event.host in self._rows:
            row = self._rows[event.host]
            row.files_brought = (known(row.files_brought) or 0) + event.files
            row.bytes_brought = (known(row.bytes_brought) or 0) + event.bytes
        elif isinstance(event, events.HostLeft) and event.host in self._rows:
            _end(self._rows[event.host], event)

    def _begin(self, event: events.Hosts) -> None:
        driver = event.hosts[0].name if event.hosts else ""
        ways = {(way.sender, way.receiver): way for way in event.underlay}
        for part in event.hosts:
            to, back = ways.get((driver, part.name)), ways.get((part.name, driver))
            self._rows[part.name] = HostSummary(
                name=part.name,
                address=part.address,
                cores=part.cores,
                memory_mb=part.memory_mb,
                nodes=part.nodes,
                rtt_ms=to.rtt_median_ms if to else None,
                rate_to_kbit=to.rate_kbit if to else None,
                rate_from_kbit=back.rate_kbit if back else None,
            )

    def _cut(self, event: events.HostsCut) -> None:
        for name in event.hosts:
            if (row := self._rows.get(name)) is not None:
                others = [other for other in event.hosts if other != name]
                row.cut_from = [*(known(row.cut_from) or []), *others]

    def rows(self) -> list[HostSummary]:
        return list(self._rows.values())


def _end(row: HostSummary, event: events.HostLeft) -> None:
    row.busy_cores = _figure(event.links.get("busy_cores"))
    row.links_late_ms = _figure(event.links.get("lateness_p99_ms"))
    row.frames = sum(_count(facts.get("frames_received")) for facts in event.tunnels.values())
    row.late_frames = sum(_count(facts.get("late_frames")) for facts in event.tunnels.values())


def _more(known: float | None, seen: float) -> float:
    return round(seen if known is None else max(known, seen), 6)


def _figure(fact: object) -> float | None:
    return float(fact) if isinstance(fact, int | float) and not isinstance(fact, bool) else None


def _count(fact: object) -> int:
    return fact if isinstance(fact, int) and not isinstance(fact, bool) else 0
