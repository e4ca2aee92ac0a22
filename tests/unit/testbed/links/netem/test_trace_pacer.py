"""Stepping the rates of traced lines: when, to what, and what happens when it is late."""

import struct

import pytest

from testbed.links.linux import netlink
from testbed.links.netem import trace_pacer
from testbed.network import traces
from testbed.network.direction import FRAME_BYTES, MTU_BYTES

DEVICE = 1001
PERIOD_MS = 400


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def rates(monkeypatch):
    """Every (device, bytes/s) that the kernel is told."""
    found = []

    def change(route, kind, flags, body):
        # struct tcmsg, then the kind, then the options with one tc_htb_opt; the rate is its third.
        (device,) = struct.unpack_from("=i", body, 4)
        options = netlink.attributes(netlink.attributes(memoryview(body)[20:])[2])
        found.append((device, struct.unpack_from("=I", options[1], 8)[0]))

    monkeypatch.setattr(netlink, "change", change)
    return found


@pytest.fixture
def trace(tmp_path):
    """Two chances in the first 100 ms, none, four, one; then again."""
    path = tmp_path / "x.trace"
    path.write_text("\n".join(map(str, [10, 100, 210, 220, 230, 300, PERIOD_MS])) + "\n")
    return traces.load(str(path))


def frames_per_s(bytes_per_s: int) -> float:
    return bytes_per_s / FRAME_BYTES


def test_a_trace_is_followed_from_its_first_line_and_wraps(rates, trace):
    clock = Clock()
    pacer = trace_pacer.Pacer(None, clock)
    pacer.start(DEVICE, trace)
    seen = []
    for _ in range(6):
        clock.now += pacer.wait_s()
        pacer.step()
        seen.append((round(1000 * (clock.now - 50)), round(frames_per_s(rates[-1][1]), 1)))
    # A step without a chance lasts until the next one: one in 110 ms.
    first = [(0, 20.0), (100, 9.1), (210, 30.0), (310, 11.1)]
    assert seen == [*first, (400, 20.0), (500, 9.1)]
    assert (pacer.steps, pacer.late_steps) == (6, 0)


def test_a_trace_counts_ip_packets_and_the_class_frames(rates, trace):
    pacer = trace_pacer.Pacer(None, Clock())
    pacer.start(DEVICE, trace)
    pacer.step()
    assert rates == [(DEVICE, round(20 * MTU_BYTES * FRAME_BYTES / MTU_BYTES))]


def test_being_late_passes_over_steps_that_are_past_and_shifts_none(rates, trace):
    clock = Clock()
    pacer = trace_pacer.Pacer(None, clock)
    pacer.start(DEVICE, trace)
    pacer.step()
    clock.now += 0.450
    pacer.step()
    # The one that holds by then has the rate of the first.
    assert [round(frames_per_s(rate)) for _, rate in rates] == [20]
    assert pacer.late_steps == 4
    assert pacer.late_max_s == pytest.approx(0.350)
    assert pacer.wait_s() == pytest.approx(0.050)


def test_a_line_starts_over_and_stops_alone(rates, trace):
    clock = Clock()
    pacer = trace_pacer.Pacer(None, clock)
    pacer.start(DEVICE, trace)
    pacer.start(DEVICE + 3, trace)
    pacer.step()
    clock.now += 0.060
    pacer.start(DEVICE, trace)
    assert pacer.wait_s() == 0
    pacer.step()
    assert pacer.wait_s() == pytest.approx(0.040)
    pacer.stop(DEVICE + 3)
    assert pacer.wait_s() == pytest.approx(0.100)
    pacer.stop(DEVICE)
    assert pacer.wait_s() is None
    assert [device for device, _ in rates] == [DEVICE, DEVICE + 3, DEVICE]
