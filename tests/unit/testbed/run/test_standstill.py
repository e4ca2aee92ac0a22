"""A clock that stands still because nobody keeps it."""

import time
from types import SimpleNamespace

import pytest

from testbed import clock
from testbed.links.interface import LinkError
from testbed.run.standstill import LIMIT_S, LOOK_S, Standstill

STOPPED = SimpleNamespace(halted=lambda: "the link process is stopped")
RUNS = SimpleNamespace(halted=lambda: None)


@pytest.fixture
def machine(monkeypatch):
    told = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: told[0])
    monkeypatch.setattr(time, "monotonic_ns", lambda: round(1e9 * told[0]))
    return told


def test_a_clock_without_its_keeper_ends_the_run(machine):
    with clock.elastic(1):
        watched = Standstill()
        assert watched.wait_s == LOOK_S
        clock.virtual().hold()
        machine[0] += LIMIT_S - 1
        watched.check(STOPPED)
        machine[0] += 1
        watched.check(RUNS)
        with pytest.raises(LinkError, match="the link process is stopped, and with it for 30 s"):
            watched.check(STOPPED)


def test_a_clock_that_goes_on_does_not(machine):
    with clock.elastic(1):
        watched = Standstill()
        machine[0] += 10 * LIMIT_S
        watched.check(STOPPED)


def test_the_machines_own_clock_does_not(machine):
    watched = Standstill()
    assert watched.wait_s == float("inf")
    watched.check(STOPPED)
