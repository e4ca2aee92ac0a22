"""The certificate of a run, and what --strict and --no-calibrate make of it."""

import os
import re

import msgspec
import pytest
from running import FAST, WHOLE, all_gone

from testbed.record import trust
from testbed.record.run_summary import Summary

SMALL = ("--set=variant=head", "--set=local_epochs=1", "--train-samples=200", "--eval-samples=100")
"""A few kilobytes an update."""
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
    run = launch("--links=userspace", "--profile=cable", "--clients=2", "--rounds=1", *SMALL)
    assert run.finish() == 0, run.describe()
    fidelity = run.summary["fidelity"]
    assert len(fidelity["checks"]) == 2 * 3
    assert all(check["measured"] for check in fidelity["checks"])
    assert run.summary["seconds"]["calibration"] > 0
    assert f"links checked: {fidelity['links']['verdict']}" in run.stdout
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


@pytest.mark.quiet
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
    fidelity = run.summary["fidelity"]
    assert fidelity["links"] == {"verdict": "skipped", "reason": "not asked for (--no-calibrate)"}
    assert fidelity["checks"] == []
    assert run.summary["seconds"]["calibration"] == 0


def test_links_of_streams_are_certified_too_with_the_servers(launch):
    flags = ("--profile=cable", "--server-profile=wifi", "--clients=2", "--rounds=1")
    run = launch("--links=loopback", *flags, *SMALL)
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


MODELLED = (
    *("--compute=modelled", "--model=vit-b16", "--set=variant=head", "--set=local_epochs=1"),
    *("--dataset=glyphs", "--train-samples=16", "--clients=2", "--rounds=1"),
)


@pytest.fixture(scope="module")
def crowded(launch_for_module):
    """Six clients that train at once, one core for all of them, and a clock that does not wait."""
    flags = ("--links=loopback", "--profile=unlimited", "--clients=6", "--rounds=1", "--strict")
    flags += ("--dilation=1",)
    one_core = ["taskset", "-c", str(min(os.sched_getaffinity(0)))]
    run = launch_for_module(*flags, *FAST, WHOLE, prefix=one_core)
    run.finish()
    return run


@pytest.mark.quiet
def test_a_host_without_time_for_all_fails_its_own_part_and_with_strict_the_run(crowded):
    summary = crowded.summary
    found, links = summary["fidelity"]["host"], summary["fidelity"]["links"]
    assert (found["verdict"], links["verdict"]) == ("fail", "pass")
    assert "waited" in found["reason"] and "(6 clients on 1 core)" in found["reason"]
    assert found["late_share"] > 0.05
    assert found["dilation_needed"] > 4
    assert summary["fidelity"]["verdict"] == "fail"
    assert crowded.process.returncode == 1
    assert summary["reason"] == f"--strict: {found['reason']}"
    assert summary["rounds_done"] == 1


@pytest.mark.quiet
def test_the_end_says_what_can_be_trusted_and_what_to_type(crowded):
    lines = re.findall(r"^trust: .*$", crowded.stdout, re.MULTILINE)
    assert lines == [trust.line(msgspec.convert(crowded.summary, Summary))]
    assert "bytes yes" in lines[0] and "minutes no: " in lines[0]
    assert "; type: --dilation=elastic" in lines[0]


@pytest.mark.quiet
def test_a_host_with_time_for_all_passes_its_part(launch):
    """Nothing but waiting: five times slower, so that a busy machine has time for it as well."""
    run = launch("--links=loopback", "--profile=wifi", "--strict", "--dilation=5", *MODELLED)
    assert run.finish() == 0, run.describe()
    found = run.summary["fidelity"]["host"]
    assert (found["verdict"], run.summary["fidelity"]["verdict"]) == ("pass", "pass")
    assert found["late_share"] < 0.05 and found["links_late_ms"] < 2
    assert found["busy_cores"] > 0
    assert "trust: minutes and bytes are those of 2 devices on wifi; " in run.stdout
