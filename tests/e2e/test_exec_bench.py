"""`cli.py bench --exec` as a user types it: programs over profiles, a failed one, a second time."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from running import CLI, LIMIT_S, ROOT

PYTHON = f"{shlex.quote(sys.executable)} -S"
SIZE = 50_000
FETCH = (
    f"{PYTHON} -c 'import urllib.request as r;"
    ' print(len(r.urlopen("http://server:8000/f").read()))\''
)


def command(*words, code=0):
    done = subprocess.run([*CLI, *words], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == code, done.stderr + done.stdout
    assert "None" not in done.stdout
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def files(folder, userspace_links):
    (folder / "f").write_bytes(os.urandom(SIZE))
    common = f'''
clients = 2
calibrate = false
until = "clients"
wait_port = 8000
server = """cd {folder}; exec {PYTHON} -m http.server 8000"""
'''
    (folder / "net.toml").write_text(f'{common}client = """{FETCH}"""\n')
    (folder / "bad.toml").write_text(f'{common}client = """exit 28"""\non_failure = "continue"\n')
    return [f"--exec={folder / name}.toml" for name in ("net", "bad")]


@pytest.fixture(scope="module")
def flags(folder, files):
    return ["bench", *files, "--profiles=wifi,ethernet", f"--out={folder / 'runs'}"]


@pytest.fixture(scope="module")
def first(flags):
    return command(*flags, code=1)


def test_each_case_has_its_exit_codes_seconds_and_bytes(first, folder):
    rows = json.loads((folder / "runs" / "comparison.json").read_text())["rows"]
    assert [(row["row"], row["links"]) for row in rows] == [
        *(("net", "wifi, 2 clients"), ("bad", "wifi, 2 clients")),
        *(("net", "ethernet, 2 clients"), ("bad", "ethernet, 2 clients")),
    ]
    for net, bad in (rows[:2], rows[2:]):
        assert net["exits"] == "server stopped (143); clients 0" and net["seconds"] > 0
        assert 2 * SIZE < 1e6 * net["down_mb"] < 3 * SIZE and net["up_mb"] < net["down_mb"]
        assert bad["exits"] == "server stopped (143); clients 28" and bad["runs_failed"] == 1
        assert bad["down_mb"] < net["down_mb"]
    assert "server stopped (143); clients 28" in first.stdout
    # Whichever was first.
    assert re.search("a failure in bad-wifi-2c: client-[12] exited with 28\n", first.stderr)
    page = (folder / "runs" / "comparison.html").read_text()
    assert "On wifi with 2 clients: exec " in page and "None" not in page


def test_a_second_time_only_what_failed_runs_again(first, flags, folder):
    again = command(*flags, "--json", code=1)
    assert again.stderr.count("there already") == 2
    assert len(list((folder / "runs").glob("net-*/*/summary.json"))) == 2
    assert len(list((folder / "runs").glob("bad-*/*/summary.json"))) == 4
    assert len(json.loads(again.stdout)["rows"]) == 4


def test_its_runs_are_compared_listed_and_exported(first, folder):
    runs = folder / "runs"
    shown = command("compare", runs, f"--out={folder / 'again.html'}").stdout
    assert "4 runs of programs" in shown
    assert "exec" in command("results", f"--out={folder}").stdout
    (run,) = {path.parent for path in runs.glob("net-wifi-2c/*/summary.json")}
    command("export", run, "--csv")
    assert (run / "readings.csv").read_text().startswith("t_s,node,wire_up_bytes,wire_down_bytes")
