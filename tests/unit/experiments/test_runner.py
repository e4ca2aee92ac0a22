"""Runs one after the other, against a launch that is a script of a few lines."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import made_run
import msgspec
import pytest

from experiments import runner as module
from experiments.bench import _checked
from experiments.plan import Bench, Cell, Claim, Outcome, Row, cells
from experiments.progress import Lines
from experiments.runner import claimed, conduct
from testbed.config_error import ConfigError
from testbed.exec.config import ExecConfig
from testbed.processes import signals
from testbed.transport import congestion

LAUNCH = """
import json, pathlib, sys, tomllib
flags = dict(flag.lstrip("-").split("=", 1) for flag in sys.argv[2:])
config = tomllib.loads(pathlib.Path(flags["config"]).read_text())
count = pathlib.Path(flags["out"]) / "count"
count.write_text(count.read_text() + "x" if count.exists() else "x")
if config["rounds"] == 2:
    sys.exit("error: it went wrong")
folder = pathlib.Path(flags["out"]) / "run"
folder.mkdir()
status = "ok" if config["rounds"] == 1 else "failed"
(folder / "summary.json").write_text(json.dumps({**SUMMARY, "status": status}))
"""
MADE = made_run.summary(made_run.events())
SUMMARY = msgspec.to_builtins(MADE)
GOOD, BAD, FAILED = Row("good", {"rounds": 1}), Row("bad", {"rounds": 2}), Row("f", {"rounds": 3})


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "launch.py"
    script.write_text(f"SUMMARY = {SUMMARY!r}\n{LAUNCH}")
    monkeypatch.setattr(module, "CLI", script)
    monkeypatch.setattr(module, "POLL_S", 0.005)


def run(folder: Path, *rows: Row, **options: float) -> tuple[list[Outcome], list[str]]:
    said: list[str] = []
    found = list(conduct(cells(Bench(rows=list(rows))), folder, Lines(said.append), **options))
    return found, said


def test_each_runs_once_and_what_failed_is_told(launch: None, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    found, said = run(folder, GOOD, BAD, FAILED)
    assert [outcome.summary is not None for outcome in found] == [True, False, False]
    assert found[1].reason == "error: it went wrong"
    assert any("FAILED: error: it went wrong" in text for text in said)
    assert "[1/3] good-seed0: done" in said[1]
    # A second time only what has no result runs.
    found, said = run(folder, GOOD, BAD)
    assert found[0].summary == MADE
    assert said[0] == "[1/2] good-seed0: there already"
    assert (folder / "good-seed0" / "count").read_text() == "x"
    assert (folder / "bad-seed0" / "count").read_text() == "xx"


def test_a_cell_is_settled_by_the_outcomes_before_it(launch: None, tmp_path: Path) -> None:
    def settle(cell: Cell, outcomes: Sequence[Outcome]) -> Cell | str:
        if not outcomes:
            return cell
        if cell.row.name == "bad":
            return "it cannot be" if outcomes[0].summary else cell
        return msgspec.structs.replace(cell, id="settled")

    said: list[str] = []
    own = cells(Bench(rows=[GOOD, BAD, Row("other", {"rounds": 1})]))
    for word in ("done", "there already"):
        found = list(conduct(own, tmp_path, Lines(said.append), settle=settle))
        assert [(o.cell.id, o.reason) for o in found] == [
            ("good-seed0", None),
            ("bad-seed0", "it cannot be"),
            ("settled", None),
        ]
        assert word in said[-1] and "[3/3] settled" in said[-1]
    assert "[3/3] settled" in said
    assert (tmp_path / "settled" / "count").read_text() == "x"
    assert not (tmp_path / "other-seed0").exists() and not (tmp_path / "bad-seed0").exists()
    found = list(conduct(own, tmp_path / "spent", Lines(said.append), -1.0, settle))
    assert all("budget" in str(outcome.reason) for outcome in found)


def test_nothing_begins_after_the_budget(launch: None, tmp_path: Path) -> None:
    found, _ = run(tmp_path / "out", GOOD, BAD, budget_s=-1.0)
    assert [outcome.summary for outcome in found] == [None, None]
    assert "budget" in str(found[0].reason)
    assert not (tmp_path / "out" / "good-seed0").exists()


def test_the_folder_of_another_bench_is_refused(tmp_path: Path) -> None:
    with claimed(tmp_path / "out", Bench(rows=[GOOD]), {}):
        pass
    with claimed(tmp_path / "out", Bench(rows=[GOOD]), {}):
        pass
    with (
        pytest.raises(ConfigError, match="holds another bench's runs"),
        claimed(tmp_path / "out", Bench(rows=[BAD]), {}),
    ):
        pass


def test_what_an_edited_bench_has_otherwise_is_told(tmp_path: Path) -> None:
    with claimed(tmp_path / "out", Bench(rows=[GOOD], run={"rounds": 1}), {}):
        pass
    for bench, told in (
        (Bench(rows=[GOOD], run={"rounds": 2}), "run.rounds = 1, now 2"),
        (Bench(rows=[GOOD], run={"rounds": 1, "links": "netem"}), "run.links = None, now 'netem'"),
        (Bench(rows=[BAD], run={"rounds": 1}), "rows.0.name = 'good', now 'bad'"),
        (Bench(rows=[GOOD, BAD], run={"rounds": 1}), "rows = "),
    ):
        with (
            pytest.raises(ConfigError, match=f"holds another bench's runs \\({re.escape(told)}"),
            claimed(tmp_path / "out", bench, {}),
        ):
            pass


def test_a_bench_whose_words_alone_are_edited_goes_on(tmp_path: Path) -> None:
    with claimed(tmp_path / "out", Bench(rows=[GOOD, BAD]), {}):
        pass
    claim = Claim(counts="payload", figure=2.0, account="up")
    rows = [
        msgspec.structs.replace(GOOD, claims=[claim], formula_mb=0.1),
        msgspec.structs.replace(BAD, baseline="good"),
    ]
    edited = Bench(rows=rows, title="another", note="more", baseline="bad")
    with claimed(tmp_path / "out", edited, {"own.toml": "ab"}):
        pass
    told = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert (told["title"], told["rows"][1]["baseline"], told["files"]) == ("another", "good", {})
    assert [each["figure"] for each in told["rows"][0]["claims"]] == [2.0]
    with (
        pytest.raises(ConfigError, match="another bench's runs"),
        claimed(tmp_path / "out", msgspec.structs.replace(edited, run={"rounds": 2}), {}),
    ):
        pass
    # Fewer words, and those of a bench that is refused, which are not taken.
    with claimed(tmp_path / "out", Bench(rows=[GOOD, BAD]), {}):
        pass
    assert json.loads((tmp_path / "out" / "bench.json").read_text())["title"] != "another"


def test_the_same_bench_with_another_congestion_control_or_profile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Bench(rows=[Row("a", {"clients": 1})])
    read = _checked(cells(own))
    # The default link is none that a flag names.
    own_files = ("profile 4g", "data digits", "weights of vit-glyphs")
    assert all(len(read[name]) == 64 for name in own_files)
    monkeypatch.setattr(congestion, "DEFAULT", "reno")
    other = _checked(cells(own))
    with claimed(tmp_path / "out", own, read):
        pass
    for now, why in (
        (other, "the congestion control is not what it was"),
        (read | {"profile 4g": "ab"}, "profile 4g is not what it was"),
        ({}, "is not what it was"),
    ):
        with pytest.raises(ConfigError, match=why), claimed(tmp_path / "out", own, now):
            pass


PROGRAMS = Row("programs", {}, programs=ExecConfig(command=("serve", "it")))


@pytest.mark.parametrize("row", [GOOD, PROGRAMS], ids=["of a method", "of programs"])
def test_the_same_bench_over_edited_files_is_refused(tmp_path: Path, row: Row) -> None:
    with claimed(tmp_path / "out", Bench(rows=[row]), {"site.toml": "ab", "x.trace": "cd"}):
        pass
    with claimed(tmp_path / "out", Bench(rows=[row]), {"x.trace": "cd", "site.toml": "ab"}):
        pass
    with (
        pytest.raises(ConfigError, match=r"other files \(site\.toml is not what it was\)"),
        claimed(tmp_path / "out", Bench(rows=[row]), {"site.toml": "ef", "x.trace": "cd"}),
    ):
        pass


def test_a_bench_from_before_digests_of_data_goes_on(tmp_path: Path) -> None:
    with claimed(tmp_path, Bench(rows=[GOOD]), {"site.toml": "ab"}):
        pass
    with claimed(tmp_path, Bench(rows=[GOOD]), {"site.toml": "ab", "data digits": "cd"}):
        pass


UNREADABLE = [b"[1]", b"3", b'{"files": 3}', b'{"files": {"a": 1}}', b"{", b"null", b'{"\xff": 1}']


@pytest.mark.parametrize("text", [*UNREADABLE, b"\0", b'{"rows": 1e999}', b"[" * 100_000])
def test_a_folder_whose_bench_cannot_be_read_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "bench.json").write_bytes(text)
    with (
        pytest.raises(ConfigError, match=r"holds a bench\.json that no bench has written \("),
        claimed(tmp_path, Bench(rows=[GOOD]), {}),
    ):
        pass


@pytest.mark.parametrize("cell", ["good-seed0", "tuning/good-seed0-x=1"])
def test_runs_without_a_bench_are_nobodys_to_go_on_with(tmp_path: Path, cell: str) -> None:
    (tmp_path / cell / "run").mkdir(parents=True)
    (tmp_path / cell / "run" / "summary.json").touch()
    (tmp_path / "bench.json").touch()
    with (
        pytest.raises(ConfigError, match=r"no bench\.json that says of which"),
        claimed(tmp_path, Bench(rows=[GOOD]), {}),
    ):
        pass


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    bench = Bench(rows=[GOOD])
    with (
        claimed(tmp_path, bench, {}),
        pytest.raises(ConfigError, match="another bench is at work"),
        claimed(tmp_path, bench, {}),
    ):
        pass


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigError, match="name a folder you can write"),
        claimed(tmp_path / "file", Bench(rows=[GOOD]), {}),
    ):
        pass


def test_what_is_in_the_place_of_its_own_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "bench.json").mkdir()
    with (
        pytest.raises(ConfigError, match=r"cannot write bench\.json there: Is a directory"),
        claimed(tmp_path, Bench(rows=[GOOD]), {}),
    ):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_and_the_bench(tmp_path: Path, number: int) -> None:
    """The run is told, and nothing is begun after it."""
    launch = tmp_path / "launch.py"
    launch.write_text(
        "import os, pathlib, signal, sys, time\n"
        f"told = pathlib.Path({str(tmp_path / 'told')!r})\n"
        # As programs of ours do: what is ignored stays so.
        "if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:\n"
        "    signal.signal(signal.SIGTERM, lambda *_: (told.touch(), os._exit(130)))\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
        "time.sleep(60)\n"
    )
    bench = tmp_path / "bench.py"
    bench.write_text(
        "import json, pathlib, sys\n"
        "from experiments import plan, progress, runner\n"
        f"runner.CLI = pathlib.Path({str(launch)!r})\n"
        "rows = [plan.Row('a'), plan.Row('b')]\n"
        "cells = plan.cells(plan.Bench(rows=rows))\n"
        f"out, lines = pathlib.Path({str(tmp_path / 'out')!r}), progress.Lines(print)\n"
        "found = list(runner.conduct(cells, out, lines))\n"
        "json.dump([o.reason for o in found], open(sys.argv[1], 'w'))\n"
    )
    answer = tmp_path / "answer.json"
    environment = {**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[1])}
    process = subprocess.Popen([sys.executable, str(bench), str(answer)], env=environment)
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "ready").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / "told").exists()
    assert json.loads(answer.read_text()) == 2 * ["the bench was interrupted"]


@pytest.fixture
def own_signals() -> Iterator[None]:
    """Who was asked to end hears no more, which this process is to."""
    before = {number: signal.getsignal(number) for number in signals.ENDING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def end_at(text: str, word: str) -> None:
    if word in text:
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("word", ["good-seed0: done", "[2/3] other-seed0"])
def test_a_signal_while_no_run_goes_on_leaves_what_is_there(
    own_signals: None,
    launch: None,
    tmp_path: Path,
    word: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between two runs, and while the next one is made."""
    monkeypatch.setattr(module, "LEAVE_LIMIT_S", 600.0)
    own = cells(Bench(rows=[GOOD, Row("other", {"rounds": 1}), BAD]))
    found = list(conduct(own, tmp_path, Lines(lambda text: end_at(text, word))))
    assert [outcome.summary for outcome in found] == [MADE, None, None]
    assert {outcome.reason for outcome in found[1:]} == {"the bench was interrupted"}
    assert all(outcome.stopped for outcome in found[1:])
    # What is said of it now is said to its end.
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
