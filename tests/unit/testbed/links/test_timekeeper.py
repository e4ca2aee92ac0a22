"""When an elastic clock is held, released and lent, and whose turn it is."""

import contextlib
import os
import signal
import time

import pytest

from testbed import clock
from testbed.links import timekeeper
from testbed.links.timekeeper import (
    CHECK_S,
    IDLE_LOOK_S,
    LENT_S,
    LOOK_S,
    MOST_HELD_S,
    PAUSE_S,
    ElasticTime,
    MachineTime,
)
from testbed.virtual_time import _NODES, BESIDE, VirtualTime

FAR_NS = 10**9


class Bench:
    """A timekeeper of two cores, on a machine whose clock the test moves."""

    def __init__(self, virtual: VirtualTime) -> None:
        self.ns = 8 * 10**9
        self.virtual = virtual
        self.keeper = ElasticTime(virtual, cores=2, machine_cores=3)
        self.turns: list[int] = []
        self.runnable = 0
        give = virtual.give_turn

        def given(node) -> None:
            self.turns.append(node.node)
            give(node)

        virtual.give_turn = given  # type: ignore[method-assign]

    def computes(self, node: int, for_ns: int, *, in_turn: bool = False) -> None:
        until_ns = for_ns if for_ns == BESIDE else self.virtual.now_ns() + for_ns
        self.virtual.computes(node, until_ns, in_turn=in_turn)

    def look(self, in_flight: bool = False, after_s: float = 0.1) -> bool:
        """Whether time stands still after a look."""
        self.ns += round(1e9 * after_s)
        self.keeper.look(in_flight)
        return self.virtual.is_held


@pytest.fixture
def bench(monkeypatch):
    with contextlib.closing(VirtualTime(5)) as virtual:
        virtual.follows = True
        for node in range(5):
            virtual._words[_NODES + 5 + node] = os.getpid()
        bench = Bench(virtual)
        monkeypatch.setattr(time, "monotonic_ns", lambda: bench.ns)
        monkeypatch.setattr(time, "monotonic", lambda: bench.ns / 1e9)
        monkeypatch.setattr(os, "kill", lambda pid, number: None)
        monkeypatch.setattr(bench.keeper, "_runnable", lambda: bench.runnable)
        yield bench


def test_with_nobody_computing_time_goes_on(bench):
    assert not bench.look()
    assert not bench.look(in_flight=True)


@pytest.mark.parametrize(("nodes", "held"), [(1, False), (2, False), (3, True), (5, True)])
def test_without_packets_on_their_way_more_nodes_than_cores_hold_it(bench, nodes, held):
    for node in range(nodes):
        bench.computes(node, FAR_NS)
    assert bench.look() == held


def test_packets_on_their_way_go_on_until_somebody_could_be_done(bench):
    for node in range(4):
        bench.computes(node, (node + 2) * FAR_NS)
    assert not bench.look(in_flight=True, after_s=1.9)
    assert bench.look(in_flight=True, after_s=0.2)


def test_once_packets_stand_still_all_the_crowd_is_waited_for(bench):
    for node in range(4):
        bench.computes(node, (node + 1) * FAR_NS)
    assert bench.look(in_flight=True, after_s=1.1)
    bench.virtual.waits(0)
    assert bench.look(in_flight=True)
    bench.virtual.waits(1)
    assert not bench.look(in_flight=True)


def test_a_single_node_is_waited_for_once_it_could_be_done(bench):
    bench.computes(1, FAR_NS)
    assert not bench.look(after_s=0.9)
    assert bench.look(after_s=0.2)
    bench.virtual.waits(1)
    assert not bench.look()


def test_packets_that_come_while_time_stands_still_let_it_go_on(bench):
    for node in range(3):
        bench.computes(node, FAR_NS)
    assert bench.look()
    assert not bench.look(in_flight=True, after_s=0.0)


def test_what_is_done_beside_holds_it_but_no_packets(bench):
    bench.computes(1, BESIDE)
    assert not bench.look(in_flight=True)
    assert bench.look()
    assert not bench.look(in_flight=True)
    bench.virtual.waits(1)
    assert not bench.look()


def test_what_is_done_beside_is_no_part_of_the_crowd(bench):
    bench.computes(0, FAR_NS)
    bench.computes(1, FAR_NS)
    bench.computes(2, BESIDE)
    assert not bench.look(in_flight=True)


def test_outside_the_rounds_nobody_is_waited_for(bench):
    for node in range(5):
        bench.computes(node, 0)
    assert bench.look()
    bench.virtual.follows = False
    assert not bench.look()


def test_between_two_looks_nothing_changes(bench):
    bench.look()
    for node in range(3):
        bench.computes(node, FAR_NS)
    assert not bench.look(after_s=IDLE_LOOK_S / 2)
    assert bench.look(after_s=IDLE_LOOK_S)
    for node in range(3):
        bench.virtual.waits(node)
    assert bench.look(after_s=LOOK_S / 2)
    assert not bench.look(after_s=LOOK_S)


def test_turns_go_to_those_first_that_could_be_done_first(bench):
    for node, until in ((0, 4), (1, 2), (2, 3), (3, 1)):
        bench.computes(node, until * FAR_NS, in_turn=True)
    assert bench.look()
    assert bench.turns == [3, 1]
    bench.look()
    assert bench.turns == [3, 1]
    bench.virtual.waits(1)
    bench.look()
    assert bench.turns == [3, 1, 2]


def test_a_crowd_has_no_turn_beside_packets_on_their_way(bench):
    for node in range(3):
        bench.computes(node, FAR_NS, in_turn=True)
    assert not bench.look(in_flight=True)
    assert bench.turns == []
    assert bench.look()
    assert bench.turns == [0, 1]


def test_as_many_as_there_are_cores_have_their_turns_at_once(bench):
    for node in range(2):
        bench.computes(node, FAR_NS, in_turn=True)
    assert not bench.look(in_flight=True)
    assert bench.turns == [0, 1]


def test_time_pauses_while_threads_wait_for_a_core_and_no_longer(bench):
    bench.look(in_flight=True)
    bench.runnable = 4
    assert bench.look(in_flight=True, after_s=LOOK_S)
    assert bench.look(in_flight=True, after_s=PAUSE_S - 1.5 * LOOK_S)
    bench.runnable = 3
    assert not bench.look(in_flight=True, after_s=LOOK_S)
    bench.runnable = 4
    assert not bench.look(after_s=10 * LOOK_S)


def test_a_machine_that_is_busy_all_the_time_lets_time_go_on_all_the_same(bench):
    bench.look(in_flight=True)
    bench.runnable = 9
    held = [bench.look(in_flight=True, after_s=LOOK_S) for _ in range(60)]
    assert held[0] and 15 <= held.count(False) <= 30
    crowded_ms = bench.keeper.facts()["crowded_ms"]
    assert crowded_ms == pytest.approx(1000 * LOOK_S * held.count(False), abs=2)
    bench.virtual.follows = False
    assert not bench.look(in_flight=True)


def test_short_spells_take_nobodys_turn(bench):
    bench.computes(0, 0)
    bench.computes(1, 0)
    bench.computes(2, FAR_NS, in_turn=True)
    bench.look()
    assert bench.turns == [2]


def test_a_process_that_does_not_go_on_is_not_waited_for(bench):
    child = os.fork()
    if not child:
        signal.pause()
    try:
        bench.virtual._words[_NODES + 5 + 4] = child
        bench.computes(4, 0)
        assert bench.look()
        assert bench.look(after_s=2 * CHECK_S)
        _stop(child)
        assert not bench.look(after_s=2 * CHECK_S)
    finally:
        _end(child)


def _stop(pid: int) -> None:
    _kill(pid, signal.SIGSTOP)
    os.waitpid(pid, os.WUNTRACED)


def _end(pid: int) -> None:
    _kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


_kill = os.kill


def test_a_process_that_has_gone_is_not_waited_for(bench):
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    bench.virtual._words[_NODES + 5 + 4] = child
    bench.computes(4, 0)
    assert not bench.look(after_s=2 * CHECK_S)


def test_time_goes_on_no_further_than_its_keeper_will_look_again(bench):
    bench.look()
    due = bench.keeper.now() + 0.001
    assert bench.keeper.wait_s(due) == pytest.approx(0.001)
    bench.ns += 10**9
    assert bench.keeper.now() == pytest.approx(due + LENT_S)
    bench.virtual.follows = False
    bench.keeper.wait_s(due)
    bench.ns += 10**9
    assert bench.keeper.now() == pytest.approx(due + LENT_S + 1)


def test_lines_that_have_fallen_behind_are_lent_nothing(bench):
    bench.look()
    due = bench.keeper.now() - 2 * LENT_S
    assert bench.keeper.wait_s(due) < 0
    now = bench.keeper.now()
    bench.ns += 10**9
    assert bench.keeper.now() == now


def test_while_time_stands_still_the_next_look_is_waited_for(bench):
    for node in range(3):
        bench.computes(node, FAR_NS)
    assert bench.look()
    assert bench.keeper.wait_s(bench.keeper.now()) == pytest.approx(LOOK_S)


def test_without_an_elastic_clock_lines_go_by_the_machines():
    keeper = timekeeper.of_run()
    assert isinstance(keeper, MachineTime)
    assert keeper.now() <= time.monotonic() <= keeper.now() + 1
    assert 9 < keeper.wait_s(time.monotonic() + 10) <= 10


def test_a_run_with_an_elastic_clock_has_one_keeper():
    with clock.elastic(2):
        assert isinstance(timekeeper.of_run(), ElasticTime)


def test_who_computes_without_an_end_is_waited_for_no_longer(bench):
    for node in range(3):
        bench.computes(node, FAR_NS)
    for _ in range(100):
        assert bench.look(after_s=MOST_HELD_S / 100)
    bench.virtual.waits(1)
    bench.computes(4, FAR_NS)
    # Somebody got on.
    for _ in range(100):
        assert bench.look(after_s=MOST_HELD_S / 100)
    for _ in range(3):
        bench.look(after_s=MOST_HELD_S / 100)
    assert not bench.virtual.is_held


def test_packets_are_late_by_a_clock_that_waits_for_their_line_and_by_no_other(bench):
    bench.virtual.follows = False
    bench.keeper.wait_s(0.0)
    bench.keeper.lateness.add(5.0)
    bench.virtual.follows = True
    bench.keeper.wait_s(0.0)
    bench.keeper.lateness.add(0.0005)
    bench.virtual.follows = False
    bench.keeper.wait_s(0.0)
    bench.keeper.lateness.add(6.0)
    assert bench.keeper.facts()["lateness_max_ms"] == pytest.approx(0.5)
    assert bench.keeper.facts()["releases"] == 1


def test_standing_still_is_counted_and_with_packets_on_their_way_measured(bench):
    for node in range(3):
        bench.computes(node, FAR_NS)
    assert bench.look(after_s=0.5)
    assert not bench.look(in_flight=True)
    assert bench.look(in_flight=True, after_s=1.0)
    assert bench.look(in_flight=True, after_s=0.25)
    assert bench.look(in_flight=True, after_s=0.25)
    for node in range(3):
        bench.virtual.waits(node)
    assert not bench.look(after_s=5.0)
    facts = bench.keeper.facts()
    assert (facts["holds"], facts["holds_in_flight"]) == (2, 1)
    assert facts["longest_hold_in_flight_ms"] == pytest.approx(500)
