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


OTHER_WALL_CLOCK = """
import socket, struct, time
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
"""
"""A day later, as programs and the kernel's stamps have it."""


def test_a_host_whose_wall_clock_is_a_day_ahead_changes_nothing(machines: Make):
    found = machines()
    (found.folder / "sitecustomize.py").write_text(OTHER_WALL_CLOCK)
    places = [str(found.folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    found.agent(1, environment={"PYTHONPATH": os.pathsep.join(places)})
    began_s = time.time()
    run = found.launch("--rounds=2", "--pcap", PLACE, *LINKS)
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


@pytest.mark.parametrize(("host", "node"), [("a", "client-1"), ("b", "client-3")])
def test_what_nodes_write_is_in_the_runs_log_by_host_and_node(
    machines: Make,
    until: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    node: str,
):
    # A node that is aborted writes where it was.
    monkeypatch.setenv("PYTHONFAULTHANDLER", "1")
    found = machines()
    found.agent(1)
    run = found.launch("--rounds=4", "--no-calibrate", PLACE, *LINKS)
    until(lambda: found.events("round"), "a round", LIMIT_S)
    (pid,) = (event["pid"] for event in found.events("started") if event["node"] == node)
    os.kill(pid, signal.SIGABRT)
    text = said(run)
    assert run.returncode == 0, text
    (log,) = (found.folder / "out").glob("*/nodes.log")
    lines = log.read_text().splitlines()
    assert f"host {host}: {node}: Fatal Python error: Aborted" in lines
    assert all(line.startswith(f"host {host}: {node}: ") for line in lines)
