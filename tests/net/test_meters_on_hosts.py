"""What runs on several machines leave in their folder, as those of one do: words and captures."""

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import captured
import pytest
from machines import CLI, LIMIT_S, Make, said
from test_runs_on_hosts import MANY, PLACE, SMALL

pytestmark = pytest.mark.timeout(3 * LIMIT_S)


OTHER_WALL_CLOCK = f"""
import os, runpy, socket, struct, sys, time
AHEAD_S = 86_400
now, now_ns, receive = time.time, time.time_ns, socket.socket.recvmsg
time.time = lambda: now() + AHEAD_S
time.time_ns = lambda: now_ns() + 1_000_000_000 * AHEAD_S

def recvmsg(*told):
    data, ancillary, *rest = receive(*told)
    moved = []
    for level, kind, part in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, 35):  # SO_TIMESTAMPNS
            seconds, nanoseconds = struct.unpack("@qq", part[:16])
            part = struct.pack("@qq", seconds + AHEAD_S, nanoseconds)
        moved.append((level, kind, part))
    return data, moved, *rest

socket.socket.recvmsg = recvmsg
sys.path[0] = os.path.dirname({CLI[1]!r})
runpy.run_path({CLI[1]!r}, run_name="__main__")
"""
"""The program a day later, as it and the kernel's stamps have it."""


def test_a_host_whose_wall_clock_is_a_day_ahead_changes_nothing(machines: Make):
    found = machines()
    program = found.folder / "ahead.py"
    program.write_text(OTHER_WALL_CLOCK)
    found.agent(1, program=(sys.executable, str(program)))
    began_s = time.time()
    run = found.launch("--rounds=2", "--pcap", PLACE, *SMALL)
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
    summary = found.summary()
    trips = [each for each in summary["fidelity"]["checks"] if each["name"] == "round trip"]
    assert {each["link"] for each in trips} == {path.stem for path in folder.iterdir()}
    # By a wrong clock they would be a day.
    assert all(each["measured"] < 10 * each["expected"] for each in trips)
    took_s = [(e["received_ns"] - e["sent_ns"]) / 1e9 for e in found.events("message")]
    assert all(0 <= each < 60 for each in took_s)
    sent = summary["bytes"]["wire"]["up"]
    assert sum(path.stat().st_size for path in folder.iterdir()) > sent


def test_what_nodes_write_is_in_the_runs_log_by_host_and_node(
    machines: Make, until: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    # A node that is aborted writes where it was.
    monkeypatch.setenv("PYTHONFAULTHANDLER", "1")
    found = machines()
    found.agent(1)
    run = found.launch(f"--rounds={MANY}", "--no-calibrate", PLACE, *SMALL)
    until(lambda: found.events("round"), "a round", LIMIT_S, run)
    pids = {event["node"]: event["pid"] for event in found.events("started")}
    for node in ("client-1", "client-3"):
        os.kill(pids[node], signal.SIGABRT)
    text = said(run)
    assert run.returncode == 0, text
    (log,) = (found.folder / "out").glob("*/nodes.log")
    lines = log.read_text().splitlines()
    for each in ("host a: client-1: ", "host b: client-3: "):
        assert f"{each}Fatal Python error: Aborted" in lines
    assert all(line.startswith(("host a: client-1: ", "host b: client-3: ")) for line in lines)
