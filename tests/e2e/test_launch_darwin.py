"""Launch where nothing is that Linux alone has: the nearest to macOS that a Linux machine offers.

See darwin/sitecustomize.py for what is taken away. Not covered: kqueue, macOS's own TCP and
Unix sockets, and what Apple's libraries do in a forked process.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from running import CLI, FAST, LIMIT_S, all_gone

SHIM = Path(__file__).parent / "darwin"
ON_MACOS = ("env", f"PYTHONPATH={SHIM}")
SEEN = """
import ctypes, os, selectors, socket, sys
from pathlib import Path

libc = ctypes.CDLL(None)
print([
    sys.platform,
    selectors.DefaultSelector.__name__,
    hasattr(os, "sched_getaffinity"), hasattr(socket, "TCP_CONGESTION"), hasattr(libc, "prctl"),
    Path("/proc/self/status").exists(), Path("/tmp").exists(),
])
import pyroute2
"""


def on_macos(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ON_MACOS, *command], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


def test_the_disguise_holds():
    found = on_macos(sys.executable, "-c", SEEN)
    seen = ["darwin", "PollSelector", False, False, False, False, True]
    assert found.stdout == f"{seen}\n", found.stderr
    assert "ModuleNotFoundError: No module named 'pyroute2'" in found.stderr


def test_the_doctor_says_what_to_use():
    found = on_macos(*CLI, "doctor", "--json")
    assert found.stderr == ""
    rows = {row["what"]: row for row in json.loads(found.stdout)}
    assert rows["links: loopback"]["ok"]
    assert not rows["links: userspace"]["ok"]
    assert "need Linux" in rows["links: userspace"]["found"]
    assert rows["namespaces"]["found"] == "darwin has none"


@pytest.fixture(scope="module")
def run(launch_for_module):
    """Chosen by itself, to its end."""
    flags = ("--profile=ethernet", "--clients=2", "--rounds=1", *FAST)
    found = launch_for_module(*flags, prefix=ON_MACOS)
    assert found.finish() == 0, found.describe()
    return found


def test_auto_takes_loopback_and_the_run_succeeds(run):
    assert run.summary["status"] == "ok"
    assert run.summary["links"] == "loopback"
    assert "links: loopback (not " in run.stdout
    assert "need Linux" in run.stdout
    assert run.stderr == ""
    assert (run.folder / "nodes.log").read_text() == ""
    assert run.summary["rounds"][0]["clients_ok"] == 2


def test_what_only_linux_tells_is_absent(run):
    assert {event["congestion"] for event in run.events("connection")} == {None}
    usage = run.events("usage")
    assert {event["run_delay_s"] for event in usage} == {None}
    assert all(event["private_mb"] > 1 for event in usage)


def test_nothing_is_left_of_a_killed_run_without_a_parent_death_signal(launch, tmp_path):
    # In an outage clients wait, and have no reason to write to a channel that nobody reads.
    schedule = tmp_path / "outage.toml"
    schedule.write_text("[[schedule]]\nat_s = 0\noutage_s = 1000\n")
    flags = (f"--schedule={schedule}", "--profile=3g", "--clients=2", "--no-calibrate", *FAST)
    run = launch(*flags, prefix=ON_MACOS)
    for node in ("client-1", "client-2"):
        run.wait_for("shaped", node=node)
    processes = run.tree()
    assert len(processes) == 6  # Supervisor, links, zygote, server, two clients.
    os.kill(run.pid, signal.SIGKILL)
    assert not all_gone(processes)
