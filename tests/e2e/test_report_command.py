"""A real run's report, written by launch, and the commands over its folder."""

import json
from xml.etree import ElementTree

import pytest
import warm
from running import CLI, FAST, LIMIT_S, ROOT

FLAGS = ("--links=loopback", "--profile=unlimited", "--clients=2", "--rounds=1", *FAST)


@pytest.fixture(scope="module")
def run(launch_for_module):
    run = launch_for_module(*FLAGS)
    assert run.finish() == 0, run.describe()
    return run


def cli(*arguments):
    done = warm.run([*CLI, *map(str, arguments)], cwd=ROOT, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_launch_says_in_its_last_line_where_the_report_is(run):
    path = run.folder / "report.html"
    assert run.stdout.splitlines()[-1] == f"report: {path}"
    assert ElementTree.parse(path).find(".//title").text == "fedavg on unlimited, 2 clients: ok"


def test_the_report_can_be_written_again_as_it_was(run):
    path = run.folder / "report.html"
    first = path.read_text()
    path.unlink()
    assert cli("report", run.folder) == f"report: {path}\n"
    assert path.read_text() == first


def test_the_reports_figures_are_the_summarys(run):
    said = " ".join(ElementTree.parse(run.folder / "report.html").getroot().itertext())
    (entry,) = run.summary["rounds"]
    assert f"to {entry['metrics']['accuracy']:.3f} in 1 round" in said
    payload = run.summary["bytes"]["payload"]
    assert f"{payload['up'] / 1e6:.3f}" in said
    assert all(f"client-{n}" in said for n in (1, 2))


def test_results_and_compare_read_the_same_folder(run, tmp_path):
    (row,) = json.loads(cli("results", f"--out={run.out}", "--json"))
    page = tmp_path / "comparison.html"
    (compared,) = json.loads(cli("compare", run.folder, "--json", f"--out={page}"))["runs"]
    assert row["folder"] == compared["folder"] == str(run.folder)
    assert row["accuracy"] == compared["accuracy"]
    assert row["minutes"] == compared["minutes"] == run.summary["rounds"][0]["seconds"] / 60
    assert page.exists()
