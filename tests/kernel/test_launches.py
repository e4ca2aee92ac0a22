"""Whole runs over the kernel's own netem: what a user types, from boot to power-off."""

import json
from pathlib import Path
from typing import Any

import captured
import pytest
from documented_events import undocumented
from launches import SIZE
from uml import LAUNCHES_LIMIT_S

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(LAUNCHES_LIMIT_S + 30)]

WAYS = ("up", "down")


@pytest.fixture(scope="session")
def told(launched: Path) -> dict[str, Any]:
    found = json.loads((launched / "told.json").read_text())
    assert isinstance(found, dict)
    return found


def folder(launched: Path, name: str) -> Path:
    (found,) = (launched / name).iterdir()
    return found


def summary(launched: Path, name: str) -> dict[str, Any]:
    return json.loads((folder(launched, name) / "summary.json").read_text())


def events(launched: Path, name: str) -> list[dict[str, Any]]:
    lines = (folder(launched, name) / "events.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(("name", "codes"), [("whole", [0]), ("killed", [-9, 0]), ("reduced", [0])])
def test_runs_end_well_on_netem(launched, told, name, codes):
    assert told[name]["exit"] == codes
    found = summary(launched, name)
    assert (found["status"], found["links"], found["rounds_done"]) == ("ok", "netem", 2)
    assert found["link_facts"]["rootless"] is (name == "killed")
    assert found["metrics"]["final"]["accuracy"] > found["metrics"]["initial"]["accuracy"] + 0.3
    assert not any(row["lost"] for row in found["per_client"])
    for row in found["per_client"]:
        for way in WAYS:
            assert row["bytes"]["wire"][way] > row["bytes"]["message"][way] > 0
    assert undocumented(events(launched, name)) == []
    assert (folder(launched, name) / "nodes.log").read_text() == ""
    assert (folder(launched, name) / "report.html").exists()


def test_auto_takes_netem_where_it_is(launched):
    (run,) = [event for event in events(launched, "whole") if event["event"] == "run"]
    assert "--links" not in run["command"] and run["config"]["links"] == "netem"


@pytest.mark.parametrize("name", ["whole", "programs"])
def test_captures_are_what_the_kernel_counted(launched, name):
    for row in summary(launched, name)["per_client"]:
        path = folder(launched, name) / "captures" / f"{row['name']}.pcap"
        number = row["name"].removeprefix("client-")
        carried = captured.wire(captured.read(path), f"10.1.0.{number}")
        if row["losses"]["down"] or row["queue_drops"]["down"]:
            continue
        for way in WAYS:
            assert carried[way][1] == pytest.approx(row["bytes"]["wire"][way], rel=0.005)


def test_an_outage_comes_and_goes(launched):
    shaped = [event for event in events(launched, "whole") if event["event"] == "shaped"]
    assert [(event["node"], event["at_s"]) for event in shaped] == [
        ("client-2", 1.0),
        ("client-2", 4.0),
    ]
    assert [event["up"].get("outage", False) for event in shaped] == [True, False]
    assert all(event["actual_s"] == pytest.approx(event["at_s"], abs=0.5) for event in shaped)
    unharmed, cut_off = summary(launched, "whole")["per_client"]
    assert sum(cut_off["losses"].values()) > 0 == sum(unharmed["losses"].values())


def test_a_killed_run_goes_on_after_its_last_round(launched):
    (resumed,) = [event for event in events(launched, "killed") if event["event"] == "resumed"]
    assert resumed["round"] == 1


def test_a_dilated_all_reduce_passes_the_certificate(launched):
    found = summary(launched, "reduced")
    assert (found["transport"], found["dilation"]) == ("gloo", 4)
    assert found["fidelity"]["verdict"] == "pass"
    checks = found["fidelity"]["checks"]
    assert len(checks) == 6 and all(check["ok"] for check in checks)
    assert all("allreduce" in row["bytes"]["by_kind"] for row in found["per_client"])


def test_tc_makes_of_the_printed_commands_what_the_run_has(told):
    seen = told["tc"]
    assert seen["enter"] == ["client-1", "client-2", "links", "server"]
    assert seen["made"] == seen["had"]
    kinds = [entry["kind"] for entry in seen["had"]]
    assert (kinds.count("netem"), kinds.count("clsact")) == (6, 3)
    assert "10.1.0.1/" in seen["client-1"]


def test_programs_of_others_run_behind_links_that_pass_the_certificate(launched, told):
    assert told["programs"]["exit"] == [0]
    found = summary(launched, "programs")
    assert (found["status"], found["links"]) == ("ok", "netem")
    links = found["fidelity"]["links"]
    assert links["verdict"] == "pass", links
    assert undocumented(events(launched, "programs")) == []
    _, *clients = found["programs"]
    assert [(row["code"], row["missing"]) for row in clients] == 2 * [(0, [])]
    for row, client in zip(clients, found["per_client"], strict=True):
        said = folder(launched, "programs") / "nodes" / row["node"] / "stdout.txt"
        assert said.read_text() == f"{SIZE}\n"
        (flow,) = row["flows"]
        assert SIZE < flow["received"] < client["bytes"]["wire"]["down"] < 1.2 * SIZE
