"""A paper-sized model whose compute is modelled, through the command line."""

import tomllib

import pytest

HEAD_BYTES = 4 * (768 * 10 + 10)
FLOPS_PER_S = 1e13
"""Of the slow client, for which a hundred images take a third of a second."""


@pytest.fixture(scope="module")
def run(launch_for_module):
    run = launch_for_module(
        "--links=loopback",
        "--profile=unlimited",
        "--clients=2",
        "--model=vit-b16",
        "--compute=modelled",
        "--device-class=10000:1,20000:1",
        "--train-samples=144",
        "--set=variant=head",
        "--set=local_epochs=1",
        "--rounds=2",
    )
    assert run.finish() == 0, run.describe()
    return run


def test_true_bytes_cross_the_links(run):
    assert run.summary["total_parameters"] == 85_806_346
    assert run.summary["trainable_parameters"] == HEAD_BYTES / 4
    for way in ("up", "down"):
        assert run.summary["bytes"]["by_kind"]["head"][way] == 2 * 2 * HEAD_BYTES


def test_each_client_takes_the_time_of_its_device(run):
    compute = run.summary["compute"]
    assert compute["mode"] == "modelled"
    nodes = {row["node"]: row for row in compute["nodes"]}
    slow, fast = nodes["client-1"], nodes["client-2"]
    assert slow["modelled_s"] == pytest.approx(slow["flops"] / FLOPS_PER_S, rel=1e-3)
    assert fast["modelled_s"] == pytest.approx(fast["flops"] / (2 * FLOPS_PER_S), rel=1e-3)
    # A ViT-B/16 takes 35.1 GFLOP forward, and a trained classifier next to nothing more.
    samples = {row["name"]: row["samples"] for row in run.summary["per_client"]}
    assert slow["flops"] == pytest.approx(2 * samples["client-1"] * 35.1e9, rel=0.01)
    for number, row in enumerate(run.summary["rounds"]):
        assert row["seconds"] >= max(slow["modelled_s"], fast["modelled_s"]) / 2, number


def test_nothing_is_learnt_and_nothing_is_claimed(run):
    assert run.summary["metrics"] == {"initial": {}, "final": {}}


def test_no_client_holds_the_model(run):
    megabytes = [row["private_mb"] for row in run.summary["processes"]]
    assert max(megabytes) < 4 * 85.8 / 3


def test_the_run_can_be_made_again(run):
    config = tomllib.loads((run.folder / "config.toml").read_text())
    assert config["device_class"] == "10000:1,20000:1"
    assert config["server_device_class"] == "server"
