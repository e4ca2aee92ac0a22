"""Real compute on slower devices, and clients that have no more memory than theirs."""

import pytest

BASE = ("--links=loopback", "--profile=unlimited", "--no-calibrate", "--rounds=1")
QUICK = ("--set=variant=head", "--set=local_epochs=1", "--train-samples=60")


@pytest.fixture(scope="module")
def mixed(launch_for_module):
    devices = ("--clients=2", "--device-class=0.5:1,2:1", "--partition=iid")
    run = launch_for_module(*BASE, *QUICK, *devices)
    assert run.finish() == 0, run.describe()
    return run


def test_each_client_takes_the_time_of_its_device(mixed):
    compute = mixed.summary["compute"]
    nodes = {row["node"]: row for row in compute["nodes"]}
    assert compute["host_gflops"] > 2
    for client, gflops in (("client-1", 0.5), ("client-2", 2.0)):
        ratio = compute["host_gflops"] / gflops
        row = nodes[client]
        assert row["device_s"] == pytest.approx(ratio * row["cpu_s"], rel=0.01), client
        (spans,) = [
            each for each in mixed.summary["rounds"][0]["spans"] if each["client"] == client
        ]
        # What it computes after it has sent its update is no part of the round.
        assert spans["compute_s"] >= 0.9 * row["device_s"], client
    # The server is a core of this machine.
    assert nodes["server"]["device_s"] == nodes["server"]["cpu_s"]
    assert "most computing of a client, s (as its device)" in mixed.stdout


def test_a_client_that_wants_more_memory_than_it_has_leaves_and_the_run_goes_on(launch):
    """Batches are whole shards, and client-1 has 1293 images, client-2 has 144."""
    flags = ("--clients=2", "--alpha=0.05", "--seed=4", "--client-memory-mb=150")
    options = ("--set=batch_size=2048", "--set=local_epochs=1")
    run = launch(*BASE, *flags, *options)
    assert run.finish() == 0, run.describe()
    lost = {row["name"]: row["lost"] for row in run.summary["per_client"]}
    assert lost["client-2"] is None
    assert lost["client-1"].startswith("out of memory: ")
    assert " of the client's 150 MB were taken" in lost["client-1"]
    (entry,) = run.summary["rounds"]
    assert (entry["clients_ok"], entry["clients_failed"]) == (1, 1)
    peaks = {row["node"]: row["peak_private_mb"] for row in run.summary["processes"]}
    assert 30 < peaks["client-2"] < 150
