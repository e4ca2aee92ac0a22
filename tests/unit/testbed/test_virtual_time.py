"""Virtual time, by a machine's clock of the test's own, and across processes."""

import contextlib
import os
import signal
import time

import pytest

from testbed import virtual_time
from testbed.virtual_time import BESIDE, VirtualTime


class Machine:
    ns = 5_000_000_000


@pytest.fixture
def machine(monkeypatch):
    machine = Machine()
    monkeypatch.setattr(time, "monotonic_ns", lambda: machine.ns)
    return machine


@pytest.fixture
def virtual():
    with contextlib.closing(VirtualTime(3)) as virtual:
        yield virtual


def test_it_is_the_machines_until_it_is_held(machine, virtual):
    assert virtual.now_ns() == machine.ns
    assert (virtual.is_held, virtual.held_s) == (False, 0.0)


def test_what_it_stood_still_is_missing_ever_after(machine, virtual):
    virtual.hold()
    machine.ns += 2_000_000_000
    virtual.hold()
    assert (virtual.now_ns(), virtual.is_held) == (5_000_000_000, True)
    assert virtual.held_s == 2.0
    virtual.release()
    virtual.release()
    machine.ns += 1
    assert (virtual.now_ns(), virtual.held_s) == (5_000_000_001, 2.0)
    virtual.hold()
    machine.ns += 500_000_000
    assert virtual.held_s == 2.5


def test_it_goes_no_further_than_it_is_lent(machine, virtual):
    virtual.lend(0.001)
    machine.ns += 600_000
    assert virtual.now_ns() == 5_000_600_000
    machine.ns += 50_000_000
    assert virtual.now_ns() == 5_001_000_000
    virtual.lend(0.002)
    machine.ns += 1_500_000
    assert virtual.now_ns() == 5_002_500_000
    # What is lent before the last has run out begins where time is.
    virtual.lend(0.001)
    machine.ns += 5_000_000
    assert virtual.now_ns() == 5_003_500_000
    assert virtual.held_s == pytest.approx(0.0536)


def test_what_is_given_has_no_end(machine, virtual):
    virtual.lend(0.001)
    machine.ns += 3_000_000
    virtual.give()
    machine.ns += 900_000_000
    assert virtual.now_ns() == 5_901_000_000


def test_who_waits_for_its_release_is_woken(virtual):
    virtual.wait_released(60)
    virtual.hold()
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, b"!")
        virtual.wait_released(60)
        os._exit(0 if not virtual.is_held else 1)
    os.read(read, 1)
    virtual.release()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(read)
    os.close(write)


def test_all_processes_see_one_time(virtual):
    before = virtual.now_ns()
    virtual.hold()
    child = os.fork()
    if not child:
        os._exit(0 if before <= virtual.now_ns() < before + 10**9 and virtual.is_held else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_who_computes_stands_with_those_first_that_could_be_done_first(virtual):
    virtual.take_place(0)
    virtual.computes(2, 30)
    virtual.computes(0, BESIDE)
    virtual.computes(1, 20, in_turn=True)
    found = virtual.computing()
    assert [(each.until_ns, each.node, each.waits) for each in found] == [
        (20, 1, True),
        (30, 2, False),
        (BESIDE, 0, False),
    ]
    assert found[2].pid == os.getpid()
    assert not any(each.takes_turn for each in found)
    virtual.waits(2)
    assert [each.node for each in virtual.computing()] == [1, 0]


def test_a_node_that_needs_no_turn_waits_for_none(virtual):
    virtual.follows = True
    virtual.computes(0, 20)
    virtual.wait_turn(0)


def test_nobody_waits_for_a_turn_while_nobody_gives_any(virtual):
    virtual.computes(0, 20, in_turn=True)
    virtual.wait_turn(0)


def test_a_turn_begins_when_it_is_given_and_ends_with_waiting(virtual):
    virtual.follows = True
    read, write = os.pipe()
    child = os.fork()
    if not child:
        virtual.take_place(1)
        virtual.computes(1, 20, in_turn=True)
        os.write(write, b"!")
        virtual.wait_turn(1)
        os.write(write, b"?")
        time.sleep(60)
    try:
        assert os.read(read, 1) == b"!"
        (waiting,) = virtual.computing()
        assert (waiting.pid, waiting.waits, waiting.takes_turn) == (child, True, False)
        virtual.give_turn(waiting)
        assert os.read(read, 1) == b"?"
        (computing,) = virtual.computing()
        assert (computing.waits, computing.takes_turn) == (False, True)
        virtual.waits(1)
        assert virtual.computing() == []
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)


def test_a_turn_for_a_process_that_has_gone_is_no_error(virtual):
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    virtual.give_turn(virtual_time.Computing(20, 1, child, True, False))


def test_it_goes_back_for_nobody_while_its_keeper_changes_how_it_goes(virtual):
    child = os.fork()
    if not child:
        for turn in range(5000):
            virtual.lend(0.001)
            virtual.hold()
            virtual.release()
            if turn % 10 == 0:
                virtual.give()
        os._exit(0)
    last_ns, worst_ns = virtual.now_ns(), 0
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        for _ in range(50):
            now_ns = virtual.now_ns()
            worst_ns = max(worst_ns, last_ns - now_ns)
            last_ns = now_ns
    assert (worst_ns, ended[1]) == (0, 0)


@pytest.mark.parametrize("held", [False, True])
def test_who_reads_it_amid_a_change_waits_for_that(machine, virtual, monkeypatch, held):
    if held:
        virtual.hold()
    machine.ns += 300
    kept_ns = virtual.now_ns()
    assert virtual._change()[1] == kept_ns
    assert virtual.is_held is held
    machine.ns += 2000

    def by_its_keeper(_):
        virtual._words[virtual_time._STATE] = -kept_ns

    monkeypatch.setattr(time, "sleep", by_its_keeper)
    assert virtual.now_ns() == kept_ns


@pytest.mark.parametrize("held", [False, True])
def test_a_keeper_killed_amid_a_change_leaves_time_as_it_went(virtual, monkeypatch, held):
    monkeypatch.setattr(virtual_time, "_CHANGED_S", 0.05)
    if held:
        virtual.hold()
    before_ns = virtual.now_ns()
    child = os.fork()
    if not child:
        virtual._change()
        os._exit(0)
    os.waitpid(child, 0)
    assert virtual.now_ns() - before_ns == 0 if held else virtual.now_ns() > before_ns
    assert virtual.is_held is held
