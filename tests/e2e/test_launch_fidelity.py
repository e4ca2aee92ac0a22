"""The certificate of a run, and what --strict and --no-calibrate make of it."""

import pytest
from running import FAST, all_gone

IMPOSSIBLE = """
title = "Faster than any link here"
summary = "One frame in 0.12 microseconds: no process carries that."
sources = ["nobody"]
[up]
rate_kbit = 100_000_000
queue_ms = 1
[down]
rate_kbit = 100_000_000
queue_ms = 1
[provenance]
up = { rate_kbit = "assumed: for a test", queue_ms = "assumed: for a test" }
down = { rate_kbit = "assumed: for a test", queue_ms = "assumed: for a test" }
"""


@pytest.fixture
def impossible(tmp_path) -> str:
    file = tmp_path / "impossible.toml"
    file.write_text(IMPOSSIBLE)
    return f"--profile={file}"


def test_a_run_certifies_its_links_and_its_bytes_are_without_the_probes(launch, userspace_links):
    run = launch("--links=userspace", "--profile=cable", "--clients=2", "--rounds=1", *FAST)
    assert run.finish() == 0, run.describe()
    fidelity = run.summary["fidelity"]
    assert len(fidelity["checks"]) == 2 * 3
    assert all(check["measured"] for check in fidelity["checks"])
    assert run.summary["seconds"]["calibration"] > 0
    assert f"links checked: {fidelity['verdict']}" in run.stdout
    (certified,) = run.events("certified")
    (last,) = run.events("wire", round=None)
    for way, direction in enumerate(("up", "down")):
        probes, whole = (
            sum(link[way][1] for link in event["counters"][1:]) for event in (certified, last)
        )
        assert probes > 20_000
        assert run.summary["bytes"]["wire"][direction] == whole - probes


def test_a_link_that_cannot_be_what_was_asked_fails_the_check_and_not_the_run(
    launch, userspace_links, impossible
):
    run = launch("--links=userspace", impossible, "--clients=1", "--rounds=1", *FAST)
    assert run.finish() == 0, run.describe()
    assert run.summary["status"] == "ok"
    assert run.summary["fidelity"]["verdict"] == "fail"
    assert "links checked: fail" in run.stdout


def test_strict_ends_such_a_run_before_training(launch, userspace_links, impossible):
    run = launch("--links=userspace", impossible, "--clients=1", "--rounds=1", "--strict", *FAST)
    processes = run.tree()
    assert run.finish() == 1, run.describe()
    assert not all_gone(processes)
    assert run.summary["reason"].startswith("--strict: 2 of 3 checks do not hold")
    assert not run.events("started")


def test_without_calibration_the_certificate_says_so(launch, best_links):
    run = launch(best_links, "--no-calibrate", "--clients=1", "--rounds=1", *FAST)
    assert run.finish() == 0, run.describe()
    assert run.summary["fidelity"] == {
        "verdict": "skipped", "reason": "not asked for (--no-calibrate)", "checks": [],
    }  # fmt: skip
    assert run.summary["seconds"]["calibration"] == 0


def test_links_of_streams_are_certified_too_with_the_servers(launch):
    flags = ("--profile=cable", "--server-profile=wifi", "--clients=2", "--rounds=1")
    run = launch("--links=loopback", *flags, *FAST)
    assert run.finish() == 0, run.describe()
    fidelity = run.summary["fidelity"]
    links = [check["link"] for check in fidelity["checks"][::3]]
    assert links == ["client-1", "client-2", "server"]
    assert all(check["measured"] for check in fidelity["checks"])


def test_a_run_that_cannot_end_in_time_is_refused_with_the_arithmetic(launch, best_links):
    limits = ("--profile=nb-iot", "--clients=1", "--rounds=9", "--time-limit=900")
    run = launch(best_links, "--method=fedavg", *limits)
    assert run.finish() == 1, run.describe()
    reason = run.summary["reason"]
    assert reason.startswith("cannot end within time_limit_s = 900: 9 rounds of at least ")
    assert "client-1 (nb-iot) sends 1,2" in reason
    assert reason in " ".join(run.stdout.split()) + run.stderr
    assert not run.events("started")
