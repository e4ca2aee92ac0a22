"""Runs whose clients exchange models over their own links: one is killed, one loses a client."""

import math
import os
import signal

import pytest

pytestmark = pytest.mark.usefixtures("userspace_links")

FLAGS = (
    *("--links=userspace", "--profile=ethernet", "--no-calibrate", "--clients=4", "--rounds=3"),
    *(
        "--method=dispfl",
        "--set=local_epochs=1",
        "--train-samples=96",
        "--eval-samples=40",
        "--time-limit=150",
    ),
)
TWO = ("--set=neighbours=2", "--local-test=0.25")
MODEL = 4 * 151_826 + math.ceil(303_658 / 8)


@pytest.fixture(scope="module")
def undisturbed(launch_for_module):
    run = launch_for_module(*FLAGS, *TWO)
    assert run.finish() == 0, run.describe()
    return run


def test_models_go_among_clients_and_none_to_the_server(undisturbed):
    summary = undisturbed.summary
    kinds = summary["bytes"]["by_kind"]
    assert kinds["sparse"] == {"up": 3 * 4 * 2 * MODEL, "down": 3 * 4 * 2 * MODEL}
    assert kinds["begin"] == {"up": 0, "down": 3 * 4} and kinds["done"] == {"up": 0, "down": 0}
    busiest = summary["busiest"]
    assert busiest["node"].startswith("client-")
    assert busiest["received"] == 3 * 2 * MODEL + 3
    own = [each["bytes"]["payload"] for each in summary["per_client"]]
    assert busiest["sent"] == max(each["up"] for each in own)
    assert f"payload bytes of {busiest['node']}, the busiest" in undisturbed.stdout
    for entry in summary["rounds"]:
        parts = [entry[name] for name in ("compute_s", "transfer_s", "wait_s")]
        assert sum(parts) == pytest.approx(entry["seconds"], abs=0.001)
        assert entry["ideal_s"] is None


def test_clients_are_evaluated_on_their_own_samples_before_and_after_training(undisturbed):
    final = undisturbed.summary["metrics"]["final"]
    assert {"client_accuracy", "client_local_accuracy"} < final.keys()
    assert 0 <= final["client_local_accuracy_before_training"] <= 1
    assert "client_accuracy_before_training" not in final


def test_a_killed_run_goes_on_with_the_same_models(launch, undisturbed):
    killed = launch(*FLAGS, *TWO)
    killed.wait_for("message", kind="sparse", round=2)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.finish() == -signal.SIGKILL
    resumed = launch(resume=killed.folder)
    assert resumed.finish() == 0, resumed.describe()
    one, other = resumed.summary, undisturbed.summary
    assert [e["metrics"] for e in one["rounds"]] == [e["metrics"] for e in other["rounds"]]
    assert one["bytes"]["payload"] == other["bytes"]["payload"]
    assert one["busiest"] == other["busiest"]


def test_a_client_that_is_killed_amid_a_round_is_left_out_by_the_others(launch):
    run = launch(*FLAGS, "--rounds=4", "--set=topology=full")
    run.wait_for("message", kind="sparse", round=2)
    os.kill(run.pid_of("client-2"), signal.SIGKILL)
    assert run.finish() == 0, run.describe()
    summary = run.summary
    assert [client["lost"] for client in summary["per_client"]][1] == "killed by SIGKILL"
    assert summary["rounds"][-1]["clients_ok"] == 3
    last = run.events("message", kind="sparse", round=4)
    assert len(last) == 3 * 2 and "client-2" not in {event["peer"] for event in last}
