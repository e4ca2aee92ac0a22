"""Runs whose clients average by an all-reduce over their links: like the star, and killed ones."""

import os
import signal

import pytest
from running import FAST, LIMIT_S, all_gone

pytestmark = pytest.mark.usefixtures("userspace_links")

CLIENTS, ROUNDS = 3, 2
FLAGS = ("--links=userspace", "--profile=ethernet", f"--clients={CLIENTS}", "--no-calibrate")
TRAINED = (f"--rounds={ROUNDS}", "--seed=7", "--set=local_epochs=1", "--train-samples=480")
SLOW = ("--links=userspace", "--profile=wifi", "--clients=3", "--no-calibrate", "--transport=gloo",
        *FAST)  # fmt: skip
"""An all-reduce takes a second."""


@pytest.fixture(scope="module")
def runs(launch_for_module):
    """The same run by an all-reduce and by a server's mean."""
    runs = {name: launch_for_module(*FLAGS, *TRAINED, f"--transport={name}")
            for name in ("gloo", "zmq")}  # fmt: skip
    assert {run.finish() for run in runs.values()} == {0}, [r.describe() for r in runs.values()]
    return runs


def test_both_ways_learn_the_same(runs):
    one, other = (run.summary for run in runs.values())
    assert (one["transport"], other["transport"]) == ("gloo", "zmq")
    assert one["metrics"]["initial"] == other["metrics"]["initial"]
    for ours, theirs in zip(one["rounds"], other["rounds"], strict=True):
        assert ours["metrics"]["accuracy"] == pytest.approx(theirs["metrics"]["accuracy"], abs=1e-3)
        assert ours["metrics"]["loss"] == pytest.approx(theirs["metrics"]["loss"], abs=1e-3)
    assert one["metrics"]["final"]["accuracy"] > one["metrics"]["initial"]["accuracy"] + 0.3


def test_each_client_sends_and_receives_a_rings_share(runs):
    summary = runs["gloo"].summary
    bucket = 4 * (summary["trainable_parameters"] + 1)
    share = ROUNDS * 2 * (CLIENTS - 1) / CLIENTS * bucket
    for client in summary["per_client"]:
        for way in ("up", "down"):
            carried = client["bytes"]["by_kind"]["allreduce"][way]
            wire = client["bytes"]["wire"][way]
            # gloo's headers; then those of Ethernet, IP and TCP, acknowledgements, and control.
            assert share <= carried < 1.03 * share
            assert carried < client["bytes"]["message"][way] < wire < 1.2 * share


def test_its_connections_too_have_the_congestion_control_that_is_pinned(runs):
    for run in runs.values():
        pinned = run.events("run")[0]["config"]["congestion"]
        assert set(run.summary["connections"]) == {pinned}
    among_clients = CLIENTS * (CLIENTS - 1)
    assert sum(runs["gloo"].summary["connections"].values()) == 2 * CLIENTS + among_clients


def test_no_weights_go_to_the_server(runs):
    summary = runs["gloo"].summary
    kinds = summary["bytes"]["by_kind"].keys() - {"allreduce", "address", "addresses"}
    assert all(summary["bytes"]["by_kind"][kind] == {"up": 0, "down": 0} for kind in kinds)
    # What crossed the clients' links and was not between two of them was with the server.
    assert runs["gloo"].events("wire")[-1]["counters"][0][1][1] < 4 * 13258


def test_time_is_accounted_for(runs):
    for entry in runs["gloo"].summary["rounds"]:
        parts = [entry[name] for name in ("compute_s", "transfer_s", "wait_s")]
        assert sum(parts) == pytest.approx(entry["seconds"], abs=0.05)
        assert entry["ideal_s"] is None and entry["measured_to_ideal"] is None
        for row in entry["spans"]:
            assert row["receive_s"] > 0 and row["compute_s"] > 0
            assert sum(v for k, v in row.items() if k != "client") == pytest.approx(
                entry["seconds"], abs=1e-4
            )


def test_it_leaves_what_any_run_leaves(runs):
    run = runs["gloo"]
    assert (run.folder / "nodes.log").read_text() == ""
    assert 'transport = "gloo"' in (run.folder / "config.toml").read_text()
    reduced = run.events("reduced")
    assert len(reduced) == CLIENTS * ROUNDS
    assert all(event["connected_ns"] <= event["ended_ns"] for event in reduced)
    assert (run.folder / "report.html").stat().st_size > 0


def in_the_all_reduce(run, until):
    """Wait until client 2 is in the second round's."""

    def ordered():
        told = run.events("message", node="client-2", round=2)
        return [event for event in told if event["kind"] == "order"]

    run.wait_for("round_started", round=2)
    until(ordered, "an order of round 2", LIMIT_S)


def test_a_client_killed_in_the_all_reduce_is_lost_and_the_others_go_on(launch, until):
    run = launch(*SLOW, "--rounds=3")
    in_the_all_reduce(run, until)
    processes = run.tree()
    run.hold_namespaces()
    os.kill(run.pid_of("client-2"), signal.SIGKILL)
    assert run.finish() == 0, run.describe()
    assert not all_gone(processes)
    assert not run.held_namespaces()
    summary = run.summary
    assert (summary["status"], summary["rounds_done"]) == ("ok", 3)
    lost = [client["lost"] for client in summary["per_client"]]
    assert lost == [None, "killed by SIGKILL", None]
    rounds = summary["rounds"]
    assert [(r["clients_ok"], r["clients_failed"]) for r in rounds] == [(3, 0), (2, 1), (2, 1)]
    assert rounds[1]["missed"] == [{"client": "client-2", "reason": "killed by SIGKILL"}]
    broken = [event for event in run.events("reduced") if event["reason"]]
    assert {event["round"] for event in broken} == {2}
    assert {event["node"] for event in broken} == {"client-1", "client-3"}
    assert run.events("reduced", round=3, members=2, reason=None, node="client-1")
    before = summary["metrics"]["initial"]["accuracy"]
    assert min(entry["metrics"]["accuracy"] for entry in rounds) > before + 0.3


def test_a_signal_in_an_all_reduce_ends_everything(launch, until):
    run = launch(*SLOW, "--rounds=50")
    in_the_all_reduce(run, until)
    processes = run.tree()
    run.hold_namespaces()
    os.killpg(run.pid, signal.SIGINT)
    assert run.finish() == 130, run.describe()
    assert not all_gone(processes)
    assert not run.held_namespaces()
    assert run.summary["status"] == "interrupted"
