"""Emulated time: the machine's clock, slower by a factor, in every wait of a run."""

import ast
import asyncio
import time
from pathlib import Path

import pytest

from testbed import clock

ROOT = Path(__file__).parents[2]
NODES = [*(ROOT / "nodes").glob("*.py"), ROOT / "testbed/transport.py", ROOT / "testbed/record.py"]
WITHOUT_RUN = {"pretrain.py", "trial.py"}
"""Before a run, or without one."""
ON_THE_HOSTS_CLOCK = {"thread_time", "strftime"}


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


@pytest.mark.parametrize("path", NODES, ids=lambda path: path.name)
def test_what_runs_in_a_run_asks_no_other_clock(path: Path) -> None:
    if path.name in WITHOUT_RUN:
        return
    for found in ast.walk(ast.parse(path.read_text())):
        if isinstance(found, ast.Attribute) and isinstance(found.value, ast.Name):
            own = found.value.id != "time" or found.attr in ON_THE_HOSTS_CLOCK
            assert own, f"{path.name}:{found.lineno}: time.{found.attr} is not emulated time"
            asks = found.value.id == "asyncio" and found.attr == "run"
            assert not asks, f"{path.name}:{found.lineno}: clock.run is in emulated time"
