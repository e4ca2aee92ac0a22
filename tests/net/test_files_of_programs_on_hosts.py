"""Files that programs write on other machines: they are in the run's folder as of one machine."""

import os
import shlex
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from machines import LIMIT_S, Make, alive, below, said
from test_programs_on_hosts import HERE_AND_THERE, PYTHON, UNPROBED, all_write

SIZE = 3_000_000
WRITES = f"""
import os, socket
os.chdir(os.environ["WIRETUNE_DIR"])
os.umask(0o027)
os.makedirs(b"runs/a b\\n\\xff/empty")
with open(b"runs/a b\\n\\xff/weights", "wb") as file:
    file.write(bytes(range(250)) * {SIZE // 250})
os.symlink(b"runs/a b\\n\\xff/weights", "latest")
open("-rf", "w").close()
open("tool", "w").write("#!/bin/sh\\n")
os.chmod("tool", 0o755)
for number in range(600):
    with open(f"runs/{{number}}", "w") as file:
        file.write("x")
"""
ODD = """
os.mkfifo("pipe")
os.symlink("/etc/passwd", "away")
socket.socket(socket.AF_UNIX).bind("socket")
"""
pytestmark = pytest.mark.timeout(3 * LIMIT_S)


def seen(folder: Path) -> dict[bytes, tuple[int, int, bytes]]:
    """All that is below: mode, owner, and what it has or where it leads."""
    found = {}
    for above, folders, files in os.walk(os.fsencode(folder)):
        for name in folders + files:
            path = above + b"/" + name
            status = os.lstat(path)
            what = b""
            if stat.S_ISLNK(status.st_mode):
                what = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                what = Path(os.fsdecode(path)).read_bytes()
            found[path[len(os.fsencode(folder)) :]] = status.st_mode, status.st_uid, what
    return found


def test_what_a_program_leaves_elsewhere_is_what_it_leaves_here(machines: Make):
    found = machines()
    agent = found.agent(1)
    script = found.folder / "writes.py"
    script.write_text(WRITES)
    odd = found.folder / "odd.py"
    odd.write_text(WRITES + ODD)
    writes = f"{PYTHON} {shlex.quote(str(script))}"
    more = f"{PYTHON} {shlex.quote(str(odd))}"
    place = "--place=server=a,client-1=a,client-2=b,client-3=b"
    run = found.execute(
        *("--profile=delay 5ms", "--clients=3", "--no-calibrate", place, "--server=true"),
        f"--client=[ $WIRETUNE_NODE = client-3 ] && exec {more}; exec {writes}",
    )
    text = said(run)
    assert run.returncode == 0, text
    (nodes,) = (found.folder / "out").glob("*/nodes")
    here, there, odder = (seen(nodes / f"client-{number}") for number in (1, 2, 3))
    assert here == there == odder and len(here) > 600
    summary = found.summary()
    brought = {row["node"]: row.get("brought") for row in summary["programs"]}
    whole = {"host": "b", "files": 603, "bytes": SIZE + 610, "left_out": []}
    assert brought["server"] is None and brought["client-1"] is None
    assert brought["client-2"] == whole
    assert brought["client-3"] == whole | {
        "left_out": [
            "1 that lead out of the folder, such as 'away'",
            "2 that are pipes, sockets, devices or mounts, such as 'pipe'",
        ]
    }
    hosts = {row["name"]: row.get("files_brought") for row in summary["hosts"]}
    assert hosts == {"a": None, "b": 1206}
    assert "client-2: 603 files, 3.00 MB, of its folder on host b came here" in text
    assert "of client-3's own folder on host b this is not here" in text
    page = (nodes.parent / "report.html").read_text()
    assert "1,206 files with 6,001,220 bytes from host b" in page
    assert agent.poll() is None and not alive(below(agent))


@pytest.mark.patient
def test_a_run_that_fails_by_a_lost_host_has_the_files_of_the_others(
    machines: Make, until: Callable[..., Any]
):
    found = machines(3)
    found.agent(1)
    lost = found.agent(2)
    run = found.execute(
        *(*UNPROBED, "--place=server=a,client-1=b,client-2=c", "--on-lost-host=stop", "--"),
        *("sh", "-c", "echo so far > $WIRETUNE_DIR/far; echo here; sleep 600"),
    )
    until(lambda: all_write(found), "all of them", LIMIT_S, run)
    lost.kill()
    text = said(run)
    assert run.returncode == 1 and "host c is gone" in text
    paths = (found.folder / "out").glob("*/nodes/*/far")
    assert sorted(path.parent.name for path in paths) == ["client-1", "server"]
    assert "of client-2's own folder on host c this is not here" in text


def test_a_folder_in_which_a_program_starts_is_brought_too(machines: Make):
    """``cwd`` may be the node's own folder; any other folder is the host's, and stays there."""
    found = machines()
    found.agent(1)
    table = found.folder / "net.toml"
    table.write_text(
        'clients = 2\nserver = "true"\nclient = "echo x > mine"\n'
        '[nodes."client-*"]\ncwd = "$WIRETUNE_DIR"\n'
    )
    run = found.execute("-f", str(table), "--profile=delay 5ms", "--no-calibrate", HERE_AND_THERE)
    text = said(run)
    assert run.returncode == 0, text
    paths = (found.folder / "out").glob("*/nodes/*/mine")
    assert sorted(path.parent.name for path in paths) == ["client-1", "client-2"]


@pytest.mark.parametrize("end", ["driver asked", "driver killed", "agent killed"])
def test_who_ends_while_files_come_leaves_no_part_of_one_and_no_process(
    machines: Make, until: Callable[..., Any], end: str
):
    found = machines()
    agent = found.agent(1)
    writes = "cd $WIRETUNE_DIR; echo x > a; head -c 900000000 /dev/zero > b"
    run = found.execute(
        *("--profile=delay 5ms", "--clients=1", "--place=server=a,client-1=b", "--no-calibrate"),
        *("--server=true", f"--client={writes}"),
    )
    came = found.folder / "out"
    until(lambda: list(came.glob("*/nodes/client-1/b")), "a part of it", LIMIT_S, run)
    processes = below(run) | below(agent)
    if end == "driver asked":
        run.send_signal(signal.SIGINT)
    else:
        (run if end == "driver killed" else agent).kill()
    text = said(run)
    assert not alive(processes)
    (folder,) = came.glob("*/nodes/client-1")
    assert (folder / "a").read_text() == "x\n"
    if end == "driver killed":
        # As of a program that is killed as it writes.
        assert agent.poll() is None and not below(agent)
        return
    why = {"driver asked": "the run was interrupted", "agent killed": "host b is gone"}[end]
    assert f"what had not come: {why}" in text
    assert run.returncode == (130 if end == "driver asked" else 0), text
    assert not (folder / "b").exists()
    (row,) = [row for row in found.summary()["programs"] if row["node"] == "client-1"]
    assert (row["brought"]["files"], row["code"]) == (1, 0)
