"""Emulated time: the machine's clock, slower by a factor, in every wait of a run."""

import ast
import asyncio
import time
from pathlib import Path

import pytest

from testbed import clock

ROOT = Path(__file__).parents[3]
MODULES = {
    str(path.relative_to(ROOT)): path
    for folder in ("methods", "nodes", "testbed")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
ON_THE_HOSTS_CLOCK = {
    "testbed/clock.py": "is made from it",
    "testbed/links/": "real packets",
    "testbed/calibration/": "real packets",
    "testbed/metering/capture.py": "real packets",
    "testbed/fidelity/udp_probe.py": "real packets",
    "testbed/fidelity/saturation_probe.py": "real packets",
    "testbed/probing/timestamps.py": "real packets",
    "testbed/fidelity/tcp_probe.py": "real packets",
    "testbed/processes/child.py": "a process and its end",
    "testbed/record/recovery.py": "before a run",
    "nodes/workload/pretrain.py": "no run",
}
"""Files and folders that may ask the machine's clock, and why."""
OF_NO_CLOCK = {"mktime", "process_time", "strftime", "strptime", "thread_time"}
"""A processor's time, and a date as text."""


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


def host_clock(source: str) -> list[str]:
    """Where a module asks the machine's clock, or waits by it."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            if node.value.id == "time" and node.attr not in OF_NO_CLOCK:
                found.append(f"{node.lineno}: {name}")
            if name in ("asyncio.run", "asyncio.Runner", "datetime.now", "datetime.utcnow"):
                found.append(f"{node.lineno}: {name}")
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            found.append(f"{node.lineno}: from time import")
        elif isinstance(node, ast.Import):
            found += [f"{node.lineno}: time as {a.asname}" for a in node.names
                      if a.name == "time" and a.asname]  # fmt: skip
    return found


def exempt(name: str) -> list[str]:
    return [place for place in ON_THE_HOSTS_CLOCK if name == place or name.startswith(place)]


def test_what_runs_in_a_run_asks_no_other_clock() -> None:
    found = {name: host_clock(path.read_text()) for name, path in MODULES.items()
             if not exempt(name)}  # fmt: skip
    assert len(found) > 50
    assert {name: where for name, where in found.items() if where} == {}


def test_each_exemption_is_needed() -> None:
    used = {place for name, path in MODULES.items() if host_clock(path.read_text())
            for place in exempt(name)}  # fmt: skip
    assert used == ON_THE_HOSTS_CLOCK.keys()


@pytest.mark.parametrize(
    "source",
    [
        "import time\ntime.monotonic()",
        "import time\ntime.sleep(1)",
        "def f(clock=time.time): pass",
        "from time import sleep",
        "import time as machine",
        "asyncio.run(main())",
        "datetime.now()",
    ],
)
def test_the_law_sees_every_way_to_ask(source: str) -> None:
    assert host_clock(source)
    assert not host_clock("import time\nclock.sleep(1)\ntime.thread_time()\nclock.run(main())")
