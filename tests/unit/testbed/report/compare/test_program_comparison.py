"""Runs of programs held against one another, and against methods: rows by role, rates, words."""

import csv
import json
from pathlib import Path
from typing import Any

import made_programs
import made_run
import pytest
from checked_page import check
from click.testing import CliRunner
from made_run import folder, summary

import cli
from testbed.config_error import ConfigError
from testbed.report import programs, tables
from testbed.report.compare import comparability, comparison, program_comparison
from testbed.report.page import svg
from testbed.report.read import Reading


def output(*arguments: object) -> str:
    result = CliRunner().invoke(cli.main, [str(each) for each in arguments])
    assert result.exit_code == 0, result.output
    assert "None" not in result.stdout
    return result.stdout


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [
        folder(tmp_path / "20261121-100000-a", made_programs.events()),
        folder(
            tmp_path / "20261121-100001-b",
            made_programs.events(client="fetch --fast", codes={"client-2": 28}),
        ),
    ]


def test_nodes_of_one_command_are_a_role() -> None:
    found = made_programs.events(clients=3, codes={"client-3": 28})
    server, clients = programs.roles(summary(found))
    assert (server.name, server.nodes, server.exits, server.up) == (
        *("server", 1),
        *("stopped (143)", None),
    )
    assert (clients.name, clients.exits, clients.seconds) == ("clients", "2 x 0, 1 x 28", (4, 4))
    assert (clients.up, clients.down) == (3 * 4000, 3 * 4 * made_programs.RATE)
    assert (clients.cpu_s, clients.memory_mb, clients.resent_segments) == (1.5, 2.5, 9)
    found[0]["programs"]["client-2"] = "other"
    assert [role.name for role in programs.roles(summary(found))] == [
        *("server", "client-1, client-3", "client-2")
    ]
    for n in (1, 2, 3):
        found[0]["programs"][f"client-{n}"] = f"own {n}"
    assert len(programs.roles(summary(found))) == 4
    many = made_programs.events(clients=9)
    many[0]["programs"] |= {f"client-{n}": f"own {n}" for n in range(1, 10)}
    assert [role.name for role in programs.roles(summary(many))] == ["server", "clients"]


def test_programs_are_compared_by_role_and_named_by_what_differs(
    runs: list[Path], tmp_path: Path
) -> None:
    shown = output("compare", *runs)
    assert "rounds" not in shown and "target" not in shown
    assert "On 4g with 2 clients: exec clients=fetch took 4 s, with 0.008 MB up" in shown
    assert "clients 1 x 0, 1 x 28; failed: client-2 exited with 28." in shown
    assert "what programs got to in exec clients=fetch --fast (client-2 exited with 28)" in shown
    found = json.loads(output("compare", *runs, "--json", f"--out={tmp_path / 'c.html'}"))
    assert found["runs"] == []
    first, second = found["programs"]
    assert (first["run"], second["status"]) == ("exec clients=fetch", "failed")
    assert [role["role"] for role in first["roles"]] == ["server", "clients"]
    assert first["roles"][1]["wire_down_bytes"] == 2 * 4 * made_programs.RATE
    page = (tmp_path / "c.html").read_text()
    root = check(page)
    text = " ".join(" ".join(root.itertext()).split())
    assert "None" not in text and "front" not in text and "Every program" in text
    assert "down on the wire, all clients together" in text


def test_a_variable_that_differs_names_a_run(tmp_path: Path) -> None:
    made = []
    for name in ("a", "b"):
        made.append(folder(tmp_path / name, made_programs.events()))
        (made[-1] / "config.toml").write_text(f'env = {{MODE = "{name}"}}\n')
    assert comparison.names(comparison.runs(made)) == ["exec MODE=a", "exec MODE=b"]


def test_programs_beside_methods_have_their_own_table_and_a_note(tmp_path: Path) -> None:
    ran = folder(tmp_path / "20261121-100000-a", made_programs.events())
    taught = folder(tmp_path / "20261121-100001-b", made_run.events())
    shown = output("compare", taught, ran, "--target=0.5")
    assert "minutes to 0.50" in shown and "fedpeft reached 0.50" in shown
    assert "1 run of programs" in shown
    (note,) = [
        note for note in comparability.notes(comparison.runs([ran, taught])) if "programs" in note
    ]
    assert note.startswith("No metric and no payload is known of programs (exec)")
    assert "real and of modelled" not in shown
    found = json.loads(output("compare", taught, ran, "--json"))
    assert [run["run"] for run in found["runs"]] == ["fedpeft"]
    assert found["runs"][0]["where"] == "4g with 2 clients, digits"
    assert found["programs"][0]["where"] == "4g with 2 clients"
    check((tmp_path / "comparison.html").read_text())
    with pytest.raises(ConfigError, match="programs have no metric; leave it out"):
        CliRunner().invoke(cli.main, ["compare", str(ran), "--target=0.5"], catch_exceptions=False)


def test_rates_are_of_all_clients_and_what_has_none_says_so(runs: list[Path]) -> None:
    (row, _) = program_comparison.ran(comparison.runs(runs))
    assert row.rates is not None
    assert max(rate for _, rate in row.rates[1]) == pytest.approx(2 * made_programs.RATE / 1000)
    (runs[0] / "events.jsonl").write_text("{}")
    rows = program_comparison.ran(comparison.runs(runs))
    assert rows[0].rates is None
    text = "".join(program_comparison.sections(rows))
    assert "1 more ran too briefly for the meters" in text


def test_a_curve_without_marks_has_all_its_points() -> None:
    points = [(float(n), 50.0 + n % 7) for n in range(150)]
    drawn = svg.curves("t", "d", [svg.Curve("a", points, 0)], "s", "kB/s", None)
    assert drawn.count("L") >= 149
    # And heights are seen from 0.
    assert ">0</text>" in drawn.replace(">0</text>", "", 1)


def test_results_have_programs_time_and_exits(runs: list[Path], tmp_path: Path) -> None:
    listed = json.loads(
        CliRunner().invoke(cli.main, ["results", f"--out={tmp_path}", "--json"]).stdout
    )
    assert [row["exits"] for row in listed] == [
        "server stopped (143); clients 1 x 0, 1 x 28",
        "server stopped (143); clients 0",
    ]
    assert listed[0]["minutes"] == pytest.approx(4 / 60)
    output("results", f"--out={tmp_path}")


def test_a_killed_runs_row_has_no_none(tmp_path: Path) -> None:
    folder(tmp_path / "20261121-100000-a", made_programs.events()[:2])
    assert "exec" in output("results", f"--out={tmp_path}")


def rows(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_programs_flows_and_readings_are_exported(runs: list[Path]) -> None:
    output("export", runs[1], "--csv")
    names = {path.stem for path in runs[1].glob("*.csv")}
    assert names == {*tables.OF_PROGRAMS, tables.READINGS}
    server, _, second = rows(runs[1] / "programs.csv")
    assert (server["code"], server["stopped"], second["how"]) == ("143", "true", "exited with 28")
    assert float(second["cpu_s"]) == 0.5
    flow = rows(runs[1] / "flows.csv")[0]
    assert (flow["from"], flow["to"], flow["resent_segments"]) == ("client-1", "server:80", "3")
    (client, _) = rows(runs[1] / "clients.csv")
    assert client["wire_up_bytes"] == "4000" and "payload_up_bytes" not in client
    last = rows(runs[1] / "readings.csv")[-1]
    assert (last["node"], float(last["t_s"])) == ("client-2", 5.0)
    assert int(last["wire_down_bytes"]) == 4 * made_programs.RATE


def test_tensorboard_has_rates_by_client() -> None:
    meters = [Reading(float(t), [(0, 0), (1000 * t, 0), (0, 0)]) for t in range(4)]
    found = list(tables.scalars(summary(made_programs.events()), meters))
    assert ("kB_per_s_up/client-1", 1.0, 0, 0.5) in found
    assert len(found) == 2 * 2 * 3
