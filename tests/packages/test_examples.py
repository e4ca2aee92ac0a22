"""Other people's programs inside the links, from the package index, as docs/exec.md starts them."""

import json
from xml.etree import ElementTree

import pytest
from running import Run

MB = 1_000_000
NODES = ("server", "client-1", "client-2")
TIMER_S = 30.0


def output_of(run: Run, node: str, stream: str = "stdout") -> str:
    return (run.folder / "nodes" / node / f"{stream}.txt").read_text()


def on_the_wire(run: Run, way: str) -> list[int]:
    return [row["bytes"]["wire"][way] for row in run.summary["per_client"]]


@pytest.mark.parametrize("number", [0, 1], ids=["by name", "by address"])
def test_torchruns_ranks_sum_gradients_over_the_links(example, number):
    run = example("torchrun: DDP over gloo", number)
    assert run.finish() == 0, run.describe()
    for node in NODES:
        assert f"of 3 on {node}\n" in output_of(run, node)
        assert output_of(run, node).endswith("step 3\nweights agree\n")
    # Around a ring of three each step takes 4/3 MB from every node.
    for way in ("up", "down"):
        assert min(on_the_wire(run, way)) > 3 * 4 / 3 * MB


def test_a_report_says_when_bytes_stopped_of_a_payload_that_a_programs_timer_ended(example):
    run = example("A payload that is too large for its line")
    assert run.finish() == 1, run.describe()
    said = "".join(output_of(run, node, "stderr") for node in NODES[:2])
    assert "Timed out waiting 30000ms" in said
    assert sum(on_the_wire(run, "up") + on_the_wire(run, "down")) < 300 * MB
    page = ElementTree.parse(run.folder / "report.html")
    table = next(each for each in page.iter("table") if "last bytes at, s" in each.itertext())
    heads, *rows = [[cell.text for cell in row] for row in table.iter("tr")]
    for row in rows:
        cells = dict(zip(heads, row, strict=True))
        assert TIMER_S < float(cells["last bytes at, s"]) <= float(cells["seconds"]) + 1


def test_flowers_own_count_of_bytes_is_within_the_wires(example):
    run = example("Flower")
    assert run.finish() == 0, run.describe()
    said = output_of(run, "server")
    (counted,) = json.loads(said[said.rindex('{\n  "success"') :])["runs"]
    assert counted["status"] == "finished:completed"
    assert [row["finished"] for row in run.summary["rounds"]] == 3 * [True]
    for way, name in (("up", "inbound-bytes"), ("down", "outbound-bytes")):
        own, wire = counted["network-traffic"][name], sum(on_the_wire(run, way))
        # An array that the server has already does not come again, so less may come than goes.
        assert 3 * MB < own < wire < 1.25 * own


def test_ranks_of_mpich_reach_each_other_by_the_links_alone(example):
    run = example("MPICH")
    assert run.finish() == 0, run.describe()
    said = sorted(output_of(run, "server").splitlines())
    assert said == [f"rank {n} of 3 on {node}: the sum is right" for n, node in enumerate(NODES)]
    # Each rank's own array must leave it, and the sum come.
    for way in ("up", "down"):
        assert min(on_the_wire(run, way)) > MB


def test_workers_of_dask_take_data_from_one_another_over_the_links(example):
    run = example("Dask")
    assert run.finish() == 0, run.describe()
    assert output_of(run, "server") == "[1000000]\n"
    (first_up, _), (_, second_down) = on_the_wire(run, "up"), on_the_wire(run, "down")
    assert first_up > MB and second_down > MB


def test_nvflare_runs_a_job_in_processes_of_its_own(example):
    run = example("NVFlare")
    assert run.finish() == 0, run.describe()
    assert "status: FINISHED:COMPLETED" in output_of(run, "server")
    for way in ("up", "down"):
        assert min(on_the_wire(run, way)) > 2 * MB
