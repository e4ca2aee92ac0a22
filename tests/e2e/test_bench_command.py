"""`cli.py bench` as a user types it: runs, table, comparison, and a second time."""

import json
import subprocess

import pytest
from running import CLI, LIMIT_S, ROOT

FLAGS = (
    "--methods=fedavg:batch_size=128:local_epochs=1",
    "--methods=fedpeft:variant=head:local_epochs=1",
    "--links=loopback",
    "--profiles=unlimited",
    "--clients=2",
    "--rounds=1",
    "--target-accuracy=0.5",
)


def bench(*flags):
    return subprocess.run(
        [*CLI, "bench", *flags], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bench") / "runs"


@pytest.fixture(scope="module")
def first(folder):
    return bench(*FLAGS, f"--out={folder}")


def test_both_rows_have_measured_figures(first, folder):
    assert first.returncode == 0, first.stderr + first.stdout
    rows = json.loads((folder / "comparison.json").read_text())["rows"]
    full, head = rows
    assert [full["row"], head["row"]] == [
        "fedavg batch_size=128 local_epochs=1",
        "fedpeft variant=head local_epochs=1",
    ]
    # All 303,658 parameters, or a classifier of 970; both ways, for both clients.
    assert full["payload_mb"] == pytest.approx(4 * 303_658 * 4 / 1e6)
    assert head["payload_mb"] == pytest.approx(4 * 970 * 4 / 1e6)
    assert head["wire_mb"] > head["payload_mb"]
    assert all(0 < row["minutes"] < 1 for row in rows)
    assert "rounds to 0.5" in first.stdout
    assert "fedpeft variant=head" in first.stdout


def test_each_cell_is_a_run_as_launch_makes_it(first, folder):
    summaries = list(folder.glob("*/*/summary.json"))
    assert len(summaries) == 2
    for path in summaries:
        assert json.loads(path.read_text())["status"] == "ok"
        assert (path.parent / "events.jsonl").exists()


def test_a_second_time_nothing_runs_again(first, folder):
    again = bench(*FLAGS, f"--out={folder}", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == json.loads((folder / "comparison.json").read_text())
    assert again.stderr.count("there already") == 2
    assert len(list(folder.glob("*/*/summary.json"))) == 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--methods=fedavgg"], ["fedavgg", "did you mean fedavg"]),
        (["--methods=fedpeft:variant=biass"], ["variant", "biass"]),
        (["--methods=fedavg", "--profiles=5gg"], ["5gg", "5g"]),
        (["--methods=fedavg", "--clients=two"], ["--clients", "'two'", "whole number"]),
        (["--preset=digit"], ["'digit'", "did you mean digits"]),
        ([], ["--preset or --methods"]),
    ],
)
def test_a_wrong_word_is_refused_before_anything_starts(flags, words, tmp_path):
    refused = bench(*flags, f"--out={tmp_path / 'runs'}")
    assert refused.returncode == 2, refused.stderr
    assert [word for word in words if word not in refused.stderr] == [], refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "runs").exists()
