"""The GitHub Action: each of its steps as a runner would run it, with bash and the job's files."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from running import CLI, ROOT

LIMIT_S = 100
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS = {step["id"]: step for step in ACTION["runs"]["steps"] if "id" in step}
BASH = ("bash", "--noprofile", "--norc", "-eo", "pipefail")
"""As a runner has it for `shell: bash`."""
SERVE = "python3 -m http.server 8000"
FETCH = "python3 -c 'import urllib.request as u; u.urlopen(\"http://server:8000/\").read()'"


class Job:
    """A job's folder and files."""

    def __init__(self, folder):
        self.folder = folder
        self.files = {}
        for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY", "GITHUB_PATH"):
            self.files[name] = folder / name.lower()
            self.files[name].touch()
        (folder / "bin").mkdir()
        command = folder / "bin" / "wiretune"
        command.write_text(f'#!/bin/sh\nexec {shlex.join(CLI)} "$@"\n')
        command.chmod(0o755)

    def step(self, name, **variables):
        """Run a step; inputs are by name with ``_`` for ``-``."""
        given = {key.replace("_", "-"): value for key, value in variables.items()}
        assert given.keys() <= ACTION["inputs"].keys()
        inputs = {key: each["default"] for key, each in ACTION["inputs"].items()} | given
        step = STEPS[name]
        own = {key: self._value(text, inputs) for key, text in step["env"].items()}
        assert "${{" not in str([*own.values(), step["run"]])
        assert step["shell"] == "bash"
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "RUNNER_TEMP": str(self.folder)}
        environment["GITHUB_JOB"] = "test"
        environment |= {key: str(file) for key, file in self.files.items()} | own
        script = self.folder / f"{name}.sh"
        script.write_text(step["run"])
        return subprocess.run(
            [*BASH, script],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )

    @staticmethod
    def _value(text, inputs):
        """An expression of those that the steps have, as a runner takes it."""
        found = re.fullmatch(r"\$\{\{ inputs\.([\w-]+)(?: \|\| github\.action_path)? \}\}", text)
        return inputs[found[1]] or ("action_path" in text and str(ROOT)) or ""

    def outputs(self):
        lines = self.files["GITHUB_OUTPUT"].read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)


@pytest.fixture
def job(tmp_path):
    return Job(tmp_path)


@pytest.mark.usefixtures("userspace_links", "root")
def test_programs_run_and_the_job_says_what_they_sent(job):
    done = job.step(
        "run", profile="wifi", clients="2", server=SERVE, client=FETCH, wait_port="8000",
        until="clients",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    outputs = job.outputs()
    assert set(ACTION["outputs"]) <= set(outputs)
    assert int(outputs["wire-bytes"]) > 1000
    assert outputs["verdict"] in ("pass", "fail")
    assert Path(outputs["report"]).is_file()
    assert (Path(outputs["folder"]) / "summary.json").is_file()
    page = job.files["GITHUB_STEP_SUMMARY"].read_text()
    assert page.startswith("### Wiretune: wifi\n")
    heads, rule, *rows = [line for line in page.splitlines() if line.startswith("|")]
    assert heads.startswith("| node | exit |") and set(rule) <= set("|-")
    assert [row.split(" | ")[0] for row in rows] == ["| server", "| client-1", "| client-2"]
    assert {row.count(" | ") for row in rows} == {heads.count(" | ")}


@pytest.mark.usefixtures("userspace_links", "root")
def test_a_program_that_fails_fails_the_step_and_is_told_of(job):
    done = job.step("run", clients="1", server="true", client="exit 3")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "| client-1 | 3 |" in job.files["GITHUB_STEP_SUMMARY"].read_text()
    assert job.outputs()["verdict"]


def test_what_is_refused_fails_the_step_without_a_summary(job):
    done = job.step("run", profile="4gg", client="true", server="true")
    assert done.returncode == 2 and "did you mean 4g" in done.stderr
    assert job.outputs().keys() == {"artifact"}


@pytest.mark.thorough
def test_it_installs_the_command(job, tmp_path, monkeypatch):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "wheel"]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=LIMIT_S)
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    for name in ("PIP_NO_DEPS", "PIP_NO_INDEX"):
        monkeypatch.setenv(name, "1")
    done = job.step("install", install=str(wheel))
    assert done.returncode == 0, done.stderr
    (where,) = job.files["GITHUB_PATH"].read_text().splitlines()
    assert (Path(where) / "wiretune").is_file()


def test_what_a_later_step_takes_is_an_output_of_the_run():
    """The artifact's folder and name, and what the action itself hands on."""
    named = set(re.findall(r"steps\.run\.outputs\.([\w-]+)", (ROOT / "action.yml").read_text()))
    assert named == {"wire-bytes", "verdict", "report", "folder", "artifact"}
    assert {step["uses"] for step in ACTION["runs"]["steps"] if "uses" in step} == {
        "actions/upload-artifact@v4"
    }


def test_it_is_a_composite_action_as_github_documents_them():
    assert ACTION.keys() == {"name", "description", "author", "inputs", "outputs", "runs"}
    for name, each in ACTION["inputs"].items():
        assert each.keys() == {"description", "default"}, name
        assert all(isinstance(text, str) for text in each.values()), name
        # A runner takes defaults before it knows where the action lies.
        assert "${{" not in each["default"], name
    for name, each in ACTION["outputs"].items():
        assert each.keys() == {"description", "value"}, name
    runs = ACTION["runs"]
    assert runs.keys() == {"using", "steps"} and runs["using"] == "composite"
    before = set()
    for step in runs["steps"]:
        if "run" in step:
            assert step.keys() <= {"id", "if", "shell", "env", "run"} and step["shell"]
            # What a caller wrote is no part of a script.
            assert "${{" not in step["run"]
        else:
            assert step.keys() <= {"id", "if", "uses", "with"}
        assert set(re.findall(r"steps\.([\w-]+)\.", str(step))) <= before
        before |= {step["id"]} if "id" in step else set()
    text = (ROOT / "action.yml").read_text()
    assert set(re.findall(r"\binputs\.([\w-]+)", text)) == set(ACTION["inputs"])
