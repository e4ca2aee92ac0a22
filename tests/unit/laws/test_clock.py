"""No clock but ours in what runs in a run, held by reading it."""

import ast

import pytest
from sources import Source, inside, parsed, read

IN_A_RUN = inside("methods", "nodes", "testbed")
ON_THE_HOSTS_CLOCK = {
    "testbed/clock.py": "is made from it",
    "testbed/virtual_time.py": "is made from it",
    "testbed/links/": "real packets",
    "testbed/calibration/": "real packets",
    "testbed/metering/capture.py": "real packets",
    "testbed/fidelity/udp_probe.py": "real packets",
    "testbed/fidelity/saturation_probe.py": "real packets",
    "testbed/fidelity/settling.py": "real packets",
    "testbed/probing/timestamps.py": "real packets",
    "testbed/processes/child.py": "a process and its end",
    "testbed/record/recovery.py": "before a run",
    "testbed/run/hosts/": "hosts, which no run slows down",
    "testbed/run/standstill.py": "whether ours goes on",
    "testbed/run/stops.py": "whether who looks goes on",
    "testbed/exec/": "programs go by it, and no run of theirs is dilated",
    "testbed/library/": "the same",
    "nodes/accelerated_compute.py": "seconds that a GPU computes, as a processor's",
    "nodes/workload/pretrain.py": "no run",
    "nodes/workload/text/pretrain.py": "no run",
}
"""Files and folders that may ask the machine's clock, and why."""
OF_NO_CLOCK = {"mktime", "process_time", "strftime", "strptime", "thread_time"}
"""A processor's time, and a date as text."""


def host_clock(source: Source) -> list[str]:
    """Where a module asks the machine's clock, or waits by it."""
    found = []
    for line, name, attribute in source.attributes:
        dotted = f"{name}.{attribute}"
        if name == "time" and attribute not in OF_NO_CLOCK:
            found.append(f"{line}: {dotted}")
        if dotted in ("asyncio.run", "asyncio.Runner", "datetime.now", "datetime.utcnow"):
            found.append(f"{line}: {dotted}")
    for node in source.named:
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            found.append(f"{node.lineno}: from time import")
        elif isinstance(node, ast.Import):
            found += [
                f"{node.lineno}: time as {each.asname}"
                for each in node.names
                if each.name == "time" and each.asname
            ]
    return found


def exempt(name: str) -> list[str]:
    return [place for place in ON_THE_HOSTS_CLOCK if name == place or name.startswith(place)]


def test_what_runs_in_a_run_asks_no_other_clock() -> None:
    found = {name: host_clock(read(name)) for name in IN_A_RUN if not exempt(name)}
    assert len(found) > 50
    assert {name: where for name, where in found.items() if where} == {}


def test_each_exemption_is_needed() -> None:
    used = {place for name in IN_A_RUN if host_clock(read(name)) for place in exempt(name)}
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
    assert host_clock(parsed(source))
    others = "import time\nclock.sleep(1)\ntime.thread_time()\nclock.run(main())"
    assert not host_clock(parsed(others))
