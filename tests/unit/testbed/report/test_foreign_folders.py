"""Runs' folders that are damaged or somebody else's: told in a sentence, and nothing else done."""

from __future__ import annotations

import copy
import csv
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import made_run
import msgspec
import pytest
from click.testing import CliRunner
from documented_events import documented

import cli
from nodes.checkpoint import store
from testbed import files
from testbed.config_error import ConfigError
from testbed.record import chrome_trace, recovery
from testbed.record import reading as module
from testbed.record.reading import Damaged
from testbed.record.recorder import Recorder
from testbed.record.recovery import Killed
from testbed.record.run_summary import Summary
from testbed.report import export, listing, programs, summaries
from testbed.report.compare import comparability, comparison, program_comparison
from testbed.report.page import run_page
from testbed.report.read import gather, refusing

Event = dict[str, Any]
WRONG: tuple[Any, ...] = (
    *(None, True, -1, -5e9, 2**62, 2**70, 10**400, 1e300, "", "9", "\x1b[2J\u202e<b>"),
    *([], {}, [None], {"up": 1}, [[[1]]]),
)
"""In place of whatever stands in a file."""


def at(t: float, node: str, event: str, **fields: Any) -> Event:
    return {"t": t, "node": node, "event": event, **fields}


def whole_run() -> list[Event]:
    """A small run with an event of every kind."""
    *found, closed = made_run.events(clients=1, rounds=1)
    environment = {"cores": 2, "memory_mb": 8000, "git": None, "packages": {"torch": "2.13"}}
    found[0] |= {"origin_ns": 0, "asynchronous": False, "dilation": 1.0, "environment": environment}
    line = [[[6000.0, 25.0], [None, 25.0]]]
    found[1] |= {"lines": line * 2, "facts": {"backend": "x", "lateness_p99_ms": 0.1}}
    name = "client-1"
    resent = {"pid": 7, "private_mb": 20.0, "peak_private_mb": 21.0, "cpu_s": 1, "run_delay_s": 0.1}
    lost = {"payload": {"up": 1, "down": 2}, "message": {"up": 1, "down": 2}, "seconds": 0.5}
    zero = {"up": {}, "down": {}, "at_s": 0.0, "actual_s": 0.1}
    parts = [
        {"name": host, "address": f"10.0.0.{n}", "cores": 2, "memory_mb": 900, "nodes": 1}
        for n, host in enumerate("ab")
    ]
    ways = [
        {"sender": one, "receiver": other, "rtt_min_ms": 0.1, "rtt_median_ms": 0.2}
        | {"rtt_max_ms": 0.3, "rate_kbit": 1e6, "offset_ms": 0.0, "offset_error_ms": 0.1}
        for one, other in ("ab", "ba")
    ]
    more = [
        at(0.1, "supervisor", "hosts", hosts=parts, place="server=a,client-1=b", underlay=ways),
        at(0.2, name, "started", pid=7),
        at(0.3, name, "ready", samples=9, round_flops=1e9),
        at(0.3, name, "limited", memory_mb=9.5, whose="phone's"),
        at(
            0.35,
            name,
            "confined",
            capabilities=0,
            no_new_privileges=True,
            seccomp=True,
            landlock=7,
            missing=["seccomp: no"],
        ),
        at(0.4, name, "connection", congestion="cubic"),
        at(0.5, "server", "joined", clients=1),
        at(0.6, name, "away", at_s=1.0, actual_s=1.0),
        at(0.7, name, "back", at_s=1.0, actual_s=1.0),
        at(0.7, "server", "host_rate", gflops=9.0),
    ]
    later = [
        at(17, name, "shaped", line=line[0], **zero),
        at(17, name, "staged", peer="server", kind="model", round=1, sizes=[["", 8], ["int8", 3]]),
        at(17, name, "reduced", round=1, members=1, began_ns=11, connected_ns=12, ended_ns=13)
        | {"received": {"client-1": 9}, "reason": None},
        at(17, "server", "dropped", peer="x", bytes=9, reason="no"),
        at(17, "supervisor", "stopped", peer=name, seconds=2.5),
        at(17, "server", "missed", peer=name, round=1, reason="late"),
        at(17, name, "overtaken", reason="busy"),
        at(17, name, "computed", round=1, cpu_s=0.1, device_s=0.2, late_s=0.0),
        at(17, name, "usage", retransmitted={"10.0.0.2": [1, 1448]}, **resent),
        at(17, name, "saved", round=1, bytes=9, seconds=0.1),
        at(17, name, "unsaved", round=1, reason="full"),
        at(17, name, "failed", traceback="E: x", reason="x"),
        at(17, name, "ended", pid=7, how="exited with 1"),
        at(17, "supervisor", "lost", peer=name, reason="gone"),
        at(18, "supervisor", "captured", packets=[1], dropped=[0], failure=None),
        at(18, "supervisor", "resumed", round=1, at_s=18.0, lost=lost, environment=environment),
        at(19, "supervisor", "host_clock", host="b", behind_s=0.001, error_s=1e-5),
        at(19, "supervisor", "hosts_cut", hosts=["b", "c"], reason="no word"),
        at(19, "supervisor", "host_gone", host="b", reason="no word"),
        at(19, "server", "done"),
        at(19, "supervisor", "host", verdict="pass", reason="in time", latest=name, late_share=0.1)
        | {"links_late_ms": 0.1, "dilation_needed": 1.0, "busy_cores": 0.5},
    ]
    tunnels = {"b": {"frames_received": 9, "late_frames": 1}}
    links = {"busy_cores": 0.5, "lateness_p99_ms": 0.1}
    left = at(20, "supervisor", "host_left", host="a", links=links, tunnels=tunnels)
    return [*found[:2], *more, *found[2:], *later, left, closed]


def programs_run() -> list[Event]:
    """A small run of programs, with what only such a one has."""
    found = made_run.events(clients=1, rounds=1)
    run, links, certified, closed = (
        next(copy.deepcopy(event) for event in found if event["event"] == kind)
        for kind in ("run", "links", "certified", "closed")
    )
    run["programs"] = {"server": "true", "client-1": "false"}
    run["config"] = {"expect_bytes": "5MB"}
    flow = {"peer": "10.0.0.1", "port": 80, "serves": False, "connections": 1, "sent": 9}
    usage = {"pid": 0, "private_mb": 1.0, "peak_private_mb": 2.0, "cpu_s": 1, "run_delay_s": 0.1}
    name = "client-1"
    counters = [
        [[[0] * 4] * 2, [[1, size, 0, 0], [1, 2 * size, 0, 0]]] for size in (0, 100, 200, 200)
    ]
    return [
        *(run, links, certified),
        at(20, name, "isolated", missing=["a /sys"]),
        *(at(21 + n, "supervisor", "wire", round=None, counters=c) for n, c in enumerate(counters)),
        at(26, name, "usage", **usage),
        at(26, name, "exited", code=1, how="exited with 1", seconds=5.0, stopped=False),
        at(27, name, "brought", host="b", files=2, bytes=9, left_out=["1 that is odd"]),
        at(27, name, "carried", flows=[flow], lookups=["x.org"], sockets=["/run/s"]),
        closed,
    ]


WHOLE = whole_run()
PROGRAMS = programs_run()
OF_PROGRAMS = {"isolated", "exited", "brought", "carried"}
NOTHING = [[[0] * 4] * 2] * 2


def paths(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of each value within, of lists the first element's."""
    if before:
        yield before
    inner = enumerate(value[:1]) if isinstance(value, list) else ()
    for key, each in value.items() if isinstance(value, dict) else inner:
        yield from paths(each, (*before, key))


def changed(document: Any, path: tuple[Any, ...], *value: Any) -> Any:
    """With another value there, or without any."""
    # As it comes from a file, and sooner than by a deep copy.
    found = json.loads(json.dumps(document))
    place = found
    for step in path[:-1]:
        place = place[step]
    if value:
        place[path[-1]] = value[0]
    else:
        del place[path[-1]]
    return found


def tell(record: bytes) -> None:
    """All that is made of a run's events."""
    file = io.BytesIO(record)
    with refusing("x"):
        story = gather(recovery.sifted(file))
        run_page.page(story, Path("RUN"))
        for table in (export.tables.TABLES | export.tables.OF_PROGRAMS).values():
            table(story.summary)
        export.tables.readings(story.summary, story.readings)
        list(export.tables.scalars(story.summary, story.readings))
        programs.roles(story.summary)


def test_every_kind_that_is_documented_is_here() -> None:
    assert {event["event"] for event in WHOLE} | OF_PROGRAMS == documented().keys()
    for record in (WHOLE, PROGRAMS):
        tell(b"".join(made_run.lines(record)))


CASES = [(kind, PROGRAMS if kind in OF_PROGRAMS else WHOLE) for kind in sorted(documented())]
CASES += [(kind, PROGRAMS) for kind in ("run", "wire", "usage")]


@pytest.mark.thorough
@pytest.mark.parametrize(("kind", "record"), CASES, ids=[kind for kind, _ in CASES])
def test_no_field_of_an_event_is_believed(kind: str, record: list[Event]) -> None:
    place = next(n for n, event in enumerate(record) if event["event"] == kind)
    lines = made_run.lines(record)
    before, after = (b"".join(part) for part in (lines[:place], lines[place + 1 :]))
    refused = 0
    for path in paths(record[place]):
        for value in [(), *((wrong,) for wrong in WRONG)]:
            event = changed(record[place], path, *value)
            try:
                tell(before + made_run.lines([event])[0] + after)
            except ConfigError as error:
                assert "as this version writes it" in str(error)
                refused += 1
    assert refused > 10


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (at(50, "server", "round_started", round=50_000_000), "<= 1000000"),
        (at(50, "server", "round_started", round=900_000), "round 900000 begins after round 1"),
        (
            at(50, "supervisor", "wire", round=9, counters=[[[0] * 4] * 2] * 2),
            "wire: round 9 has not begun",
        ),
        (at(50, "supervisor", "resumed", round=9, at_s=1, lost=0), "lost"),
        (at(50, "client-2", "usage", pid=1, private_mb=1, cpu_s=1, run_delay_s=1), "'client-2'"),
        (at("9", "server", "done"), "Expected `float`"),  # type: ignore[arg-type]
    ],
)
def test_how_much_there_is_no_figure_says(event: Event, words: str, tmp_path: Path) -> None:
    folder = made_run.folder(tmp_path / "run", WHOLE[:-1])
    with (folder / "events.jsonl").open("ab") as file:
        file.writelines(made_run.lines([event]))
    for use in (run_page.write, Killed, lambda path: export.export(path, ["csv"])):
        with pytest.raises(ConfigError) as caught:
            use(folder)
        assert words in str(caught.value) and "line" in str(caught.value)


def test_a_line_without_end_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_LINE_BYTES", 50)
    with pytest.raises(Damaged, match="50 bytes or more"):
        list(module.lines(io.BytesIO(b"x" * 10_000)))


@pytest.mark.parametrize("line", [b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b"[1", b"null"])
def test_what_is_no_event_is_a_torn_line(line: bytes) -> None:
    whole = made_run.lines(WHOLE)
    story = gather(recovery.sifted(io.BytesIO(b"".join([*whole[:5], line + b"\n", *whole[5:]]))))
    assert story.torn_lines == 1


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("record", "within"), [(WHOLE, ""), (PROGRAMS, "programs")], ids=["method", "programs"]
)
def test_no_field_of_a_summary_is_believed(
    record: list[Event], within: str, tmp_path: Path
) -> None:
    good, run = (made_run.folder(tmp_path / name, record) for name in ("good", "run"))
    summary = json.loads((run / "summary.json").read_text())
    refused = 0
    for path in [each for each in paths(summary) if within in ("", each[0])]:
        for value in [(), *((wrong,) for wrong in WRONG)]:
            (run / "summary.json").write_text(json.dumps(changed(summary, path, *value)))
            rows = listing.rows(tmp_path)
            assert {row["folder"] for row in rows} == {good.as_posix(), run.as_posix()}
            assert any(row["status"] == "ok" for row in rows)
            listing.table(rows)
            try:
                found = comparison.runs([good, run])
                taught, ran = comparison.parted(found)
                rows_, target = comparison.compare(taught, None)
                comparison.table(rows_, target)
                comparison.data(rows_, target, comparability.notes(found))
                program_comparison.sections(program_comparison.ran(ran))
            except ConfigError as error:
                assert "summary.json" in str(error)
                refused += 1
    assert refused > 100


def test_a_summary_of_an_older_version_is_read(tmp_path: Path) -> None:
    run = made_run.folder(tmp_path / "run", WHOLE)
    summary = json.loads((run / "summary.json").read_text())
    needed = {field.encode_name for field in msgspec.structs.fields(Summary) if field.required}
    older = {name: value for name, value in summary.items() if name in {"schema", *needed}}
    older["fidelity"] = {"verdict": "pass"}
    drop = {"node": "server", "peer": "client-1", "reason": "odd", "bytes": 7}
    older["dropped_messages"] = [drop]
    (run / "summary.json").write_text(json.dumps(older))
    found = summaries.load(run / "summary.json")
    assert [row.count for row in found.dropped_messages] == [1]
    assert (found.fidelity.host.verdict, found.dilation) == ("skipped", 1.0)
    rows, _ = comparison.compare(comparison.runs([run]), None)
    assert rows[0].status == "ok"


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"null", b"[" * 100_000, b'{"schema": 1}', b'{"schema": 9}', b"\xff", b"NaN"],
)
def test_one_bad_summary_costs_no_list(text: bytes, tmp_path: Path) -> None:
    for name in ("a", "b"):
        made_run.folder(tmp_path / name, WHOLE)
    (tmp_path / "b" / "summary.json").write_bytes(text)
    assert {row["status"] for row in listing.rows(tmp_path)} == {"ok", "unreadable"}
    with pytest.raises(ConfigError, match=r"RUN .*summary\.json"):
        comparison.runs([tmp_path])


def test_a_summary_that_is_too_large_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "SUMMARY_BYTES", 1000)
    run = made_run.folder(tmp_path / "run", WHOLE)
    with pytest.raises(ConfigError, match=r"more than 0\.001 MB"):
        summaries.load(run / "summary.json")


# What is no file


@pytest.mark.parametrize("name", ["events.jsonl", "summary.json", "config.toml"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "dangling"])
def test_what_is_no_file_is_not_waited_for(name: str, kind: str, tmp_path: Path) -> None:
    run = made_run.folder(tmp_path / "out" / "run", WHOLE[:-1])
    (run / name).unlink()
    make = {
        "pipe": os.mkfifo,
        "folder": Path.mkdir,
        "device": lambda path: path.symlink_to("/dev/zero"),
        "dangling": lambda path: path.symlink_to(tmp_path / "none"),
    }
    make[kind](run / name)
    for command in ("report", "compare", "export --csv", "launch --resume"):
        found = CliRunner().invoke(cli.main, [*command.split(), str(run)])
        assert found.exit_code == 0 or isinstance(found.exception, ConfigError), command
    listing.rows(run.parent)


def outside(tmp_path: Path) -> Path:
    file = tmp_path / "outside"
    file.write_text("mine")
    return file


NAMES = (
    *("report.html", ".report.html", "rounds.csv", ".rounds.csv", "comparison.html"),
    *(".comparison.html", "trace.json", ".trace.json", ".summary.json", "summary.json"),
)


def test_no_link_leads_what_is_written_out_of_the_folder(tmp_path: Path) -> None:
    file = outside(tmp_path)
    run = made_run.folder(tmp_path / "out" / "run", WHOLE)
    shutil.copy(run / "summary.json", tmp_path / "kept")
    for name in NAMES:
        for place in (run, run.parent):
            (place / name).unlink(missing_ok=True)
            (place / name).symlink_to(file)
    recorder = Recorder.__new__(Recorder)
    recorder.folder = run
    recorder.write_summary(summaries.load(tmp_path / "kept"))
    for command in ("report", "compare", "export --csv"):
        found = CliRunner().invoke(cli.main, [*command.split(), str(run)])
        assert found.exit_code == 0, found.output
    chrome_trace.write(run)
    assert file.read_text() == "mine"
    written = ("report.html", "rounds.csv", "trace.json", "summary.json")
    assert not any((run / name).is_symlink() for name in written)


def test_no_event_files_are_written_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "events.out.tfevents.1").write_text("mine")
    run = made_run.folder(tmp_path / "run", WHOLE)
    (run / "tensorboard").symlink_to(elsewhere)
    with pytest.raises(ConfigError, match="cannot write there"):
        export.export(run, ["tensorboard"])
    assert [path.name for path in elsewhere.iterdir()] == ["events.out.tfevents.1"]


def test_a_record_that_leads_elsewhere_is_not_gone_on_with(tmp_path: Path) -> None:
    run = made_run.folder(tmp_path / "run", WHOLE[:-1])
    (run / "events.jsonl").rename(tmp_path / "outside")
    (run / "events.jsonl").symlink_to(tmp_path / "outside")
    with pytest.raises(ConfigError, match="cannot read"):
        Killed(run)


def test_states_that_are_elsewhere_are_left_alone(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / ".hidden").write_text("mine")
    run = made_run.folder(tmp_path / "run", WHOLE[:-1])
    (run / store.FOLDER).symlink_to(elsewhere)
    with pytest.raises(ConfigError, match="must be a folder"):
        store.ready(run, store.Start())
    assert (elsewhere / ".hidden").exists()


def test_a_file_to_append_to_is_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(outside(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(OSError):
            files.appended(tmp_path / name)


def test_a_write_that_fails_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(OSError):
        files.write(tmp_path / "there", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_tags_are_text() -> None:
    summary = made_run.summary(made_run.events(clients=1, rounds=1))
    for metrics in (summary.metrics.initial, summary.rounds[0].metrics):
        metrics["a\x1b[2J\nb"] = 0.5  # type: ignore[index]
    tags = {tag for tag, *_ in export.tables.scalars(summary)}
    assert r"metrics/a\x1b[2J\nb" in tags and not any("\x1b" in tag for tag in tags)


def test_cells_are_no_formulas(tmp_path: Path) -> None:
    names = ("=1+1", "+1", "-1", "@x", "\uff1d1")
    summary = made_run.summary(made_run.events(clients=1, rounds=1))
    summary.rounds[0].metrics = dict.fromkeys(names, -1.5)
    summary.per_client[0].profile = "=cmd"
    export.tables.write(summary, tmp_path)
    rounds, clients = ((tmp_path / f"{n}.csv").read_text() for n in ("rounds", "clients"))
    assert all(f"'{name}" in rounds for name in names)
    # Where a spreadsheet divides cells at something else than commas.
    for name, cell in (
        ("a;=cmd", "a;'=cmd"),
        ("a\t@x", r"a\t'@x"),
        ("\t=1", r"\t'=1"),
        ("a\r\n=1", r"a\r\n'=1"),
        ("\x1b[2J", r"\x1b[2J"),
    ):
        summary.per_client[0].profile = name
        export.tables.write(summary, tmp_path)
        with (tmp_path / "clients.csv").open(newline="") as file:
            (row,) = csv.DictReader(file)
        assert row["profile"] == cell
    assert "'=cmd" in clients and ",-1.5" in rounds and "'-1.5" not in rounds
