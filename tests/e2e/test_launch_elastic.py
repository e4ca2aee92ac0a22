"""A run whose clock stands still while nodes wait for a core."""

import os
import signal
import tomllib

import pytest

CLIENTS = 2 * len(os.sched_getaffinity(0)) + 2
SMALL = (f"--clients={CLIENTS}", "--rounds=3", f"--train-samples={24 * CLIENTS}")


@pytest.fixture(scope="module", params=["loopback", "userspace"])
def run(request, launch_for_module):
    if request.param == "userspace":
        request.getfixturevalue("userspace_links")
    run = launch_for_module(f"--links={request.param}", "--profile=4g", *SMALL)
    assert run.finish() == 0, run.describe()
    return run


@pytest.mark.quiet
def test_each_of_more_clients_than_cores_has_its_devices_time(run):
    host = run.summary["fidelity"]["host"]
    assert host["verdict"] == "pass", host
    late = {row["node"]: row["late_s"] for row in run.summary["compute"]["nodes"]}
    rounds_s = sum(entry["seconds"] for entry in run.summary["rounds"])
    assert max(late.values()) <= 0.05 * rounds_s
    computed_s = sum(row["device_s"] for row in run.summary["compute"]["nodes"])
    longest_s = max(row["device_s"] for row in run.summary["compute"]["nodes"])
    # Here they had to come one after the other, at their devices each has its own time.
    assert rounds_s < longest_s + computed_s / 2 + 3 * 0.5


@pytest.mark.quiet
def test_what_the_clock_stood_still_is_told(run):
    summary = run.summary
    assert (summary["elastic"], summary["dilation"]) == (True, 1)
    seconds = summary["seconds"]
    assert seconds["held"] > 0
    assert seconds["host_total"] == pytest.approx(seconds["total"] + seconds["held"], abs=0.01)
    told = [event["held_s"] for event in run.events("wire")]
    assert told == sorted(told) and told[-1] == pytest.approx(seconds["held"])
    assert "of that the clock stood still, s" in run.stdout


@pytest.mark.quiet
def test_all_times_of_the_record_are_of_that_clock(run):
    (start,) = run.events("run")
    times = [event["t"] for event in run.events()]
    assert times == sorted(times)
    for message in run.events("message"):
        assert message["sent_ns"] <= message["received_ns"]
        assert (message["received_ns"] - start["origin_ns"]) / 1e9 <= message["t"] + 0.001


@pytest.mark.thorough
def test_a_client_that_stops_in_the_middle_of_computing_is_not_waited_for(launch):
    flags = ("--links=loopback", "--profile=ethernet", *SMALL, "--no-calibrate")
    run = launch(*flags, "--set=local_epochs=40", "--round-timeout=3", "--rounds=1")
    run.wait_for("message", node="client-1", round=1)
    os.kill(run.pid_of("client-1"), signal.SIGSTOP)
    run.wait_for("missed", peer="client-1")
    os.kill(run.pid_of("client-1"), signal.SIGCONT)
    assert run.finish() == 0, run.describe()
    (entry,) = run.summary["rounds"]
    assert [miss["client"] for miss in entry["missed"]] == ["client-1"]
    assert entry["clients_ok"] == CLIENTS - 1
    assert run.summary["stopped"]["client-1"] == pytest.approx(3, abs=1.5)
    assert "client-1 stood still for" in run.summary["fidelity"]["host"]["reason"]


def test_over_links_that_cannot_the_clock_is_the_machines(launch):
    flags = ("--transport=gloo", "--method=fedavg", "--clients=2", "--rounds=1")
    run = launch(*flags, "--links=userspace", "--train-samples=32", "--no-calibrate")
    assert run.finish() == 0, run.describe()
    assert (run.summary["elastic"], run.summary["dilation"]) == (False, 1)
    assert tomllib.loads((run.folder / "config.toml").read_text())["dilation"] == 1
