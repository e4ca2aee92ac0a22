"""Emulated time: the machine's clock, slower by a factor, in every wait of a run."""

import asyncio
import os
import socket
import time

import pytest

from testbed import clock
from testbed.virtual_time import BESIDE


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the machine's clock says, and then every sleep asked of it."""
    told = [80.0]
    monkeypatch.setattr(time, "monotonic", lambda: told[0])
    monkeypatch.setattr(time, "monotonic_ns", lambda: round(1e9 * told[0]))
    monkeypatch.setattr(time, "sleep", told.append)
    return told


def test_without_dilation_it_is_the_machines_clock(host: list[float]) -> None:
    assert clock.monotonic() == 80
    assert clock.monotonic_ns() == 80_000_000_000
    clock.sleep(3)
    assert host[1] == 3 == clock.host_s(3)


def test_a_second_takes_as_many_of_the_machines(host: list[float]) -> None:
    with clock.dilated(8):
        assert clock.dilation() == 8
        before, before_ns = clock.monotonic(), clock.monotonic_ns()
        host[0] += 4
        assert clock.monotonic() - before == 0.5
        assert clock.monotonic_ns() - before_ns == 500_000_000
        clock.sleep(3)
        assert host[1] == 24 == clock.host_s(3)
    assert clock.dilation() == 1


def test_the_factor_ends_with_an_error_too() -> None:
    with pytest.raises(RuntimeError), clock.dilated(8):
        raise RuntimeError
    assert clock.dilation() == 1


def test_no_wait_is_longer_than_a_poll_can_be() -> None:
    with clock.dilated(10_000):
        assert 1000 * clock.host_s(1e6) < 2**31


def test_sleeps_and_limits_of_asyncio_are_of_this_clock() -> None:
    async def main() -> tuple[float, float]:
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(0.01)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 0.01)
        return began, asyncio.get_running_loop().time()

    with clock.dilated(5):
        at = time.monotonic()
        began, ended = clock.run(main())
        taken = time.monotonic() - at
    assert 0.02 <= ended - began <= taken / 5
    assert taken >= 0.1


def test_an_elastic_clock_stands_still_with_its_virtual_time(host: list[float]) -> None:
    with clock.elastic(1):
        virtual = clock.virtual()
        assert virtual is not None and clock.dilation() == 1
        assert (clock.monotonic(), clock.of_links()) == (80.0, 80.0)
        virtual.hold()
        host[0] = 85.0
        assert (clock.monotonic(), clock.monotonic_ns()) == (80.0, 80_000_000_000)
        assert (clock.of_links(), clock.held_s()) == (80.0, 5.0)
        virtual.release()
        host[0] = 86.0
        assert clock.monotonic() == 81.0
    assert clock.virtual() is None and clock.held_s() == 0.0
    assert clock.monotonic() == 86.0


@pytest.mark.parametrize(("asked", "elastic"), [("elastic", True), (1.0, False), (12.0, False)])
def test_the_clock_of_a_run_is_the_one_asked_for(asked: float | str, elastic: bool) -> None:
    with clock.emulated(asked, 3):
        assert (clock.virtual() is not None) == elastic
        assert clock.dilation() == (1 if elastic else asked)


def test_who_sleeps_by_a_clock_that_stands_still_sleeps_on() -> None:
    with clock.elastic(1):
        virtual = clock.virtual()
        assert virtual is not None
        virtual.hold()
        read, write = os.pipe()
        child = os.fork()
        if not child:
            began = clock.monotonic()
            os.write(write, b"!")
            clock.sleep(0.01)
            os._exit(0 if clock.monotonic() >= began + 0.01 else 1)
        os.read(read, 1)
        # Twice as long as it means to sleep, on the machine's clock.
        time.sleep(0.02)
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        virtual.release()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        os.close(read)
        os.close(write)


def test_limits_of_asyncio_stand_still_too() -> None:
    async def main() -> float:
        virtual = clock.virtual()
        assert virtual is not None
        virtual.hold()
        loop = asyncio.get_running_loop()
        began = loop.time()
        sleeping = asyncio.create_task(asyncio.sleep(0.001))
        done, _ = await asyncio.wait({sleeping, asyncio.create_task(read(loop))},
                                     return_when=asyncio.FIRST_COMPLETED)  # fmt: skip
        assert sleeping not in done
        virtual.release()
        await sleeping
        return loop.time() - began

    async def read(loop: asyncio.AbstractEventLoop) -> None:
        # What arrives is taken while no time passes.
        came = asyncio.Event()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            loop.add_reader(ours, came.set)
            theirs.send(b"!")
            await came.wait()
            loop.remove_reader(ours)

    with clock.elastic(1):
        assert clock.run(main()) >= 0.001


class Told:
    """What a node's place is told."""

    def __init__(self) -> None:
        self.expected_s = 2.0

    def woken(self) -> float:
        return self.expected_s


def place() -> tuple[int, int]:
    """When this node will not be done before, and whether it is beside; 0 where it waits."""
    virtual = clock.virtual()
    assert virtual is not None
    found = [each.until_ns for each in virtual.computing()]
    return (found or [0])[0], len(found)


def test_a_node_computes_unless_it_waits(host: list[float], monkeypatch) -> None:
    monkeypatch.setattr(clock, "_node", None)
    told = Told()
    with clock.elastic(2):
        clock.take_place(1, told.woken)
        assert place() == (82_000_000_000, 1)
        with clock.waiting():
            assert place() == (0, 0)
            told.expected_s = 0.5
        assert place() == (80_500_000_000, 1)
        with clock.beside():
            assert place() == (BESIDE, 1)
        assert place() == (80_500_000_000, 1)


def test_without_an_elastic_clock_a_node_has_no_place(monkeypatch) -> None:
    monkeypatch.setattr(clock, "_node", None)
    clock.take_place(1, Told().woken)
    with clock.waiting(), clock.beside():
        clock.wait_turn()
    clock.follow(True)


def test_a_clock_that_is_another_machines_is_ahead_by_what_is_known_of_it() -> None:
    before = clock.monotonic()
    with clock.ahead(1234.5):
        assert before + 1234.5 <= clock.monotonic() <= time.monotonic() + 1234.5
        assert before + 1234 < clock.monotonic_ns() / 1e9 < time.monotonic() + 1235
        with clock.dilated(10.0):
            assert (before + 1234.5) / 10 <= clock.monotonic() <= (time.monotonic() + 1235) / 10
    assert clock.monotonic() < before + 1234
