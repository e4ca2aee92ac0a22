"""Programs of anybody's on several machines: what they find, what is metered, and how they end."""

import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import captured
import pytest
from machines import LIMIT_S, Machines, Make, alive, below, said

RTT_MS = 20
LINKS = (f"--profile=rate 10mbit delay {RTT_MS // 2}ms", "--clients=2")
UNPROBED = (*LINKS, "--no-calibrate")
PYTHON = f"{shlex.quote(sys.executable)} -S"
SIZE = 400_000
FETCH = (
    f"{PYTHON} -c 'import socket, time, urllib.request as r\n"
    "trips = []\n"
    "for _ in range(5):\n"
    " began = time.monotonic()\n"
    ' socket.create_connection(("server", 8000)).close()\n'
    " trips.append(1000 * (time.monotonic() - began))\n"
    "print(min(trips))\n"
    'print(len(r.urlopen("http://server:8000/f").read()))\''
)
WAITS = f"{PYTHON} -c 'import time; print(\"here\", flush=True); time.sleep(600)'"
HERE_AND_THERE = "--place=server=a,client-1=a,client-2=b"
pytestmark = pytest.mark.timeout(3 * LIMIT_S)


def output(found: Machines, node: str, stream: str = "stdout", out: str = "out") -> str:
    (path,) = (found.folder / out).glob(f"*/nodes/{node}/{stream}.txt")
    return path.read_text()


def all_write(found: Machines, word: str = "here") -> bool:
    return all(
        word in path.read_text() for path in (found.folder / "out").glob("*/nodes/*/stdout.txt")
    ) and bool(found.events("started")[2:])


def exits(found: Machines, out: str = "out") -> dict[str, tuple[int, bool]]:
    rows = found.summary(out)["programs"]
    return {row["node"]: (row["code"], row["stopped"]) for row in rows}


@pytest.mark.quiet
@pytest.mark.parametrize("server", "ab")
def test_clients_on_both_hosts_find_the_server_and_are_metered_alike(machines: Make, server: str):
    found = machines()
    agent = found.agent(1)
    served = found.folder / "served"
    served.mkdir()
    (served / "f").write_bytes(os.urandom(SIZE))
    run = found.execute(
        *(*LINKS, f"--place=server={server},client-1=a,client-2=b", "--pcap"),
        *("--wait-port=8000", "--until=clients", f"--client={FETCH}"),
        f"--server=cd {served}; exec {PYTHON} -m http.server 8000",
    )
    text = said(run)
    assert run.returncode == 0, text
    summary = found.summary()
    checks = summary["fidelity"]["checks"]
    # Probed on either host; whether they hold is a matter of what else this machine does.
    probed = {check["link"] for check in checks if check["name"] == "round trip"}
    assert probed == {"client-1", "client-2"}
    assert exits(found) == {"server": (143, True), "client-1": (0, False), "client-2": (0, False)}
    for client in summary["per_client"]:
        trip_ms, size = output(found, client["name"]).split()
        # The hosts' network is hidden in the lines' own delay, a slow machine is not.
        assert RTT_MS <= float(trip_ms) < 1.5 * RTT_MS
        assert int(size) == SIZE
        assert f"{client['name']}: {SIZE}\n" in text
        down = client["bytes"]["wire"]["down"]
        assert SIZE < down < 1.2 * SIZE and 0 < client["bytes"]["wire"]["up"] < down / 4
    first, second = (client["bytes"]["wire"]["down"] for client in summary["per_client"])
    assert abs(first - second) < 0.02 * SIZE
    flows = {row["node"]: row["flows"] for row in summary["programs"]}
    assert {flow["peer"] for flow in flows["server"]} == {"10.1.0.1", "10.1.0.2"}
    assert output(found, "server", "stderr").count("GET /f") == 2
    # Every node's packets, the server's too, wherever it is.
    (folder,) = (found.folder / "out").glob("*/captures")
    packets = {path.stem: len(captured.read(path)) for path in folder.iterdir()}
    (told,) = found.events("captured")
    assert [packets[node] for node in told["nodes"]] == told["packets"]
    assert told["nodes"] == ["server", "client-1", "client-2"] and min(told["packets"]) > 0
    assert [row["name"] for row in summary["hosts"]] == ["a", "b"]
    assert agent.poll() is None and not alive(below(agent))


def test_a_program_that_fails_elsewhere_ends_the_run_with_its_own_code(machines: Make):
    found = machines()
    found.agent(1)
    fails = 'echo there; echo "$WIRETUNE_DIR" > "$WIRETUNE_DIR/mine"; exit 7'
    run = found.execute(
        *(*UNPROBED, HERE_AND_THERE, f"--server={WAITS}"),
        f"--client=[ $WIRETUNE_NODE = client-1 ] && exec {WAITS}; {fails}",
    )
    text = said(run)
    assert run.returncode == 7, text
    assert exits(found) == {"server": (143, True), "client-1": (143, True), "client-2": (7, False)}
    assert output(found, "client-2") == "there\n"
    assert "failed: client-2 exited with 7" in text
    # Its own folder there was nowhere but in memory that was its own, and has come here.
    (folder,) = (found.folder / "out").glob("*/nodes/client-2")
    there = Path((folder / "mine").read_text().strip())
    assert there != folder and there.name == "client-2" and not there.exists()


def test_programs_of_an_agent_that_is_killed_are_lost_and_the_others_go_on(
    machines: Make, until: Callable[..., Any]
):
    found = machines()
    agent = found.agent(1)
    run = found.execute(
        *(*UNPROBED, HERE_AND_THERE, "--on-failure=continue", "--time-limit=600"),
        f"--server={WAITS}",
        f"--client=echo here; cd {found.folder}; while [ ! -e go ]; do sleep 0.1; done",
        "--until=clients",
    )
    until(lambda: all_write(found), "all of them", LIMIT_S, run)
    theirs = below(agent)
    assert len(theirs) >= 4  # The part, its spawner and links, an init and its program.
    agent.kill()
    assert not alive(theirs)
    (lost,) = until(lambda: found.events("lost"), "word of it", LIMIT_S, run)
    assert (lost["peer"], lost["reason"]) == ("client-2", "host b is gone")
    (found.folder / "go").touch()
    text = said(run)
    assert run.returncode == 1, text
    assert exits(found) == {"server": (143, True), "client-1": (0, False), "client-2": (1, False)}
    assert "client-2 was lost: host b is gone" in text
    summary = found.summary()
    assert summary["fidelity"]["host"]["verdict"] == "fail"
    assert "host b is gone" in summary["fidelity"]["host"]["reason"]
    assert [event["host"] for event in found.events("host_gone")] == ["b"]
    assert output(found, "client-2") == "here\n"
    (row,) = [row for row in summary["programs"] if row["node"] == "client-2"]
    lost = {"host": "b", "files": 0, "bytes": 0, "left_out": ["all of it: host b is gone"]}
    assert row["brought"] == lost
    assert "of client-2's own folder on host b this is not here" in text


def test_an_interrupt_reaches_programs_on_all_hosts(machines: Make, until: Callable[..., Any]):
    found = machines()
    agent = found.agent(1)
    heard = (
        "trap 'echo heard; echo last > $WIRETUNE_DIR/words; exit 3' INT; echo here; "
        "while :; do sleep 0.1; done"
    )
    run = found.execute(*UNPROBED, HERE_AND_THERE, "--", "sh", "-c", heard)
    until(lambda: all_write(found), "all of them", LIMIT_S, run)
    run.send_signal(signal.SIGINT)
    text = said(run)
    assert run.returncode == 130, text
    assert exits(found) == dict.fromkeys(("server", "client-1", "client-2"), (3, True))
    assert output(found, "client-2") == "here\nheard\n"
    folders = list((found.folder / "out").glob("*/nodes/*/words"))
    assert sorted(path.parent.name for path in folders) == ["client-1", "client-2", "server"]
    assert agent.poll() is None and not alive(below(agent))


@pytest.mark.patient
def test_who_does_not_end_within_the_grace_time_is_killed_on_every_host(machines: Make):
    found = machines()
    agent = found.agent(1)
    deaf = "trap '' TERM; echo here; sleep 600 & while :; do sleep 0.1; done"
    run = found.execute(
        *(*UNPROBED, HERE_AND_THERE, "--time-limit=15", "--grace=0.5"), "--", "sh", "-c", deaf
    )
    text = said(run)
    assert run.returncode == 124, text
    assert exits(found) == dict.fromkeys(("server", "client-1", "client-2"), (137, True))
    assert not alive(below(agent))


@pytest.mark.patient
def test_a_driver_that_is_killed_leaves_nothing_and_its_agent_has_the_next_run(
    machines: Make, until: Callable[..., Any]
):
    found = machines()
    agent = found.agent(1)
    run = found.execute(*UNPROBED, HERE_AND_THERE, "--", "sh", "-c", WAITS)
    until(lambda: all_write(found), "all of them", LIMIT_S, run)
    processes = below(run) | below(agent)
    os.kill(run.pid, signal.SIGKILL)
    assert not alive(processes)
    again = found.execute(*UNPROBED, HERE_AND_THERE, "--", "true", out="again")
    text = said(again)
    assert again.returncode == 0, text


def test_what_a_host_lacks_is_refused_before_anything_starts(machines: Make):
    found = machines()
    missing = "host b at 10.1.0.2:7400: client-2: '/nowhere/x': no such program is there"
    found.agent(1)
    table = found.folder / "net.toml"
    table.write_text(
        'clients = 2\nserver = "true"\nclient = "true"\n[nodes.client-2]\n'
        'command = ["/nowhere/x"]\n'
    )
    run = found.execute("-f", str(table), HERE_AND_THERE)
    assert missing in said(run) and run.returncode == 2
    netem = found.execute("--links=netem", *UNPROBED, "--", "true")
    assert "a run on several hosts has links of userspace" in said(netem)
    assert netem.returncode == 2 and not (found.folder / "out").exists()
