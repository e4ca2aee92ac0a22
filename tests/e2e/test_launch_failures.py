"""Processes of a run that die, stall or take too long: what goes on, and what the record says."""

import os
import signal

import psutil
import pytest
from running import FAST, WHOLE, all_gone

PAIR = ("--profile=ethernet", "--clients=2", *FAST)
FOREVER = ("--rounds=1000", "--time-limit=150", *PAIR)
"""Beyond a test's own limit, so that a killed pytest leaves nothing for long."""


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def nodes_and_helpers(run) -> tuple[psutil.Process, psutil.Process]:
    """The zygote, which is every node's parent, and the link process beside it."""
    server = psutil.Process(run.pid_of("server"))
    zygote = server.parent()
    (links,) = set(psutil.Process(run.pid).children()) - {zygote}
    return zygote, links


def failed(run) -> str:
    """Wait for a run that must fail and leave nothing; returns the reason."""
    processes = run.tree()
    run.hold_namespaces()
    assert run.finish() == 1, run.describe()
    assert not all_gone(processes)
    assert not run.held_namespaces()
    summary = run.summary
    assert summary["status"] == "failed"
    assert summary["reason"] == run.events("closed")[0]["reason"]
    assert f"failed: {summary['reason']}" in run.stderr.replace("\n", " ")
    assert "Traceback" not in run.stdout + run.stderr
    return summary["reason"]


def test_a_killed_client_is_lost_and_the_others_go_on(launch, best_links):
    run = launch(best_links, "--profile=ethernet", "--clients=3", "--rounds=3", *FAST, WHOLE)
    # It has the model of round 2 and trains.
    run.wait_for("message", node="client-2", round=2)
    kill(run.pid_of("client-2"))
    assert run.finish() == 0, run.describe()
    summary = run.summary
    assert (summary["status"], summary["rounds_done"]) == ("ok", 3)
    lost = {client["name"]: client["lost"] for client in summary["per_client"]}
    assert lost == {"client-1": None, "client-2": "killed by SIGKILL", "client-3": None}
    first, second, third = summary["rounds"]
    assert [(r["clients_ok"], r["clients_failed"]) for r in (first, second, third)] == [
        (3, 0), (2, 1), (2, 1),
    ]  # fmt: skip
    assert second["missed"] == [{"client": "client-2", "reason": "killed by SIGKILL"}]
    assert (first["missed"], third["missed"]) == ([], [])
    assert "lost client-2: killed by SIGKILL" in run.stdout
    # Down to three, two of them answered; then two and two.
    one_way = 4 * summary["trainable_parameters"]
    assert second["bytes"]["payload"] == {"up": 2 * one_way, "down": 3 * one_way}
    assert third["bytes"]["payload"] == {"up": 2 * one_way, "down": 2 * one_way}


def test_a_killed_server_fails_the_run(launch, best_links):
    run = launch(best_links, *FOREVER)
    run.wait_for("round_started", round=1)
    run.tree()
    kill(run.pid_of("server"))
    assert failed(run) == "the server killed by SIGKILL before the last round"


@pytest.mark.parametrize("links", ["userspace", "loopback"])
def test_a_killed_link_process_fails_the_run(launch, links, request):
    if links == "userspace":
        request.getfixturevalue("userspace_links")
    run = launch(f"--links={links}", *FOREVER)
    run.wait_for("round_started", round=1)
    run.tree()
    kill(nodes_and_helpers(run)[1].pid)
    assert failed(run) == "the link process killed by SIGKILL"


def test_a_killed_zygote_fails_the_run(launch, best_links):
    run = launch(best_links, *FOREVER)
    run.wait_for("round_started", round=1)
    run.tree()
    kill(nodes_and_helpers(run)[0].pid)
    assert failed(run) == "the zygote killed by SIGKILL"


def test_no_client_left_fails_the_run(launch, best_links):
    run = launch(best_links, *FOREVER)
    run.wait_for("message", node="client-1", round=1)
    run.tree()
    for name in ("client-1", "client-2"):
        kill(run.pid_of(name))
    assert failed(run) == "no client is left"
    assert [client["lost"] for client in run.summary["per_client"]] == 2 * ["killed by SIGKILL"]


def test_a_run_ends_at_its_time_limit(launch, best_links):
    # Over links without limits the arithmetic has nothing to refuse.
    run = launch(best_links, *FOREVER, "--profile=unlimited", "--time-limit=3")
    run.wait_for("links")
    assert failed(run) == "not finished within time_limit_s = 3"
    assert run.summary["rounds_done"] < 1000


def test_a_run_whose_every_update_is_refused_fails_at_once_and_not_at_its_limits(launch):
    # Training diverges within the first round; each side refuses what the other then sends.
    asked = ("--method=split", "--set=optimizer=sgd", "--set=learning_rate=10", "--rounds=2")
    run = launch("--links=loopback", *asked, *PAIR[:2], "--no-calibrate")
    assert failed(run).startswith("no update was taken in any of 2 rounds; the first: client-")
    summary = run.summary
    assert summary["rounds_done"] == 2
    reasons = {miss["reason"] for entry in summary["rounds"] for miss in entry["missed"]}
    assert len(reasons) > 0 and all("not finite" in reason for reason in reasons)
    assert any(reason.startswith("it refused: ") for reason in reasons)


def test_an_option_of_any_size_leaves_a_record_that_can_be_read(launch):
    run = launch("--links=loopback", *PAIR, "--set=learning_rate=1e18", "--rounds=1")
    assert failed(run).startswith("no update was taken in the round; the first: client-")
    assert (run.folder / "report.html").is_file() and (run.folder / "trace.json").is_file()
    assert "Damaged" not in run.stdout + run.stderr


def test_a_client_that_stalls_is_missed_and_may_come_back(launch, best_links):
    limit_s = 3
    run = launch(best_links, "--rounds=2", f"--round-timeout={limit_s}", *PAIR)
    run.wait_for("message", node="client-1", round=1)
    stalled = run.pid_of("client-1")
    os.kill(stalled, signal.SIGSTOP)
    run.wait_for("round", round=1)
    os.kill(stalled, signal.SIGCONT)
    assert run.finish() == 0, run.describe()
    summary = run.summary
    first = summary["rounds"][0]
    reason = f"nothing within round_timeout_s = {limit_s}"
    assert {"client": "client-1", "reason": reason} in first["missed"]
    assert first["seconds"] >= limit_s
    assert first["clients_failed"] >= 1
    assert summary["rounds_done"] == 2
    assert summary["per_client"][0]["lost"] is None
    assert f"round 1: no update from client-1: {reason}" in run.stdout
    # Rounds waited for it, as they would not for a device.
    assert limit_s - 1.5 < summary["stopped"]["client-1"] < limit_s + 1.5
    host = summary["fidelity"]["host"]
    assert host["verdict"] == "fail" and "client-1 stood still for" in host["reason"]
