"""Many clients on many hosts, on paper: the arithmetic, and that docs/hosts.md has its result."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "benchmarks"))

import forty_hosts  # noqa: E402
import hosts  # noqa: E402

from testbed.network.direction import Direction  # noqa: E402
from testbed.network.profiles import LinkProfile  # noqa: E402

PAGE = (ROOT / "docs" / "hosts.md").read_text()
LINK = LinkProfile(name="x", up=Direction(rate_kbit=1000), down=Direction(rate_kbit=12_112))
COSTS = {"up": forty_hosts.Cost(8.0, 10.0, 20.0), "down": forty_hosts.Cost(4.0, 5.0, 10.0)}


def test_a_core_carries_what_its_frames_and_their_acknowledgements_leave_time_for() -> None:
    # A full frame has 12,112 bits, and half an acknowledgement.
    assert forty_hosts.frames_per_s(12.112e-3) == pytest.approx(1500)
    assert forty_hosts.gbit_a_core(10.0) == pytest.approx(100_000 / 1.5 * 12_112 / 1e9)


def test_what_each_arrangement_moves() -> None:
    found = list(forty_hosts.needs(COSTS, LINK, clients=1000, hosts=10))
    rows = {(each.arrangement.split()[0], each.way): each for each in found}
    plain, bound, several, own = ("as", "`--server-profile`", "16", "a")
    # 1000 clients of 12,112 bits a frame and 1000 frames a second each.
    assert rows[plain, "down"].gbit == pytest.approx(12.112)
    assert rows[plain, "down"].server_cores == pytest.approx(1.5e6 * 5e-6)
    assert rows[plain, "down"].client_cores == pytest.approx(1.5e5 * 10e-6)
    assert rows[plain, "down"].carried_gbit == pytest.approx(forty_hosts.gbit_a_core(5.0))
    assert rows[bound, "down"].gbit == rows[bound, "down"].carried_gbit == 1.0
    assert rows[several, "up"].carried_gbit == rows[several, "up"].gbit == pytest.approx(1.0)
    # Of a host's hundred clients one update crosses, as fast as a hundredth of the lines allow.
    assert rows[own, "down"].gbit == pytest.approx(12.112 / 100)
    assert rows[own, "down"].client_cores == pytest.approx(1.5e5 * 4e-6)
    # A megabyte for each of a thousand, by what a core of 5 µs a frame carries of it.
    carried = 1e6 / 7.5 * forty_hosts.SEGMENT_BYTES * 8
    assert rows[plain, "down"].round_s(1.0) == pytest.approx(8e9 / carried)
    # And for each of a hundred by what the lines of a host carry, less than its core can.
    lines = 100 * 12_112_000 * forty_hosts.SEGMENT_BYTES / forty_hosts.FRAME_BYTES
    assert rows[own, "down"].round_s(1.0) == pytest.approx(8e8 / lines)
    assert rows[own, "down"].own_gbit == pytest.approx(1.2112)


def test_the_page_has_what_the_arithmetic_gives() -> None:
    block = PAGE.split("<!-- forty: printed by benchmarks/forty_hosts.py -->\n")[1]
    assert block.split("<!-- end of forty -->")[0].splitlines() == forty_hosts.table(PAGE)


def test_the_page_has_the_costs_of_every_row_that_is_measured() -> None:
    for name in hosts.CASES:
        assert set(forty_hosts.costs(PAGE, name)) == {"up", "down"}
