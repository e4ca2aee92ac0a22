"""Links of a dilated run: slower by a factor in all that is a time, and equal in all else."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.fidelity import checks as fidelity
from testbed.fidelity import paths as probe_paths
from testbed.fidelity.paths import Arrivals
from testbed.links import dilation
from testbed.links.dilation import Dilated
from testbed.links.interface import Endpoint, LinkCounters
from testbed.links.queueing.opportunities import Opportunities
from testbed.links.queueing.queue import LinkQueue
from testbed.network import profiles, traces
from testbed.network.direction import FRAME_BYTES, Direction, GilbertElliott
from testbed.network.profiles import LinkProfile
from testbed.network.schedule import State
from testbed.network.topology import Node, Plan, plan
from testbed.network.traces import Trace


def test_rates_are_divided_times_multiplied_and_the_rest_stays() -> None:
    line = Direction(
        rate_kbit=1000,
        delay_ms=20,
        jitter_ms=5,
        loss_percent=1,
        duplicate_percent=2,
        reorder_percent=3,
        corrupt_percent=4,
        queue_ms=100,
        max_packets=50,
    )
    slower = dilation.direction(line, 4)
    assert slower == msgspec.structs.replace(
        line, rate_kbit=250, delay_ms=80, jitter_ms=20, queue_ms=400
    )


def test_every_field_of_a_direction_is_accounted_for() -> None:
    """One that comes later is a time or it is not: say so in ``dilation``, and here."""
    scaled = {"rate_kbit", "trace_stretch", "delay_ms", "jitter_ms", "queue_ms"}
    fixed = {
        *("loss_percent", "gilbert_elliott", "duplicate_percent", "reorder_percent"),
        *("corrupt_percent", "max_packets", "outage", "trace"),
    }
    assert scaled | fixed == set(Direction.__struct_fields__)


def test_a_line_without_limits_stays_one() -> None:
    line = Direction(gilbert_elliott=GilbertElliott(good_to_bad_percent=1, bad_to_good_percent=9))
    slower = dilation.direction(line, 7)
    assert slower.rate_kbit is None
    assert slower.gilbert_elliott == line.gilbert_elliott


@pytest.mark.thorough
@pytest.mark.parametrize("name", profiles.names())
@given(factor=st.floats(1, 1000))
def test_as_many_packets_are_under_way_and_queued_on_every_profile(
    name: str, factor: float
) -> None:
    link = profiles.load(name)
    slower = dilation.profile(link, factor)
    for line, other in ((link.up, slower.up), (link.down, slower.down)):
        assert other.limit_packets == line.limit_packets
    assert slower.rtt_ms == pytest.approx(factor * link.rtt_ms)
    assert (slower.name, slower.provenance) == (link.name, link.provenance)


def test_a_schedule_is_later_and_its_links_are_slower() -> None:
    line, cut = Direction(rate_kbit=900), Direction(rate_kbit=900, outage=True)
    link = LinkProfile(name="x", up=line, down=line, schedule=(State(2.0, cut, line),))
    (state,) = dilation.profile(link, 3).schedule
    assert state == State(6.0, Direction(rate_kbit=300, queue_ms=600, outage=True), state.down)
    assert state.down == Direction(rate_kbit=300, queue_ms=600)


def trace(tmp_path: Path, *times_ms: int) -> str:
    file = tmp_path / f"{len(times_ms)}.trace"
    file.write_text("".join(f"{at_ms}\n" for at_ms in times_ms))
    return str(file)


def test_a_trace_has_the_same_chances_later(tmp_path: Path) -> None:
    file = trace(tmp_path, 1, 1, 4, 10)
    slower = dilation.direction(Direction(trace=file, delay_ms=2), 2.5)
    assert slower.trace == file and slower.delay_ms == 5
    assert slower.chances is not None
    assert slower.chances.opportunities_ms == (2.5, 2.5, 10, 25)
    assert dilation.direction(slower, 2).chances == traces.stretched(file, 5)


@pytest.mark.parametrize("times_ms", [(1,), (1, 1, 1, 2), (3, 7)])
@pytest.mark.parametrize("factor", [1.0, 1.1, 1.4, 2.5, 33.3])
def test_a_traces_rate_is_the_one_asked_for_however_short_its_period(
    tmp_path: Path, times_ms: tuple[int, ...], factor: float
) -> None:
    """A millisecond's part of a period of one is a quarter of its rate and more."""
    asked = Direction(trace=trace(tmp_path, *times_ms), max_packets=400)
    assert asked.line_kbit is not None
    slower = dilation.direction(asked, factor)
    assert slower.line_kbit == pytest.approx(asked.line_kbit / factor, rel=1e-4)
    queue: LinkQueue[int] = LinkQueue(slower, seed=1)
    for number in range(400):
        queue.offer(0.0, FRAME_BYTES, number)
    left = [queue.pop()[0] for _ in range(400)]
    kbit = 399 * 8 * FRAME_BYTES / (1000 * (left[-1] - left[0]))
    assert factor * kbit == pytest.approx(asked.line_kbit, rel=0.01)


@given(
    times_ms=st.lists(st.integers(0, 30), min_size=1, max_size=8).map(sorted),
    factor=st.floats(1, 50),
    packets=st.lists(st.tuples(st.integers(0, 40), st.integers(20, 3000)), max_size=30),
)
def test_each_packet_of_a_stretched_trace_leaves_as_much_later(
    times_ms: list[int], factor: float, packets: list[tuple[int, int]]
) -> None:
    times_ms[-1] += 1
    plain = Opportunities(Trace(tuple(times_ms)), 0.0)
    later = Opportunities(Trace(tuple(round(t * factor, 6) for t in times_ms)), 0.0)
    at_ms = 0.5
    for gap_ms, size in packets:
        at_ms += gap_ms
        left_s = plain.send(at_ms / 1000, size)
        assert later.send(at_ms * factor / 1000, size) == pytest.approx(left_s * factor, abs=1e-6)


# The network


class Fake:
    """A backend and its network, which remember what they were told."""

    name = "fake"

    def __init__(self) -> None:
        self.facts: dict[str, object] = {"backend": "fake"}
        self.record: dict[str, object] = {}
        self.shaped: list[Any] = []
        self.plan: Plan | None = None
        self.downs = 0

    def probe(self) -> str | None:
        return None

    def up(self, plan: Plan) -> "Fake":
        self.plan = plan
        return self

    def endpoint(self, node: Node) -> Endpoint:
        return Endpoint((), "127.0.0.1", 1)

    def shape(self, node: Node, up: Direction, down: Direction) -> None:
        self.shaped.append((node.name, up, down))

    def counters(self) -> list[LinkCounters]:
        return []

    def fileno(self) -> int:
        return 3

    def failure(self) -> str | None:
        return "broken"

    def down(self) -> dict[str, object]:
        self.downs += 1
        return {"releases": 8, "lateness_p99_ms": 2.0}


LINK = LinkProfile(name="x", up=Direction(rate_kbit=900, delay_ms=1), down=Direction(delay_ms=2))


def test_a_network_is_built_and_shaped_slower_than_it_is_told() -> None:
    fake, layout = Fake(), plan([LINK, LINK], LINK)
    network = Dilated(fake, layout, 3)
    slower = dilation.profile(LINK, 3)
    assert fake.plan == plan([slower, slower], slower)
    network.shape(layout.clients[1], LINK.up, LINK.down)
    assert fake.shaped == [("client-2", slower.up, slower.down)]
    assert network.failure() == "broken" and network.fileno() == 3
    assert network.down() == {"releases": 8, "lateness_p99_ms": 2.0 / 3}


# The certificate


def paths(factor: float) -> tuple[probe_paths.Path, probe_paths.Path]:
    """A path as it is asked for, and as it is probed."""
    line = Direction(rate_kbit=8000, delay_ms=10, jitter_ms=1)
    link = LinkProfile(name="x", up=line, down=line)
    (asked,) = probe_paths.client_paths(plan([link]), streams=False)
    (probed,) = probe_paths.client_paths(plan([link]), streams=False, dilation=factor)
    return asked, probed


def seen(factor: float, rate_kbit: float, trip_ms: float) -> Arrivals:
    """What comes through a line of that rate and round trip, as much slower."""
    gap_ns = factor * 8e6 * 1514 / rate_kbit
    burst = [round(n * gap_ns) for n in range(100)]
    return Arrivals([factor * trip_ms] * 9, {"up": burst, "down": burst})


@pytest.mark.parametrize("factor", [1.0, 2.0, 12.5])
@pytest.mark.parametrize(
    ("rate_kbit", "trip_ms", "verdict"),
    [
        (8000, 20, "pass"),
        (7800, 20, "fail"),
        (8200, 20, "fail"),
        (8000, 20 + 3.9, "pass"),
        (8000, 20 + 4.3, "fail"),
    ],
)
def test_what_is_judged_is_the_emulated_line(
    factor: float, rate_kbit: float, trip_ms: float, verdict: str
) -> None:
    asked, probed = paths(factor)
    checks = fidelity.judge(probed, seen(factor, rate_kbit, trip_ms))
    plain = fidelity.judge(asked, seen(1, rate_kbit, trip_ms))
    assert fidelity.certify(checks).verdict == verdict
    for check, other in zip(checks, plain, strict=True):
        for field in ("expected", "measured", "tolerance"):
            assert getattr(check, field) == pytest.approx(getattr(other, field), rel=2e-3)
        assert (check.name, check.ok) == (other.name, other.ok)


def test_a_line_too_fast_for_single_packets_is_none_when_it_is_slower() -> None:
    line = Direction(rate_kbit=2_000_000, delay_ms=1)
    link = LinkProfile(name="x", up=line, down=line)
    (asked,) = probe_paths.client_paths(plan([link]), streams=False)
    assert asked.fast_ways == ["up", "down"]
    (probed,) = probe_paths.client_paths(plan([link]), streams=False, dilation=20)
    assert probed.fast_ways == []
    gap_ns = 8e6 * 1514 / 100_000
    burst = [round(n * gap_ns) for n in range(100)]
    checks = fidelity.judge(probed, Arrivals([40.0], {"up": burst, "down": burst}))
    assert [(check.name, check.expected, check.ok) for check in checks[1:]] == [
        ("rate", 2_000_000, True),
        ("rate", 2_000_000, True),
    ]
