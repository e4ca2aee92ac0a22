"""`cli.py bench` as a user types it: runs, table, comparison, and a second time."""

import json

import pytest
import warm
from running import CLI, LIMIT_S, ROOT

from nodes.workload import models, pretrain

FLAGS = (
    "--methods=fedavg:batch_size=128:local_epochs=1",
    "--methods=fedpeft:variant=head:local_epochs=1",
    "--links=loopback",
    "--profiles=unlimited",
    "--clients=2",
    "--rounds=1",
    "--target-accuracy=0.5",
)


def bench(*flags, cwd=ROOT):
    return warm.run([*CLI, "bench", *flags], cwd=cwd, timeout=LIMIT_S)


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


def test_a_bench_over_models_goes_on_from_wherever_their_folder_is_named(tmp_path):
    own = tmp_path / "my models" / "small"
    spec = models.ModelSpec(width=12, depth=1, heads=2)
    pretrain.save_folder(models.VisionTransformer(spec, 2), own, {})
    asked = [*FLAGS[1:-1], f"--out={tmp_path / 'runs'}", "--json"]
    done = bench(*asked, "--vary=model=vit-glyphs,my models/small", cwd=tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    rows = json.loads(done.stdout)["rows"]
    places = "unlimited, 2 clients, vit-glyphs", "unlimited, 2 clients, small"
    assert tuple(row["links"] for row in rows) == places
    assert [(row["model"], row["parameters"]) for row in rows] == [
        *(("vit-glyphs", 302_688), ("small", models.parameters(str(own))))
    ]
    page = (tmp_path / "runs" / "comparison.html").read_text()
    assert "model=small" in page and "model=vit-glyphs" in page
    assert "my models" not in page
    again = bench(*asked, f"--vary=model=vit-glyphs,{own}")
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("there already") == 2 and json.loads(again.stdout)["rows"] == rows


CLAIMS = """
clients = [2]
profiles = ["unlimited"]
[run]
links = "loopback"
rounds = 1
train_samples = 200
eval_samples = 100
options = { local_epochs = 1 }
[[rows]]
name = "all"
run = { method = "fedavg", options = { batch_size = 128 } }
[[rows]]
name = "head"
baseline = "all"
run = { method = "fedpeft", options = { variant = "head" } }
[[rows.claims]]
counts = "payload both ways, of all weights"
figure = 313.05
unit = "x"
tolerance = 0.001
account = "base.both / both"
[[rows.claims]]
counts = "as zipped files"
figure = 4.5
unit = "x"
because = "nobody zips here"
"""


@pytest.mark.thorough
def test_claims_are_examined_in_the_table_and_on_the_page(tmp_path):
    (tmp_path / "own.toml").write_text(CLAIMS)
    runs = tmp_path / "runs"
    done = bench(f"--preset={tmp_path / 'own.toml'}", f"--out={runs}")
    assert done.returncode == 0, done.stderr + done.stdout
    one, other = json.loads((runs / "comparison.json").read_text())["claims"]
    assert one["verdict"] == "confirmed" and one["recomputed"] == 303_658 / 970
    assert one["wire_mb"] > 0 and one["minutes"] > 0
    assert (other["verdict"], other["reason"]) == ("not reproducible here", "nobody zips here")
    page = runs / "comparison.html"
    again = warm.run([*CLI, "compare", runs, f"--out={tmp_path / 'again.html'}"], cwd=ROOT)
    assert again.returncode == 0
    for text in (done.stdout, page.read_text(), (tmp_path / "again.html").read_text()):
        for part in ("Claims examined", "313x = base.both / both", "confirmed: 0.0% below"):
            assert part in text


TUNED = (
    "--methods=fedpeft:variant=head:local_epochs=1",
    "--grid=learning_rate=1e-9,0.01",
    *("--links=loopback", "--profiles=unlimited", "--clients=2", "--rounds=1"),
    "--target-accuracy=0.3",
)


@pytest.mark.thorough
def test_a_row_is_tuned_on_the_validation_split_and_then_tested(tmp_path):
    done = bench(*TUNED, f"--out={tmp_path}", "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    (row,) = json.loads(done.stdout)["rows"]
    assert row["tuned"] == {"learning_rate": 0.01} and row["at_edge"] == ["learning_rate"]
    # Its trials went over other links.
    assert row["at"] == {"profile": "unlimited", "clients": 2}
    assert [each["options"]["learning_rate"] for each in row["tuning"]] == [1e-9, 0.01]
    assert [each["reached"] for each in row["tuning"]] == [0, 1]
    assert 0 < row["minutes_interpolated"] <= row["minutes_to_target"]
    (final,) = tmp_path.glob("*/*/summary.json")
    trials = list(tmp_path.glob("tuning/*/*/summary.json"))
    assert json.loads(final.read_text())["evaluated"]["split"] == "test"
    splits = [json.loads(path.read_text())["evaluated"]["split"] for path in trials]
    assert splits == ["validation", "validation"]
    # A second time the choice is the same, and nothing runs again.
    again = bench(*TUNED, f"--out={tmp_path}", "--json")
    assert again.returncode == 0 and json.loads(again.stdout) == json.loads(done.stdout)
    assert again.stderr.count("there already") == 3


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
        (["--methods=fedavg", "--vary=profile=4g"], ["vary: profile has an option of its own"]),
        (["--methods=fedavg", "--vary=device_class=pie"], ["device_class", "'pie'", "pi"]),
        (["--methods=fedavg", "--grid=learning_rate"], ["write OPTION=VALUE,VALUE"]),
        (["--methods=fedavg", "--grid=learning_rate="], ["a value is missing"]),
        (["--methods=fedavg", "--grid=learning_rate=0.1,,1"], ["a value is missing"]),
        (["--methods=fedavg", "--grid=learning_rate=None"], ["None stands for no value"]),
        (["--methods=fedavg", "--grid=learning_rate=1,0"], ["row 'fedavg'", "= 0", "> 0"]),
        (["--methods=fedavg,kdfft", "--grid=weight_decay=0.1"], ["row 'kdfft'", "'weight_decay'"]),
        (
            ["--methods=fedavg", "--grid=learning_rate=1", "--compute=modelled"],
            ["row 'fedavg'", "nothing is learnt"],
        ),
        (
            ["--methods=fedavg", "--grid=learning_rate=1", "--set=learning_rate=1"],
            ["learning_rate = 1", "what the grid is to find"],
        ),
        (
            ["--methods=fedavg", "--grid=learning_rate=1", "--grid=learning_rate=2"],
            ["learning_rate has values already"],
        ),
        ([], ["--preset or --methods"]),
    ],
)
def test_a_wrong_word_is_refused_before_anything_starts(flags, words, tmp_path):
    refused = bench(*flags, f"--out={tmp_path / 'runs'}")
    assert refused.returncode == 2, refused.stderr
    assert [word for word in words if word not in refused.stderr] == [], refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "runs").exists()
