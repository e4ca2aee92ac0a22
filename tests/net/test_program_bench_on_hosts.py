"""Benches of programs on several machines: each run is one of exec there, by the same agents."""

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from machines import LIMIT_S, Machines, Make, alive, below, said

PYTHON = f"{shlex.quote(sys.executable)} -S"
SIZE = 100_000
PROFILES = ("rate 10mbit delay 10ms", "rate 20mbit delay 10ms")
PLACE = "server=a,client-1=a,client-2=b"
NET = f"""
clients = 2
calibrate = false
server = "exec {PYTHON} -m http.server 8000"
client = '''{PYTHON} -c 'import urllib.request as r
print(len(r.urlopen("http://server:8000/f").read()))' '''
wait_port = 8000
until = "clients"
"""
WAITS = """
clients = 2
calibrate = false
profile = "rate 10mbit delay 10ms"
on_failure = "continue"
command = ["sh", "-c", "echo here; while [ ! -e go ]; do sleep 0.1; done"]
"""
pytestmark = pytest.mark.timeout(4 * LIMIT_S)


def bench(found: Machines, file: Path, *flags: str) -> Any:
    return found.bench(f"--exec={file}", f"--place={PLACE}", *flags)


def written(found: Machines, name: str, text: str, more: str = "") -> Path:
    file = found.folder / name
    file.write_text(f"cwd = {json.dumps(str(found.folder))}\n{text}{more}")
    return file


def test_a_bench_of_programs_has_runs_of_exec_on_the_hosts_and_is_found_again(machines: Make):
    found = machines()
    (found.folder / "f").write_bytes(bytes(SIZE))
    net = written(found, "net.toml", NET)
    absent = bench(found, net)
    assert "host b at 10.1.0.2:7400: no agent answers" in said(absent)
    assert absent.returncode == 2
    agent = found.agent(1)
    lacks = written(found, "lacks.toml", NET, '[nodes.client-2]\ncommand = ["/nowhere/x"]\n')
    refused = bench(found, lacks)
    text = said(refused)
    assert refused.returncode == 2, text
    assert "error: lacks, 4g, 2 clients: hosts = " in text
    assert "host b at 10.1.0.2:7400: client-2: '/nowhere/x': no such program is there" in text
    assert not list((found.folder / "bench").iterdir())
    made = bench(found, net, *(f"--profiles={each}" for each in PROFILES))
    text = said(made)
    assert made.returncode == 0, text
    assert [event["place"] for event in found.events("hosts", "bench")] == [PLACE] * 2
    for path in (found.folder / "bench").glob("*/*/nodes/client-*/stdout.txt"):
        assert path.read_text() == f"{SIZE}\n"
    whole = json.loads((found.folder / "bench" / "comparison.json").read_text())
    assert [row["exits"] for row in whole["rows"]] == ["server stopped (143); clients 0"] * 2
    assert all(row["down_mb"] > 2 * SIZE / 1e6 for row in whole["rows"])
    assert len(whole["hosts"]) == 2
    for own, other in whole["hosts"].values():
        assert (own["nodes"], other["nodes"], own["rtt_ms"]) == (2, 1, None)
        assert other["rtt_ms"] >= 1 and other["rate_to_kbit"] > 0 and other["frames"] > 0
    assert "the hosts" in text and "b 10.1.0.2" in text
    assert agent.poll() is None and not alive(below(agent))
    said(agent)
    # Where it is carried out is no part of what it is, and what is there needs no host.
    again = found.start(
        *(0, "bench", f"--exec={net}", "--plain", f"--out={found.folder / 'bench'}"),
        *(f"--profiles={each}" for each in PROFILES),
    )
    text = said(again)
    assert again.returncode == 0 and text.count(": there already") == 2, text


def test_a_run_that_loses_a_host_has_no_result_and_is_made_again_once_it_is_back(
    machines: Make, until: Callable[..., Any]
):
    found = machines()
    waits = written(found, "waits.toml", WAITS)
    agent = found.agent(1)
    made = bench(found, waits)
    until(lambda: len(found.events("started", "bench")) == 3, "programs", LIMIT_S, made)
    agent.kill()
    text = said(made)
    assert made.returncode == 1, text
    assert "no result of waits-" in text and ": failed: host b is gone: " in text
    whole = json.loads((found.folder / "bench" / "comparison.json").read_text())
    assert whole["rows"] == [] and len(whole["without_result"]) == 1
    (found.folder / "go").touch()
    found.agent(1)
    again = bench(found, waits)
    text = said(again)
    assert again.returncode == 0, text
