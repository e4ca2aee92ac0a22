"""A run as CSV and as TensorBoard's event files, against what was made up."""

import csv
import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from made_run import HOSTILE, PAYLOAD, ROUND_S, WIRE, events, folder, summary

import cli
from testbed import extras
from testbed.config_error import ConfigError
from testbed.report import export as exporting
from testbed.report import tables


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return folder(tmp_path / "20261121-100000-run", events())


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def output(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(cli.main, [str(each) for each in arguments])
    assert result.exit_code == code, result.output
    return result.stdout


def test_every_round_is_a_row_with_units(run: Path) -> None:
    assert output("export", run, "--csv").splitlines()[0] == f"export: {run / 'rounds.csv'}"
    first, second = rows(run / "rounds.csv")
    assert (first["round"], first["finished"], second["round"]) == ("1", "true", "2")
    assert [float(each["elapsed_s"]) for each in (first, second)] == [ROUND_S, 2 * ROUND_S]
    assert float(first["accuracy"]) == 0.5 and float(first["loss"]) == 1.0
    assert int(first["payload_up_bytes"]) == 2 * PAYLOAD
    assert int(second["wire_down_bytes"]) == 2 * WIRE
    assert (first["compute_s"], first["clients_ok"], first["updates_missed"]) == ("3.0", "2", "0")


def test_every_scalar_of_a_rounds_summary_is_a_column(run: Path) -> None:
    output("export", run, "--csv")
    (entry, _) = json.loads((run / "summary.json").read_text())["rounds"]
    (first, _) = rows(run / "rounds.csv")
    for name, value in entry.items():
        if isinstance(value, int | float):
            assert first[name] == str(value).lower() or float(first[name]) == value, name
    for level, ways in entry["bytes"].items():
        if level != "by_kind":
            assert all(first[f"{level}_{way}_bytes"] == str(ways[way]) for way in ("up", "down"))


def test_clients_kinds_and_spans(run: Path) -> None:
    output("export", run, "--csv")
    one, two = rows(run / "clients.csv")
    assert (one["client"], one["profile"], one["lost"]) == ("client-1", "4g", "")
    assert int(two["wire_up_bytes"]) == 2 * WIRE and float(two["cpu_s"]) == 6.0
    assert one["losses_up_packets"] == "0" and one["retransmitted_up_bytes"] == ""
    assert rows(run / "kinds.csv") == [
        {
            "round": n,
            "kind": "adapter",
            "payload_up_bytes": str(2 * PAYLOAD),
            "payload_down_bytes": str(2 * PAYLOAD),
        }
        for n in "12"
    ]
    spans = rows(run / "spans.csv")
    assert [row["node"] for row in spans] == 2 * ["server", "client-1", "client-2"]
    assert float(spans[1]["compute_s"]) == 3.0 and float(spans[1]["receive_s"]) == 1.0


def test_text_of_a_run_stays_in_its_cell(tmp_path: Path) -> None:
    reason = f'{HOSTILE},"\n1,2'
    lost = {"t": 50, "node": "supervisor", "event": "lost", "peer": "client-1", "reason": reason}
    found = events()
    found.insert(-1, lost)
    output("export", folder(tmp_path / "run", found), "--csv", f"--out={tmp_path / 'a' / 'b'}")
    cell = rows(tmp_path / "a" / "b" / "clients.csv")[0]["lost"]
    assert cell == reason.replace("\n", r"\n")


def test_a_metric_does_not_take_a_columns_place() -> None:
    found = events(rounds=1)
    for event in found:
        if event["event"] == "round":
            event["metrics"] = {"seconds": 7.0}
    (row,) = tables.rounds(summary(found))
    assert (row["seconds"], row["metrics_seconds"]) == (ROUND_S, 7.0)


def test_a_run_that_began_no_round_has_empty_tables(tmp_path: Path) -> None:
    run = folder(tmp_path / "run", events(rounds=0))
    written = json.loads(output("export", run, "--csv", "--json"))["written"]
    assert [Path(path).name for path in written] == [f"{name}.csv" for name in tables.TABLES]
    assert rows(run / "rounds.csv") == [] and len(rows(run / "clients.csv")) == 2


def test_what_tensorboard_is_given() -> None:
    found = list(tables.scalars(summary(events())))
    assert ("metrics/accuracy", 0.1, 0, 0.0) in found
    assert ("metrics/accuracy", 0.75, 2, 2 * ROUND_S) in found
    assert ("bytes/wire_up_bytes", 2.0 * WIRE, 1, ROUND_S) in found
    assert ("seconds/compute_s", 3.0, 1, ROUND_S) in found
    assert ("clients/clients_ok", 2.0, 2, 2 * ROUND_S) in found
    assert len({(tag, number) for tag, _, number, _ in found}) == len(found)


@pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="needs the package tensorboard"
)
def test_tensorboard_reads_what_is_written(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):  # What an earlier export left is replaced.
        output("export", run, "--tensorboard")
    read: Any = EventAccumulator(str(run / "tensorboard"))
    read.Reload()
    began_s = time.mktime((2026, 11, 21, 10, 0, 0, 0, 0, -1))
    expected: dict[str, list[tuple[int, float, float]]] = {}
    for tag, value, number, seconds in tables.scalars(summary(events())):
        expected.setdefault(tag, []).append((number, began_s + seconds, value))
    assert set(read.Tags()["scalars"]) == expected.keys()
    for tag, points in expected.items():
        seen = [(each.step, each.wall_time, each.value) for each in read.Scalars(tag)]
        assert [each[:2] for each in seen] == [each[:2] for each in points]
        assert [each[2] for each in seen] == pytest.approx([each[2] for each in points])


def test_without_the_package_it_says_how_to_get_it(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda n: None if n == "tensorboard" else found(n))
    for words in (["export", str(run), "--tensorboard"], ["launch", "--tensorboard"]):
        result = CliRunner().invoke(cli.main, words)
        assert isinstance(result.exception, ConfigError)
        assert "pip install 'wiretune[tensorboard]'" in str(result.exception)
    assert not (run / "tensorboard").exists()


def test_refusals(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--csv or --tensorboard"):
        exporting.export(run, [])
    with pytest.raises(ConfigError, match=r"cannot read events\.jsonl"):
        exporting.export(tmp_path, ["csv"])
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--out .*file: cannot write there"):
        exporting.export(run, ["csv"], tmp_path / "file")
