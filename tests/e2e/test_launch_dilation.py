"""A run whose clock goes slower than this machine's."""

import tomllib

import pytest

ROUNDS = 2
MODELLED = (
    *("--compute=modelled", "--model=vit-b16", "--set=variant=head", "--set=local_epochs=1"),
    *("--device-class=6000", "--clients=2", f"--rounds={ROUNDS}", "--train-samples=144"),
)
SMALL = ("--clients=1", "--rounds=1", "--train-samples=8", "--dataset=glyphs")
FAST = """
title = "Faster than a core here carries"
summary = "Ten gigabits each way."
sources = ["nobody"]
[up]
rate_kbit = 10_000_000
delay_ms = 0.5
[down]
rate_kbit = 10_000_000
delay_ms = 0.5
[provenance]
up = { rate_kbit = "assumed: for a test", delay_ms = "assumed: for a test" }
down = { rate_kbit = "assumed: for a test", delay_ms = "assumed: for a test" }
"""


@pytest.fixture(scope="module")
def runs(launch_for_module, best_links):
    """The same run at the machine's pace and four times slower."""
    found = {}
    for factor in (4, 1):
        found[factor] = launch_for_module(
            best_links, "--profile=4g", f"--dilation={factor}", *MODELLED
        )
        # What follows on links takes next to no time of the machine, and the other can begin.
        found[factor].wait_for("certified")
    assert {run.finish() for run in found.values()} == {0}, [r.describe() for r in found.values()]
    return found


@pytest.mark.quiet
def test_rounds_take_the_same_emulated_time(runs):
    plain, slower = (
        [entry["seconds"] for entry in runs[factor].summary["rounds"]] for factor in (1, 4)
    )
    for one, other in zip(plain, slower, strict=True):
        assert other == pytest.approx(one, rel=0.2)


@pytest.mark.quiet
def test_the_machine_takes_longer_and_says_so(runs):
    summary = runs[4].summary
    assert summary["dilation"] == 4
    seconds = summary["seconds"]
    assert seconds["host_total"] == pytest.approx(4 * seconds["total"])
    assert seconds["host_total"] - seconds["host_startup"] >= 4 * seconds["training"]
    rounds_s = sum(entry["seconds"] for entry in summary["rounds"])
    assert rounds_s <= seconds["training"] + 0.1
    assert "total, s of this machine" in runs[4].stdout
    assert "of this machine" not in runs[1].stdout


@pytest.mark.quiet
def test_events_messages_and_spans_are_of_one_clock(runs):
    run = runs[4]
    (start,) = run.events("run")
    for message in run.events("message"):
        at_s = (message["received_ns"] - start["origin_ns"]) / 1e9
        assert at_s <= message["t"] + 0.001
        assert message["sent_ns"] <= message["received_ns"]
    for entry in run.summary["rounds"]:
        for row in entry["spans"]:
            parts = [row[f"{kind}_s"] for kind in ("receive", "compute", "send", "wait")]
            assert sum(parts) == pytest.approx(entry["seconds"], abs=0.001)


@pytest.mark.quiet
def test_links_are_certified_as_what_was_asked(runs):
    plain, slower = (runs[factor].summary["fidelity"]["checks"] for factor in (1, 4))
    for one, other in zip(plain, slower, strict=True):
        assert other["expected"] == pytest.approx(one["expected"], rel=0.01)
        assert one["ok"] and other["ok"], (one, other)


def test_a_limit_is_of_emulated_seconds(launch, best_links):
    """Eight images take the device 3 s, 6 of this machine's, and it gets 1.5."""
    limited = ("--round-timeout=1.5", "--dilation=2", "--no-calibrate")
    run = launch(best_links, *MODELLED[:4], "--device-class=94", *SMALL, *limited)
    # Without any update it is no success.
    assert run.finish() == 1, run.describe()
    (missed,) = run.events("missed")
    (begun,) = run.events("round_started")
    # By the machine's own clock it would be 0.75; the limit runs from just before the event.
    assert 1.4 <= missed["t"] - begun["t"] < 2.8
    assert "round_timeout_s = 1.5" in missed["reason"]


@pytest.mark.quiet
def test_a_line_too_fast_for_this_machine_is_certified(launch, userspace_links, tmp_path):
    file = tmp_path / "fast.toml"
    file.write_text(FAST)
    flags = ("--links=userspace", f"--profile={file}", "--clients=1", "--rounds=1")
    run = launch(*flags, "--dilation=200", "--device-class=1e9", *MODELLED[:4])
    assert run.finish() == 0, run.describe()
    checks = run.summary["fidelity"]["checks"]
    assert [check["expected"] for check in checks[1:]] == [1e7, 1e7]
    assert all(check["ok"] for check in checks), checks


@pytest.fixture(scope="module")
def found(launch_for_module):
    """A device much faster than a core here, and as slow a clock as that takes."""
    flags = ("--links=loopback", "--profile=wifi", "--clients=2", "--rounds=1")
    training = ("--set=variant=head", "--set=local_epochs=1", "--dataset=glyphs")
    training += ("--train-samples=16",)
    run = launch_for_module(*flags, *training, "--device-class=phone", "--dilation=auto")
    assert run.finish() == 0, run.describe()
    return run


def test_a_trial_round_finds_a_dilation_that_shows_a_faster_device(found):
    summary = found.summary
    nodes = {row["node"]: row for row in summary["compute"]["nodes"]}
    factor = nodes["client-1"]["cpu_s"] / nodes["client-1"]["device_s"]
    assert factor > 2
    assert summary["dilation"] > factor
    assert summary["dilation_found"].startswith("a trial round of ")
    assert f"dilation: {summary['dilation']:g}, by a trial round" in found.stdout


def test_what_was_found_is_in_the_configuration(found):
    config = tomllib.loads((found.folder / "config.toml").read_text())
    assert config["dilation"] == found.summary["dilation"]
    (start,) = found.events("run")
    assert start["config"]["dilation"] == config["dilation"]
    assert list(found.out.iterdir()) == [found.folder]


def test_without_it_the_device_is_refused_with_what_would_do(launch):
    flags = ("--links=loopback", "--no-calibrate", "--clients=1", "--device-class=phone")
    run = launch(*flags, "--dilation=1")
    assert run.finish() == 1, run.describe()
    words = run.summary["reason"]
    assert "times as fast as a core here" in words
    least = float(words.rsplit(" ", 1)[1])
    assert "--dilation=elastic over userspace or loopback links, or at least " in words
    assert least > 2
    assert not run.events("started")


def test_no_dilation_is_named_that_would_be_refused(launch):
    flags = ("--links=loopback", "--no-calibrate", "--clients=1", "--device-class=1e9")
    run = launch(*flags, "--dilation=1")
    assert run.finish() == 1, run.describe()
    assert run.summary["reason"].endswith("--dilation=elastic over userspace or loopback links")


def test_a_trial_that_fails_leaves_its_reason_and_nothing_else(launch):
    flags = ("--links=loopback", "--profile=nb-iot", "--clients=1", "--method=fedavg")
    run = launch(*flags, "--dilation=auto", "--time-limit=20", "--no-calibrate")
    assert run.finish() == 1, run.describe()
    assert "the trial round of --dilation=auto: cannot end within" in run.stderr
    assert list(run.out.iterdir()) == []
