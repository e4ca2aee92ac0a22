"""Stops of a run's processes: who stood still, for how long, by looks at a clock of the test's."""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from testbed import clock
from testbed.metering import meter
from testbed.processes import states
from testbed.run.stops import LOOK_S, STILL_S, Stops

SERVER, CLIENT = 11, 12


class Bench:
    """Stops of two nodes, on a machine whose clock and processes are the test's."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.held: set[int] = set()
        self.slower = 1.0
        self.worked_s = 0.0
        self.said: list[tuple[str, float]] = []
        self.stops = Stops(lambda by, event: self.said.append((event.peer, event.seconds)))
        self.stops.watch("server", SERVER)
        self.stops.watch("client-1", CLIENT)

    def looks(self, count: int = 1, after_s: float = LOOK_S) -> None:
        for _ in range(count):
            self.now_s += after_s
            self.stops.look()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    found: list[Bench] = []
    monkeypatch.setattr(time, "monotonic", lambda: found[0].now_s if found else 0.0)
    monkeypatch.setattr(
        clock, "monotonic", lambda: time.monotonic() / found[0].slower if found else 0.0
    )
    monkeypatch.setattr(time, "thread_time", lambda: found[0].worked_s if found else 0.0)
    monkeypatch.setattr(meter, "thread_delay_s", lambda: 0.0)
    monkeypatch.setattr(states, "is_held", lambda pid: pid in found[0].held)
    found.append(Bench())
    return found[0]


def test_who_goes_on_is_not_told_of(bench: Bench) -> None:
    bench.stops.begin()
    bench.looks(10)
    bench.stops.end()
    assert bench.said == []


@pytest.mark.parametrize("slower", [1.0, 4.0])
def test_a_node_that_stands_still_is_told_of_once_it_goes_on(bench: Bench, slower: float) -> None:
    bench.slower = slower
    bench.stops.begin()
    bench.looks(3)
    bench.held = {CLIENT}
    bench.looks(6)
    assert bench.said == []
    bench.held = set()
    bench.looks(3)
    assert bench.said == [("client-1", 6 * LOOK_S / slower)]


def test_who_stands_still_as_rounds_end_is_told_of_and_who_has_ended_too(bench: Bench) -> None:
    bench.stops.begin()
    bench.looks()
    bench.held = {SERVER, CLIENT}
    bench.looks(2)
    bench.stops.forget("client-1")
    bench.looks()
    assert bench.said == [("client-1", 2 * LOOK_S)]
    bench.stops.end()
    assert bench.said[1:] == [("server", 3 * LOOK_S)]
    bench.looks(5)
    assert len(bench.said) == 2


def test_before_rounds_nobody_is_looked_at(bench: Bench) -> None:
    bench.held = {SERVER}
    bench.looks(5)
    bench.stops.begin()
    bench.held = set()
    bench.looks(5)
    assert bench.said == []


def test_what_stops_who_looks_is_told_of_itself(bench: Bench) -> None:
    bench.stops.begin()
    bench.looks(2)
    bench.looks(after_s=10.0)
    assert bench.said == [("supervisor", 10.0)]
    bench.looks(after_s=LOOK_S + STILL_S - 0.1)
    # It was at work all the time.
    bench.worked_s += 10.0
    bench.looks(after_s=10.0)
    assert len(bench.said) == 1


def test_an_elastic_clock_that_stood_still_as_well_has_lost_nothing(bench: Bench) -> None:
    bench.stops.begin()
    bench.looks(2)
    bench.slower = 1e6
    bench.looks(after_s=10.0)
    assert bench.said == []


def test_it_is_looked_at_twice_a_second_and_at_many_less_often(bench: Bench) -> None:
    assert bench.stops.wait_s == float("inf")
    bench.stops.begin()
    assert bench.stops.wait_s == 0
    bench.looks()
    assert bench.stops.wait_s == pytest.approx(LOOK_S)
    for node in range(1000):
        bench.stops.watch(f"client-{node}", 100 + node)
    bench.looks()
    assert 1.5 < bench.stops.wait_s < 2.5


@pytest.fixture
def child() -> Iterator[int]:
    pid = os.fork()
    if not pid:
        while True:
            signal.pause()
    yield pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_a_process_that_is_stopped_is_held_and_no_other(child: int) -> None:
    assert not states.is_held(child)
    os.kill(child, signal.SIGSTOP)
    os.waitpid(child, os.WUNTRACED)
    assert states.is_held(child) and not states.is_held(os.getpid())
    os.kill(child, signal.SIGCONT)
    os.waitpid(child, os.WCONTINUED)
    assert not states.is_held(child)
    assert not states.is_held(2**22 + 1)
