"""The wheel in an environment of its own, used from a folder that has names of ours in it."""

import json
import os
import signal
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from running import FAST, ROOT, Run

LIMIT_S = 100
SMALL = (
    *("--links=loopback", "--profile=ethernet", "--no-calibrate", "--clients=2"),
    *("--rounds=2", "--train-samples=96", *FAST),
)
QUICK = "fedavg:batch_size=128:local_epochs=1"
HOSTILE = 'raise SystemExit("a file of the user was imported")\n'


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=LIMIT_S)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def command(wheel, tmp_path_factory):
    """`wiretune` of an environment with the wheel and our dependencies, without this checkout."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    subprocess.run([*install, "--no-deps", "--no-index", wheel], check=True, timeout=LIMIT_S)
    paths = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", vars=paths))
    # A path in a .pth file is no site folder: an editable install within it does not count.
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return str(folder / "bin" / "wiretune")


@pytest.fixture
def elsewhere(tmp_path):
    """A folder with files that are named as ours."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for name in ("cli.py", "methods.py", "experiments.py", "wiretune.py"):
        (folder / name).write_text(HOSTILE)
    for name in ("nodes", "testbed", "netem_profiles"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(HOSTILE)
    return folder


@pytest.fixture
def run(command, elsewhere):
    def start(*arguments, code=0):
        done = subprocess.run(
            [command, *arguments], cwd=elsewhere, capture_output=True, text=True, timeout=LIMIT_S
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    return start


def test_a_wheel_brings_one_name_and_every_file(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"wiretune", f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"}
    kept = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    rooms = ("cli.py", "experiments/", "methods/", "nodes/", "netem_profiles/", "testbed/")
    shipped = {f"wiretune/{name}" for name in kept.stdout.split() if name.startswith(rooms)}
    assert len(shipped) > 200
    assert shipped <= set(names)


def test_a_run_of_the_wheel_is_one_of_the_checkout(run, elsewhere, launch):
    run("launch", *SMALL, "--out=runs")
    (folder,) = (elsewhere / "runs").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    here = launch(*SMALL)
    assert here.finish() == 0, here.describe()
    assert summary["status"] == "ok"
    assert summary["metrics"] == here.summary["metrics"]
    payloads = [each["bytes"]["payload"] for each in (summary, here.summary)]
    assert payloads[0] == payloads[1]
    assert (folder / "report.html").exists()
    assert folder.name in run("results", "--out=runs")


def test_a_killed_run_of_the_wheel_goes_on(command, run, elsewhere):
    killed = Run(
        elsewhere / "runs",
        *SMALL,
        "--rounds=6",
        "--set=local_epochs=8",
        program=(command,),
        cwd=elsewhere,
    )
    try:
        killed.wait_for("wire", round=2)
        os.kill(killed.pid, signal.SIGKILL)
        killed.finish()
    finally:
        killed.end()
    run("launch", f"--resume={killed.folder}")
    assert killed.summary["status"] == "ok"
    assert killed.summary["resumed"]


def test_a_bench_of_the_wheel_runs_its_cells(run):
    flags = ("--links=loopback", "--clients=2", "--rounds=1", "--out=bench")
    out = run("bench", f"--methods={QUICK}", "--profiles=ethernet,wifi", *flags)
    assert "ethernet" in out and "wifi" in out


def test_profiles_of_the_wheel_are_those_shipped(run):
    assert "starlink" in run("profiles")
    assert "starlink" in run("profiles", "show", "starlink")
