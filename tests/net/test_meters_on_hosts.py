"""What runs on several machines leave in their folder, as those of one do: words and captures."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import captured
import pytest
from machines import LIMIT_S, Make, said
from test_runs_on_hosts import LINKS, PLACE

pytestmark = [pytest.mark.timeout(3 * LIMIT_S), pytest.mark.quiet]


def test_captures_of_all_hosts_are_in_the_runs_folder(machines: Make):
    found = machines()
    found.agent(1)
    began_s = time.time()
    run = found.launch("--rounds=2", "--pcap", "--no-calibrate", PLACE, *LINKS)
    text = said(run)
    assert run.returncode == 0, text
    (told,) = found.events("captured")
    assert told["failure"] is None and told["dropped"] == [0, 0, 0, 0]
    (folder,) = (found.folder / "out").glob("*/captures")
    names = [f"client-{number}.pcap" for number in (1, 2, 3, 4)]
    assert sorted(path.name for path in folder.iterdir()) == names
    files = [captured.read(folder / name) for name in names]
    assert [len(packets) for packets in files] == told["packets"]
    # Every host's times are the driver's.
    bounds = [(packets[0].time_ns / 1e9, packets[-1].time_ns / 1e9) for packets in files]
    assert all(began_s < first < last < time.time() for first, last in bounds)
    sent = found.summary()["bytes"]["wire"]["up"]
    assert sum(path.stat().st_size for path in folder.iterdir()) > sent


def test_what_nodes_of_another_host_write_is_in_the_runs_log(
    machines: Make, until: Callable[..., Any]
):
    found = machines()
    # A node that is aborted writes where it was.
    found.agent(1, environment={"PYTHONFAULTHANDLER": "1"})
    run = found.launch("--rounds=4", "--no-calibrate", PLACE, *LINKS)
    until(lambda: found.events("round"), "a round", LIMIT_S)
    (pid,) = (event["pid"] for event in found.events("started") if event["node"] == "client-3")
    os.kill(pid, signal.SIGABRT)
    text = said(run)
    assert run.returncode == 0, text
    (log,) = (found.folder / "out").glob("*/nodes.log")
    lines = log.read_text().splitlines()
    assert "host b: client-3: Fatal Python error: Aborted" in lines
    assert all(line.startswith("host b: client-3: ") for line in lines)
