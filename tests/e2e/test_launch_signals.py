"""A run that is told to stop, in a round and while it starts: nothing of it is left."""

import contextlib
import os
import signal
import socket
import sys

import psutil
import pytest
from running import FAST, Run, all_gone

FOREVER = ("--rounds=1000", "--time-limit=150", "--profile=ethernet", "--clients=2", *FAST)
"""Beyond a test's own limit, so that a killed pytest leaves nothing for long."""
INTERRUPTED = 130
IN_A_TERMINAL = (
    "import fcntl, os, sys, termios\n"
    "terminal = os.open(sys.argv[1], os.O_RDWR)\n"
    "fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)\n"
    "for number in range(3):\n"
    "    os.dup2(terminal, number)\n"
    "os.execv(sys.argv[2], sys.argv[2:])\n"
)


def nothing_left(run: Run, processes: set[psutil.Process]) -> None:
    assert not all_gone(processes)
    assert not run.held_namespaces()
    assert not [name for _, name in socket.if_nameindex() if name.startswith("wire")]


def in_a_round(run: Run) -> set[psutil.Process]:
    """Wait for the second round; returns what must be gone at the end."""
    run.wait_for("round_started", round=2)
    processes = run.tree()
    assert len(processes) == 6  # Supervisor, links, zygote, server, two clients.
    run.hold_namespaces()
    return processes


def check_interrupted(run: Run, reason: str) -> None:
    summary = run.summary
    assert (summary["status"], summary["reason"]) == ("interrupted", reason)
    assert summary["rounds_done"] >= 1
    assert summary["rounds"][0]["finished"]
    assert summary["bytes"]["payload"]["up"] > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_a_round_ends_everything(launch, best_links, number):
    run = launch(best_links, *FOREVER)
    left = in_a_round(run)
    run.wait_for("message", node="server", round=2)
    # As a terminal does: to every process of the group.
    os.killpg(run.pid, number)
    assert run.finish() == INTERRUPTED, run.describe()
    nothing_left(run, left)
    check_interrupted(run, f"stopped by {number.name}")
    # What came of the round that was not finished has crossed the wire too.
    found = run.summary["bytes"]
    assert all(found["wire"][way] > found["payload"][way] for way in ("up", "down"))
    assert run.events("closed")[0]["status"] == "interrupted"
    assert run.stderr == f"interrupted: stopped by {number.name}\n"


def test_more_interrupts_change_nothing(launch, best_links):
    run = launch(best_links, *FOREVER, anew=True)  # With an end of Python's own.
    left = in_a_round(run)
    os.killpg(run.pid, signal.SIGINT)
    os.killpg(run.pid, signal.SIGTERM)
    # Until its end, for which the summary and the report are still to be written.
    while run.process.poll() is None:
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid, number)
    assert run.finish() == INTERRUPTED, run.describe()
    # Of two within microseconds either may be the first that is heard.
    named = {f"interrupted: stopped by {number}\n": number for number in ("SIGINT", "SIGTERM")}
    assert run.stderr in named
    assert (run.folder / "report.html").exists() and (run.folder / "trace.json").exists()
    nothing_left(run, left)
    check_interrupted(run, f"stopped by {named[run.stderr]}")


def test_nohup_keeps_a_run_going(launch, best_links):
    ignore = "import os, signal, sys\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    prefix = [sys.executable, "-c", ignore + "os.execv(sys.argv[1], sys.argv[1:])"]
    flags = ("--rounds=2", "--profile=ethernet", "--clients=2", *FAST)
    run = launch(best_links, *flags, prefix=prefix)
    run.wait_for("round_started", round=1)
    os.killpg(run.pid, signal.SIGHUP)
    assert run.finish() == 0, run.describe()
    assert run.summary["status"] == "ok"
    assert not any(client["lost"] for client in run.summary["per_client"])


def test_a_killed_supervisor_takes_everything_with_it(launch, best_links):
    run = launch(best_links, *FOREVER)
    left = in_a_round(run)
    os.kill(run.pid, signal.SIGKILL)
    assert run.finish() == -signal.SIGKILL
    nothing_left(run, left)
    check_interrupted(run, "the run was not closed: its supervisor ended before it could")
    assert run.events()[-1]["event"] != "closed"


def test_a_supervisor_killed_while_it_starts_leaves_a_summary_too(launch, best_links):
    run = launch(best_links, *FOREVER)
    run.wait_for("links")
    processes = run.tree()
    run.hold_namespaces()
    os.kill(run.pid, signal.SIGKILL)
    assert run.finish() == -signal.SIGKILL
    nothing_left(run, processes)
    assert (run.summary["status"], run.summary["rounds_done"]) == ("interrupted", 0)


@pytest.mark.parametrize("moment", ["folder", "run", "links", "started"])
def test_a_signal_while_it_starts_ends_everything(launch, best_links, moment):
    run = launch(best_links, *FOREVER, anew=moment == "folder")
    if moment == "folder":
        run.wait_for_folder()
    else:
        run.wait_for(moment)
    processes = run.tree()
    run.hold_namespaces()
    os.kill(run.pid, signal.SIGTERM)
    status = run.finish()
    nothing_left(run, processes)
    assert status == INTERRUPTED, run.describe()
    assert run.stderr == "interrupted: stopped by SIGTERM\n"
    if moment == "folder" and not run.folders:
        return  # It had not begun, and what was made is no longer there.
    summary = run.summary
    assert (summary["status"], summary["reason"]) == ("interrupted", "stopped by SIGTERM")
    assert (summary["rounds_done"], summary["rounds"]) == (0, [])
    # The log is made after the record has begun.
    log = run.folder / "nodes.log"
    assert not log.exists() or log.read_text() == ""


def test_ctrl_c_in_a_terminal_ends_everything(launch, best_links, until):
    ours, theirs = os.openpty()
    prefix = [sys.executable, "-c", IN_A_TERMINAL, os.ttyname(theirs)]
    run = launch(best_links, *FOREVER, prefix=prefix)
    os.set_blocking(ours, False)
    shown = bytearray()

    def reading(condition):
        def read():
            # A terminal that nobody reads would in the end stop whoever writes to it.
            with contextlib.suppress(BlockingIOError):
                shown.extend(os.read(ours, 1 << 16))
            return condition()

        return read

    until(reading(lambda: run.events("round_started", round=2)), "the second round", 80)
    left = in_a_round(run)
    os.write(ours, b"\x03")
    until(reading(lambda: run.process.poll() is not None), "the end", 20)
    assert run.finish() == INTERRUPTED, shown.decode()
    nothing_left(run, left)
    check_interrupted(run, "stopped by SIGINT")
    assert b"\x1b[" in shown
    assert b"interrupted: stopped by SIGINT" in shown
    # What was on its way to the terminal did not leak into the nodes when they were forked.
    assert (run.folder / "nodes.log").read_text() == ""
    for descriptor in (ours, theirs):
        os.close(descriptor)
