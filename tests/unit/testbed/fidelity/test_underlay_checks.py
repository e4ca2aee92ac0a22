"""The network between hosts in the certificate: what it carries, and what lines hide of it."""

import pytest

from testbed.fidelity import checks as fidelity
from testbed.fidelity.underlay_checks import checks
from testbed.network import underlay
from testbed.network.direction import Direction
from testbed.network.hosts import Host, placed
from testbed.network.profiles import LinkProfile
from testbed.network.topology import Plan, plan
from testbed.network.underlay import Path

LINK = LinkProfile(
    name="test",
    up=Direction(rate_kbit=10_000, delay_ms=20, jitter_ms=5),
    down=Direction(rate_kbit=20_000, delay_ms=10),
)


def layout(link: LinkProfile = LINK) -> Plan:
    machines = [Host("a", 1, 0), Host("b", 1, 0)]
    return placed(plan([link] * 4), machines, place="server=a,client-1:4=b")


def paths(mbit: float, rtt_ms: float) -> list[Path]:
    ways = ("a", "b"), ("b", "a")
    return [Path(*way, rtt_ms / 2, rtt_ms / 2, rtt_ms, 1000 * mbit, 0.0, 0.1) for way in ways]


def test_each_way_has_what_is_asked_of_it_and_what_lines_hide() -> None:
    found = checks(layout(), paths(168, 2.0))
    assert [(c.name, c.link, c.measured, c.tolerance, c.unit, c.ok) for c in found] == [
        # 4 x 20 Mbit/s and 5 % of 168; a server without a line hides nothing, the client 10 ms.
        ("hosts' network, asked", "a to b", 50.0, 100.0, "%", True),
        ("hosts' network, hidden", "a to b", 1.0, 10.0, "ms", True),
        ("hosts' network, asked", "b to a", 25.0, 100.0, "%", True),
        ("hosts' network, hidden", "b to a", 1.0, 15.0, "ms", True),
    ]


@pytest.mark.parametrize(("mbit", "rtt_ms"), [(83.9, 2.0), (168, 20.1), (20, 31)])
def test_they_fail_where_a_run_is_refused_or_the_network_shows(mbit: float, rtt_ms: float) -> None:
    asked = (layout(), paths(mbit, rtt_ms))
    failed = [check for check in checks(*asked) if not check.ok]
    refused, shown = underlay.refusal(*asked), underlay.shows(*asked)
    assert any(check.unit == "%" for check in failed) == (refused is not None)
    assert sum(check.unit == "ms" for check in failed) == len(shown)
    assert failed
    assert fidelity.certify(checks(*asked)).verdict == "fail"


def test_a_way_that_carries_nothing_fails_and_links_without_a_rate_ask_for_none() -> None:
    found = checks(layout(), paths(0, 2.0))
    assert [check.ok for check in found] == [False, True, False, True]
    assert "nothing came through" in found[0].words
    assert [check.unit for check in checks(layout(LinkProfile(name="x")), paths(1, 0.0))] == [
        "ms"
    ] * 2
