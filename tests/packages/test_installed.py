"""The wheel in an empty environment, with what pip brings for it from the index."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from running import ROOT

LIMIT_S = 100
TESTS = """
import pytest

@pytest.mark.wiretune(profile="wifi", clients=2)
def test_has_a_network(wiretune_network):
    server = wiretune_network.server.popen(["python3", "-m", "http.server", "8000"])
    wiretune_network.server.wait_port(8000)
    fetch = "import urllib.request as u; print(u.urlopen('http://server:8000/FILE').read().decode())"
    found = wiretune_network.clients[1].run(["python3", "-c", fetch], timeout=30, check=True)
    assert found.stdout == "what is in it\\n"
    assert wiretune_network.bytes()["client-2"].down > 200
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory, install):
    """The folder of an environment's programs, in which there are pip, pytest and the wheel."""
    folder = tmp_path_factory.mktemp("empty")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=LIMIT_S)
    (wheel,) = folder.glob("*.whl")
    install(folder / "environment", [str(wheel), "pytest"])
    return folder / "environment" / "bin"


@pytest.fixture
def called(programs, tmp_path):
    (tmp_path / "FILE").write_text("what is in it")
    own = {"PATH": f"{programs}:/usr/bin:/bin", "LANG": "C.UTF-8"}

    def call(*words, code=0):
        done = subprocess.run(
            [programs / words[0], *words[1:]],
            cwd=tmp_path,
            env=own,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    return call


def test_programs_run_there_and_training_says_what_it_needs(called, tmp_path, userspace_links):
    assert "torch" not in called("pip", "list")
    words = ("--clients=1", "--until=clients", "--wait-port=8000")
    server = "--server=python3 -m http.server 8000"
    fetch = (
        "--client=python3 -c 'import urllib.request as u; u.urlopen(\"http://server:8000/FILE\")'"
    )
    called("wiretune", "exec", "--profile=wifi", *words, server, fetch)
    (run,) = (tmp_path / "results").iterdir()
    assert (run / "report.html").is_file()
    assert "pip install 'wiretune[train]'" in called("wiretune", "launch", code=2)
    assert [each.name for each in (tmp_path / "results").iterdir()] == [run.name]


def test_pytest_finds_the_plugin_there(called, tmp_path: Path, userspace_links):
    (tmp_path / "test_it.py").write_text(TESTS)
    said = called(
        "python", "-m", "pytest", "-c", os.devnull, "--rootdir=.", "--strict-markers", "test_it.py"
    )
    assert "1 passed" in said
