"""``cli.py calibrate`` as a user runs it: its exit status, its table, its JSON, what it leaves."""

import contextlib
import json
import os
import re
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from running import CLI, LIMIT_S, ROOT

pytestmark = pytest.mark.quiet

PROFILE = """
title = "Made for a test"
summary = "No link that anybody has."
sources = ["nobody"]
[up]
delay_ms = {delay_ms}
{rate}
[down]
delay_ms = {delay_ms}
[provenance]
up = {{ delay_ms = "assumed: for a test", rate_kbit = "assumed: for a test" }}
down = {{ delay_ms = "assumed: for a test" }}
"""
REFUSALS = {
    "profile": (["--profile=4gg"], ["'4gg'", "did you mean 4g"]),
    "one of several": (["--profile=4g,wify"], ["'wify'", "did you mean wifi"]),
    "own profile": (["--profile=/nowhere/my.toml"], ["/nowhere/my.toml"]),
    "links": (["--links=loopbak"], ["'loopbak'", "loopback"]),
    "seconds": (["--seconds=1"], ["--seconds", "must be 5 to 3600"]),
    "flag": (["--profil=4g"], ["--profil", "--profile"]),
}

Run = Callable[..., subprocess.CompletedProcess[str]]


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    """Run it in a session of its own, of which nothing may be left."""
    command = [*CLI, "calibrate", *flags]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            stdout, stderr = process.communicate(timeout=LIMIT_S)
        finally:
            process.kill()
    assert in_session(process.pid) == []
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def in_session(session: int) -> list[int]:
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(OSError):
            if os.getsid(pid) == session:
                found.append(pid)
    return found


def profile(folder: Path, name: str, delay_ms: float, rate: str = "") -> str:
    file = folder / f"{name}.toml"
    file.write_text(PROFILE.format(delay_ms=delay_ms, rate=rate))
    return f"--profile={file}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, best_links: str) -> dict[str, object]:
    """Every run at once: each waits for its links most of its time."""
    folder = tmp_path_factory.mktemp("profiles")
    flags = {
        "far": ["--links=loopback", "--seconds=5", profile(folder, "far", 100)],
        "impossible": [
            "--links=loopback",
            "--seconds=8",
            "--json",
            profile(folder, "impossible", 10, "rate_kbit = 100_000_000"),
        ],
        "packets": [best_links, "--seconds=5", "--json", profile(folder, "packets", 30)],
        **{name: words for name, (words, _) in REFUSALS.items()},
    }
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(flags, pool.map(lambda words: run(*words), flags.values()), strict=True))


def test_a_link_that_is_what_was_asked_ends_in_0_with_a_table(runs):
    done = runs["far"]
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = (line for line in done.stdout.splitlines() if "round trip" in line)
    cells = re.split(r"\s{2,}", line)
    assert cells[0].startswith("far@") and cells[1:3] == ["round trip", "both"]
    assert cells[3] == "200" and 200 <= float(cells[4]) <= 204 and "ok" in cells
    # What is planned, and the verdicts' sum, are no part of the table.
    assert f"{cells[0]}: " in done.stderr and "delay" in done.stderr
    assert "1 of 1 gates hold" in done.stderr


def test_a_missed_gate_ends_in_1_and_json_says_which(runs):
    done = runs["impossible"]
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert found["passed"] is False and "loopback" in found["links"]
    checks = {(check["name"], check["direction"]): check for check in found["checks"]}
    goodput = checks["goodput", "up"]
    assert goodput["verdict"] == "missed" and 0 < goodput["measured"] < goodput["expected"]
    assert checks["queue", "up"]["verdict"] == "not measured"


def test_the_best_links_that_work_here_are_measured(runs, best_links):
    done = runs["packets"]
    assert done.returncode in (0, 1), done.stderr
    found = json.loads(done.stdout)
    checks = {(check["name"], check["direction"]): check for check in found["checks"]}
    assert 60 <= checks["round trip", "both"]["measured"] < 90
    if "userspace" in best_links:
        assert checks["loss", "up"]["ok"] and checks["loss", "up"]["n"] >= 1000
        assert checks["bytes", "down"]["ok"]
    ((name,),) = (network["profiles"] for network in found["networks"])
    assert name.startswith("packets@")


@pytest.mark.parametrize("case", list(REFUSALS))
def test_a_wrong_word_ends_in_2_and_says_what_would_be_right(runs, case):
    done = runs[case]
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr
    assert [word for word in REFUSALS[case][1] if word not in done.stderr] == [], done.stderr
