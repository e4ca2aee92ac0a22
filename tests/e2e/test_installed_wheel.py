"""The wheel in an environment of its own, used from a folder that has names of ours in it."""

import json
import os
import signal
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import distribution, distributions
from pathlib import Path

import made_run
import pytest
from packaging.requirements import Requirement
from running import FAST, ROOT, Run
from test_early_signals import Command

LIMIT_S = 100
SMALL = (
    *("--links=loopback", "--profile=ethernet", "--no-calibrate", "--clients=2"),
    *("--rounds=2", "--train-samples=96", *FAST),
)
QUICK = "fedavg:batch_size=128:local_epochs=1"
HOSTILE = 'raise SystemExit("a file of the user was imported")\n'
TRAINING = "torch, peft, safetensors, huggingface_hub, PIL, tokenizers"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=LIMIT_S)
    (built,) = folder.glob("*.whl")
    return built


def environment(folder, wheel):
    """A virtual environment with the wheel and nothing else; its folder of packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    subprocess.run([*install, "--no-deps", "--no-index", wheel], check=True, timeout=LIMIT_S)
    paths = {"base": str(folder), "platbase": str(folder)}
    return Path(sysconfig.get_path("purelib", vars=paths))


@pytest.fixture(scope="module")
def command(wheel, tmp_path_factory):
    """`wiretune` of an environment with the wheel and our dependencies, without this checkout."""
    folder = tmp_path_factory.mktemp("environment")
    site = environment(folder, wheel)
    # A path in a .pth file is no site folder: an editable install within it does not count.
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return str(folder / "bin" / "wiretune")


def needed(one):
    """Names of the packages that a distribution needs without any extra, here."""
    found = [Requirement(text) for text in one.requires or ()]
    return {each.name for each in found if not each.marker or each.marker.evaluate({"extra": ""})}


@pytest.fixture(scope="module")
def core(wheel, tmp_path_factory):
    """`wiretune` of an environment with what the wheel asks for without extras, and pytest."""
    folder = tmp_path_factory.mktemp("core")
    site = environment(folder, wheel)
    (own,) = distributions(name="wiretune", path=[str(site)])
    waiting, there = needed(own) | {"pytest"}, set()
    while waiting:
        there.add(name := waiting.pop())
        one = distribution(name)
        waiting |= needed(one) - there
        for top in {file.parts[0] for file in one.files} - {"..", "__pycache__"}:
            (site / top).symlink_to(one.locate_file(top))
    assert "click" in there and not {"torch", "peft", "pillow", "safetensors"} & there
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


@pytest.mark.thorough
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


@pytest.mark.skipif(sys.platform != "linux", reason="what a process hears is in /proc")
def test_a_command_of_the_wheel_hears_signals_before_all_else(command, tmp_path, monkeypatch):
    # In place of what it imports next, and is never done with.
    (tmp_path / "click.py").write_text("import time\ntime.sleep(100)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Command(tmp_path, "launch", program=(command,)) as launch:
        launch.await_first_lines()
        launch.ends_by(signal.SIGTERM)


@pytest.mark.thorough
def test_a_bench_of_the_wheel_runs_its_cells(run):
    flags = ("--links=loopback", "--clients=2", "--rounds=1", "--out=bench")
    out = run("bench", f"--methods={QUICK}", "--profiles=ethernet,wifi", *flags)
    assert "ethernet" in out and "wifi" in out


def test_profiles_of_the_wheel_are_those_shipped(run):
    assert "starlink" in run("profiles")
    assert "starlink" in run("profiles", "show", "starlink")


# Without torch


@pytest.fixture
def run_core(core, elsewhere):
    def start(*arguments, codes=(0,), **variables):
        done = subprocess.run(
            [core, *arguments],
            cwd=elsewhere,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        assert done.returncode in codes, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    return start


def test_a_core_does_all_but_training(run_core, elsewhere):
    for number in (1, 2):
        made_run.folder(elsewhere / "results" / f"2026112{number}-100000-run", made_run.events())
    runs = sorted(f"results/{each.name}" for each in (elsewhere / "results").iterdir())
    assert "starlink" in run_core("profiles").stdout
    assert "starlink" in run_core("profiles", "show", "starlink").stdout
    assert runs[0].rpartition("/")[2] in run_core("results").stdout
    run_core("report", runs[0])
    run_core("links", runs[0])
    run_core("export", runs[0], "--csv")
    run_core("compare", *runs)
    assert {"report.html", "rounds.csv", "comparison.html"} <= {
        path.name for path in (elsewhere / "results").rglob("*")
    }
    found = {each["what"]: each for each in json.loads(run_core("doctor", "--json").stdout)}
    assert found["launch, bench"]["cure"] == "pip install 'wiretune[train]'"


def test_a_core_calibrates(run_core):
    words = ("calibrate", "--profile=wifi", "--links=loopback", "--seconds=5", "--json")
    # Whether gates hold is a matter of this machine's time.
    assert json.loads(run_core(*words, codes=(0, 1)).stdout)


@pytest.mark.usefixtures("userspace_links")
def test_a_core_runs_programs(run_core, elsewhere):
    words = ("exec", "--profile=wifi", "--clients=1", "--no-calibrate", "--", "hostname")
    out = run_core(*words).stdout
    assert "server: server" in out and "client-1: client-1" in out
    (folder,) = (elsewhere / "results").iterdir()
    assert (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "packages"),
    [
        (["launch"], TRAINING),
        (["launch", "--resume=results/RUN"], TRAINING),
        (["bench", "--preset=digits"], TRAINING),
        (["export", "results/RUN", "--tensorboard"], "tensorboard, torch"),
    ],
)
def test_a_core_says_in_a_line_what_training_needs(run_core, elsewhere, words, packages):
    made_run.folder(elsewhere / "results" / "RUN", made_run.events())
    extra = "tensorboard" if "--tensorboard" in words else "train"
    done = run_core(*words, codes=(2,))
    (line,) = done.stderr.splitlines()
    assert line.endswith(f"needs {packages}: pip install 'wiretune[{extra}]'")
    assert os.listdir(elsewhere / "results") == ["RUN"]


@pytest.mark.parametrize("option", ["method", "dataset", "model", "stage", "device-class"])
def test_a_core_completes_options_of_runs(run_core, option):
    line = f"wiretune launch --{option} "
    done = run_core(_WIRETUNE_COMPLETE="fish_complete", COMP_WORDS=line, COMP_CWORD="")
    assert done.stdout and not done.stderr


USES = """
import wiretune

def test_has_a_network(wiretune_network):
    assert isinstance(wiretune_network, wiretune.Network)
    assert wiretune_network.clients[0].run("hostname").stdout == "client-1\\n"

def test_refuses():
    try:
        wiretune.Network("4gg")
    except wiretune.ConfigError as error:
        assert "did you mean 4g" in str(error)

def test_has_all_that_it_names():
    assert all(getattr(wiretune, name).__name__ == name for name in wiretune.__all__)
"""


def test_a_core_brings_networks_to_other_peoples_tests(core, elsewhere, userspace_links):
    (elsewhere / "wiretune.py").unlink()  # A test's own folder comes first there.
    (elsewhere / "test_it.py").write_text(USES)
    python = Path(core).with_name("python")
    done = subprocess.run(
        [python, "-m", "pytest", "-c", os.devnull, "--rootdir=.", "--strict-markers", "test_it.py"],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert "3 passed" in done.stdout, done.stdout + done.stderr
