"""Calibration over real links: one that is what was asked, one that is not, one that is dead.

All three are measured once, side by side. How near a figure must be is asked of made-up arrivals in
tests/unit; here a loaded machine must not matter, so that limits are wide.
"""

import os
import signal
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from testbed.calibration import datagrams, judge_line
from testbed.calibration.gates import Row
from testbed.calibration.judge import judge
from testbed.calibration.plan import schedule
from testbed.calibration.probes import Step
from testbed.calibration.runner import Job, conduct
from testbed.calibration.side import Side
from testbed.links.interface import LinkError
from testbed.links.loopback import backend as loopback
from testbed.links.userspace import backend as userspace
from testbed.network.direction import Direction
from testbed.network.profiles import LinkProfile
from testbed.network.topology import plan

SECONDS = 13.0
UP = Direction(rate_kbit=4000, delay_ms=30, loss_percent=5)
DOWN = Direction(rate_kbit=6000, delay_ms=15, jitter_ms=4)
ASKED = LinkProfile(name="asked", up=UP, down=DOWN)
OTHER = LinkProfile(
    name="other",
    up=Direction(rate_kbit=5400, delay_ms=90, loss_percent=12, queue_ms=500),
    down=Direction(rate_kbit=3000, delay_ms=35, jitter_ms=20, loss_percent=2, queue_ms=400),
)
DEAD = Direction(outage=True)
NAMES = ("good", "wrong", "dead")
GATES = ["delay", "jitter", "rate", "packet gap", "queue", "goodput", "two at once"]
GATES += ["loss", "order", "bytes"]
FAR = 0.25
"""Beyond this share a figure is not what was asked."""

Rows = dict[tuple[str, str], Row]


@pytest.fixture(scope="module")
def measured(userspace_links: None) -> Iterator[dict[str, Rows]]:
    """Rows of each link, all of which should be ASKED."""
    layout = plan([ASKED] * 2 * len(NAMES))
    network = userspace.up(layout)
    jobs = []
    for index, name in enumerate(NAMES):
        clients = layout.clients[2 * index : 2 * index + 2]
        for client in clients:
            if name == "wrong":
                network.shape(client, OTHER.up, OTHER.down)
            if name == "dead":
                network.shape(client, DEAD, DEAD)
        jobs.append(Job(schedule(replace(ASKED, name=name), SECONDS), clients))
    try:
        seen = conduct(layout, network, jobs)
    finally:
        network.down()
    yield {
        job.schedule.profile.name: {
            (row.name, row.direction): row for row in judge(job.schedule, one)
        }
        for job, one in zip(jobs, seen, strict=True)
    }


def held_up(row):
    """A loss among many drops of a full queue says nothing; no link can be blamed for it."""
    return row.name == "loss" and row.note.startswith("this machine was held up")


@pytest.mark.quiet
def test_everything_is_measured_in_both_directions(measured):
    expected = {("round trip", "both")} | {(name, way) for name in GATES for way in ("up", "down")}
    for rows in measured.values():
        assert set(rows) == expected
        left = [row for row in rows.values() if row.verdict == "not measured"]
        assert [row for row in left if not held_up(row)] == []


@pytest.mark.quiet
def test_a_good_link_is_near_what_was_asked(measured):
    rows = measured["good"]
    for name in ("rate", "two at once", "queue", "delay"):
        for way in ("up", "down"):
            row = rows[name, way]
            assert row.measured == pytest.approx(row.expected, rel=FAR), (name, way)
    assert rows["round trip", "both"].measured == pytest.approx(45, rel=FAR)
    assert rows["jitter", "down"].measured == pytest.approx(4 / 3**0.5, rel=FAR)
    assert rows["goodput", "down"].measured == pytest.approx(6000 * 1448 / 1514, rel=FAR)
    checked = [("order", "up"), ("order", "down"), ("bytes", "up")]
    if not held_up(rows["loss", "up"]):
        checked.append(("loss", "up"))
        assert rows["loss", "up"].n >= 1000
    for gate in checked:
        # These are no question of time.
        assert rows[gate].ok, rows[gate]
    assert rows["rate", "down"].n > 500
    assert rows["goodput", "up"].verdict == "not judged"


@pytest.mark.quiet
def test_a_link_that_is_not_what_was_asked_misses_each_gate_by_what_it_is(measured):
    rows = measured["wrong"]
    truth = {
        ("round trip", "both"): 125,
        ("delay", "up"): 90,
        ("delay", "down"): 35,
        ("rate", "up"): 5400,
        ("rate", "down"): 3000,
        ("two at once", "up"): 5400,
        ("two at once", "down"): 3000,
        ("jitter", "down"): 20 / 3**0.5,
        ("loss", "up"): 12,
        ("loss", "down"): 2,
    }
    for gate, value in truth.items():
        row = rows[gate]
        if held_up(row):
            continue
        assert row.ok is False, gate
        if gate[0] == "loss":
            # A busy host sends late and then all at once, and more than the loss is lost.
            assert row.measured > value / 2, gate
        else:
            assert row.measured == pytest.approx(value, rel=FAR), gate
    assert rows["goodput", "down"].ok is False and rows["goodput", "down"].measured < 3000
    assert rows["queue", "down"].ok is False and rows["queue", "down"].measured > 300
    assert rows["packet gap", "up"].ok is False
    assert rows["order", "up"].ok and rows["bytes", "up"].ok


@pytest.mark.quiet
def test_a_dead_link_says_that_nothing_came_through(measured):
    rows = measured["dead"]
    for gate in set(rows) - {("bytes", "up"), ("bytes", "down")}:
        assert rows[gate].ok is False, gate
        assert rows[gate].note == "nothing came through"


@pytest.mark.thorough
@pytest.mark.quiet
def test_links_of_streams_are_measured_by_streams():
    link = LinkProfile(
        name="relayed", up=Direction(rate_kbit=4000, delay_ms=10), down=Direction(delay_ms=15)
    )
    layout = plan([link, link])
    network = loopback.up(layout)
    try:
        plans = schedule(link, 7, streams=True)
        (seen,) = conduct(layout, network, [Job(plans, layout.clients)])
    finally:
        network.down()
    rows = {(row.name, row.direction): row for row in judge(plans, seen)}
    assert rows["round trip", "both"].measured == pytest.approx(25, rel=FAR)
    assert rows["goodput", "up"].measured == pytest.approx(4000 * 1448 / 1514, rel=FAR)
    assert rows["queue", "up"].verdict == rows["two at once", "up"].verdict == "not measured"


@pytest.mark.quiet
def test_a_line_too_fast_for_single_packets_is_filled_by_tcp(build):
    fast = LinkProfile(name="fast", up=Direction(rate_kbit=600_000, delay_ms=1, queue_ms=20))
    slower = replace(fast.up, rate_kbit=300_000)
    whole = schedule(fast, 30)
    short = replace(whole.transfer("together", 0, "up"), lead_s=0.2, window_s=0.5)
    probes = tuple(replace(short, client=client) for client in (0, 1))
    plans = replace(whole, steps=(Step("together up", probes),))
    layout, network = build(fast, fast)
    network.shape(layout.clients[1], slower, fast.down)
    (seen,) = conduct(layout, network, [Job(plans, layout.clients)])
    side = Side(plans, seen, "up")
    good, wrong = (judge_line._carried(side, "together", client, 0.03) for client in (0, 1))
    assert good.measured == pytest.approx(600_000 * 1448 / 1514, rel=FAR)
    assert wrong.ok is False and wrong.measured == pytest.approx(300_000 * 1448 / 1514, rel=FAR)


def test_a_network_that_fails_meanwhile_ends_the_measurement(build):
    layout, network = build(ASKED, ASKED)
    os.kill(network._process.pid, signal.SIGKILL)
    with pytest.raises(LinkError, match="killed by SIGKILL"):
        conduct(layout, network, [Job(schedule(ASKED, SECONDS), layout.clients)])


def test_a_process_that_measures_and_dies_is_named(build, monkeypatch):
    def dying(*_):
        return lambda channel: os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(datagrams, "pinger", dying)
    layout, network = build(ASKED, ASKED)
    with pytest.raises(LinkError, match=r"a process that measures .* was killed by SIGKILL"):
        conduct(layout, network, [Job(schedule(ASKED, SECONDS), layout.clients)])
