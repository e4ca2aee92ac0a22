"""A row a host in a summary and a report: from the events of a run on several."""

from typing import Any

import pytest
from msgspec import UNSET

from testbed.record import events
from testbed.record.summary import SummaryBuilder
from testbed.report.page.hosts_section import hosts_section

FACTS = {"frames_received": 700, "late_frames": 3, "offset_error_ms": 0.02}


def parts() -> events.Hosts:
    hosts = [
        events.HostPart(name=name, address=f"10.0.0.{n}", cores=n, memory_mb=900, nodes=5 * n)
        for n, name in ((1, "a"), (2, "b"), (3, "c"))
    ]
    ways = [
        events.Underlay(
            sender=sender,
            receiver=receiver,
            rtt_min_ms=0.1,
            rtt_median_ms=0.2,
            rtt_max_ms=3.0,
            rate_kbit=rate,
            offset_ms=0.0,
            offset_error_ms=0.1,
        )
        for sender, receiver, rate in (("a", "b", 1e6), ("b", "a", 9e5), ("c", "b", 5.0))
    ]
    return events.Hosts(hosts=hosts, place="server=a", underlay=ways)


def summary(*more: events.Event) -> Any:
    builder = SummaryBuilder()
    for event in (parts(), *more):
        builder.take(event)
    return builder.summary()


def test_a_run_on_one_host_has_no_rows() -> None:
    assert SummaryBuilder().summary().hosts == []


def test_ways_are_those_between_a_host_and_the_drivers() -> None:
    a, b, c = summary().hosts
    assert (a.rtt_ms, a.rate_to_kbit, a.rate_from_kbit) == (None, None, None)
    assert (b.rtt_ms, b.rate_to_kbit, b.rate_from_kbit) == (0.2, 1e6, 9e5)
    assert (c.rtt_ms, c.rate_to_kbit, c.rate_from_kbit) == (None, None, None)
    assert (b.address, b.cores, b.memory_mb, b.nodes) == ("10.0.0.2", 2, 900, 10)


def test_a_run_that_went_on_has_the_hosts_that_it_has_then() -> None:
    gone = events.HostGone(host="b", reason="it closed the connection")
    nothing = events.UpDown(up=0, down=0)
    again = events.Redone(payload=nothing, message=nothing, seconds=0.0)
    resumed = events.Resumed(round=1, at_s=2.0, lost=again)
    assert summary(gone, resumed).hosts == []
    assert [row.gone for row in summary(gone, resumed, parts()).hosts] == [None] * 3


def test_a_row_has_the_most_that_its_clock_drifted_and_might_be_wrong() -> None:
    clocks = [(-0.002, 1e-5), (0.003, 3e-5), (0.001, 2e-5)]
    told = [events.HostClock(host="b", behind_s=s, error_s=e) for s, e in clocks]
    row = summary(*told).hosts[1]
    assert (row.clock_drifted_ms, row.clock_error_ms) == pytest.approx((3.0, 0.03))


def test_a_row_has_how_its_links_ended_or_that_it_is_gone() -> None:
    links = {"busy_cores": 1.5, "lateness_p99_ms": 0.4, "realtime": True}
    left = events.HostLeft(host="b", links=links, tunnels={"a": dict(FACTS), "c": dict(FACTS)})
    _, b, c = summary(left, events.HostGone(host="c", reason="no word for 3 s")).hosts
    assert (b.busy_cores, b.links_late_ms, b.frames, b.late_frames) == (1.5, 0.4, 1400, 6)
    assert b.gone is None and c.gone == "no word for 3 s" and c.busy_cores is None


def test_rows_of_hosts_that_were_cut_from_each_other_say_so() -> None:
    cut = [events.HostsCut(hosts=["b", name], reason="no word for 3 s") for name in ("c", "d")]
    found = summary(*cut)
    assert [row.cut_from for row in found.hosts] == [UNSET, ["c", "d"], ["b"]]
    text = str(hosts_section(Told(found)))
    assert "host b did not reach c, d" in text and "host c did not reach b" in text


class Told:
    def __init__(self, found: Any) -> None:
        self.summary = found


def test_the_report_has_a_table_of_them_and_says_who_is_gone() -> None:
    text = str(hosts_section(Told(summary(events.HostGone(host="c", reason="<cut>")))))
    assert text.count("<tr>") == 4 and "Host c was gone" in text and "<cut>" not in text
    assert str(hosts_section(Told(SummaryBuilder().summary()))) == ""
