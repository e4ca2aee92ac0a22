"""`cli.py exec` where it is called oddly: who is told what, and what is left of it."""

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from running import CLI, GONE_S, ROOT, Run, all_gone

LOOK = "cat /proc/[0-9]*/environ | tr '\\0' '\\n' | grep -c s3cret; env | grep -c WIRETUNE_TOKEN"


def output_of(run: Run, node: str) -> str:
    return (run.folder / "nodes" / node / "stdout.txt").read_text()


def test_no_node_gets_the_token_of_the_hosts(execute, monkeypatch):
    """Neither from its own environment nor from that of its first process."""
    monkeypatch.setenv("WIRETUNE_TOKEN", "s3cret" * 6)
    run = execute("--clients=1", "--", "sh", "-c", f"{LOOK}; true")
    assert run.finish() == 0, run.describe()
    for node in ("server", "client-1"):
        assert output_of(run, node) == "0\n0\n"


def test_a_node_may_start_in_its_own_folder(execute, tmp_path):
    file = tmp_path / "net.toml"
    file.write_text(
        'clients = 1\nserver = "true"\n'
        '[nodes.client-1]\ncommand = ["touch", "mine"]\ncwd = "$WIRETUNE_DIR"\n'
    )
    run = execute(f"--file={file}")
    assert run.finish() == 0, run.describe()
    assert (run.folder / "nodes" / "client-1" / "mine").exists()


@pytest.mark.parametrize("prefix", [["root"], ["nobody"]], ids=lambda each: each[0])
def test_it_needs_no_home_and_no_terminal_that_can_do_much(execute, request, prefix):
    """A service's environment: of a few variables, and those as narrow as they can be."""
    user = [] if prefix == ["root"] else request.getfixturevalue("without_capabilities")
    kept = [f"{name}={os.environ[name]}" for name in ("PATH", "PYTHONPATH") if name in os.environ]
    bare = ["env", "-i", *kept, "TERM=dumb", "COLUMNS=1", "LINES=0"]
    run = execute(
        "--clients=1", "--", "sh", "-c", "echo ${HOME-none} $COLUMNS", prefix=[*bare, *user]
    )
    assert run.finish() == 0, run.describe()
    assert output_of(run, "client-1") == "none 1\n"
    assert "client-1: none 1\n" in run.stdout
    assert "\x1b" not in run.stdout and run.stderr == ""


def test_a_hundred_nodes_are_each_a_machine_of_its_own(execute):
    run = execute("--clients=99", "--", "sh", "-c", "hostname; hostname -i; echo $$ $PPID")
    assert run.finish() == 0, run.describe()
    assert output_of(run, "server").split()[0] == "server"
    said = [output_of(run, f"client-{number}").split() for number in range(1, 100)]
    assert [each[0] for each in said] == [f"client-{number}" for number in range(1, 100)]
    assert len({each[1] for each in said}) == 99
    assert {each[-1] for each in said} == {"1"}
    assert len(run.summary["programs"]) == 100


def test_nothing_is_left_of_twenty_nodes_whose_run_is_killed(execute):
    line = "trap '' TERM INT HUP; setsid sleep 300 & echo ready; while :; do sleep 300; done"
    run = execute("--clients=19", "--", "sh", "-c", line)
    for number in range(1, 20):
        run.wait_for("started", node=f"client-{number}")
    run.hold_namespaces()
    tree = run.tree()
    os.kill(run.pid, signal.SIGKILL)
    assert all_gone(tree) == []
    run.process.wait(GONE_S)
    assert run.held_namespaces() == set()


@pytest.fixture
def small_disk(root):
    """A disk with little more room than a run asks for."""
    with tempfile.TemporaryDirectory(prefix="of-a-test-") as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=34m", "none", folder], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


def test_a_disk_that_fills_ends_the_run_with_the_reason(small_disk, userspace_links, tmp_path):
    (tmp_path / "out").symlink_to(small_disk)
    write = f"{shlex.quote(sys.executable)} -S -c 'print(40_000_000 * chr(45))'; sleep 100"
    words = (
        "--profile=4g",
        "--no-calibrate",
        "--clients=1",
        "--grace=0.5",
        "--",
        "sh",
        "-c",
        write,
    )
    run = Run(tmp_path / "out", *words, command="exec")
    try:
        run.wait_for("started", node="client-1")
        tree = run.tree()
        assert run.finish() == 1, run.describe()
        assert "No space left on device" in run.stderr and "Traceback" not in run.stderr
        assert all_gone(tree) == []
    finally:
        run.end()


def test_a_disk_that_is_full_is_said_before_anything_starts(small_disk, userspace_links):
    (small_disk / "others").write_bytes(bytes(33 << 20))
    run = Run(small_disk / "out", "--clients=1", "--", "true", command="exec")
    assert run.finish() == 2
    assert "MB free on that disk, a run needs 34 MB" in run.stderr
    assert run.folders == []


@pytest.mark.parametrize("whom", ["the bench", "its group"])
def test_a_bench_of_programs_that_is_interrupted_asks_them_to_end(whom, tmp_path, userspace_links):
    line = "trap 'echo caught; exit 5' INT TERM; echo ready; while :; do sleep 0.05; done"
    (tmp_path / "net.toml").write_text(
        f'clients = 1\ncalibrate = false\ncommand = ["sh", "-c", """{line}"""]\n'
    )
    words = (
        "bench",
        f"--exec={tmp_path / 'net.toml'}",
        "--profiles=wifi,4g",
        f"--out={tmp_path / 'out'}",
    )
    bench = subprocess.Popen(
        [*CLI, *words],
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        pattern = "net-wifi-1c/*/nodes/client-1/stdout.txt"
        while not any("ready" in path.read_text() for path in (tmp_path / "out").glob(pattern)):
            assert bench.poll() is None
        tree = {psutil.Process(bench.pid), *psutil.Process(bench.pid).children(recursive=True)}
        (os.killpg if whom == "its group" else os.kill)(bench.pid, signal.SIGINT)
        bench.communicate(timeout=20)
    finally:
        bench.kill()
        bench.wait()
    assert bench.returncode == 130
    (said,) = (tmp_path / "out").glob(pattern)
    assert said.read_text() == "ready\ncaught\n"
    summary = json.loads((said.parents[2] / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert list((tmp_path / "out").glob("net-4g-1c/*/summary.json")) == []
    assert all_gone(tree) == []


def test_a_program_that_stands_still_is_told_and_one_that_holds_its_own_is_not(execute):
    holds = "sleep 600 & kill -STOP $!; sleep 3; kill -KILL $!"
    run = execute("--clients=1", f"--server={holds}", "--client=exec sleep 4.25")
    run.wait_for("started", node="client-1")
    program = run.wait_for_process("sleep", "4.25")
    program.suspend()
    time.sleep(2)
    program.resume()
    assert run.finish() == 0, run.describe()
    summary = run.summary
    assert list(summary["stopped"]) == ["client-1"]
    assert 1 < summary["stopped"]["client-1"] < 4.25
    host = summary["fidelity"]["host"]
    assert host["verdict"] == "fail" and "client-1 stood still for " in host["reason"]
