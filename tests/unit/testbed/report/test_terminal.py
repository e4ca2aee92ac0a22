"""What is said where: plain or not, coloured or not, quiet, JSON, and to streams that are gone."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import made_run
import pytest
from made_events import typed
from rich.console import Group
from rich.table import Table

from testbed.record.summary import SummaryBuilder
from testbed.report import listing, terminal
from testbed.report.compare import comparison
from testbed.report.progress import RoundLines, closing_table
from testbed.report.terminal import Guarded, Output

VARIABLES = ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "CLICOLOR", "TERM", "COLUMNS", "LINES")
COLOUR = "\x1b[32m"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def table() -> Table:
    found = Table(title="all of it", title_justify="left")
    found.add_column("what")
    found.add_column("value", justify="right")
    found.add_row(terminal.styled("ok", "green"), "1")
    found.add_row("", "12")
    return found


def shown(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, plain: bool = False, **environment: str
) -> str:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", stream)
    output = Output(plain=plain)
    output.show(table(), None)
    output.say("said", style="green")
    return stream.getvalue()


def test_a_terminal_has_boxes_and_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, Terminal())
    assert "┃" in text and COLOUR in text


@pytest.mark.parametrize(
    ("stream", "plain", "environment"),
    [
        (io.StringIO, False, {}),
        (Terminal, True, {}),
        (Terminal, True, {"FORCE_COLOR": "1"}),
        (Terminal, False, {"TERM": "dumb"}),
        (io.StringIO, False, {"NO_COLOR": "1", "FORCE_COLOR": "1"}),
        (io.StringIO, False, {"CLICOLOR": "1"}),
        (io.StringIO, False, {"FORCE_COLOR": "0"}),
    ],
)
def test_plain_is_columns_of_text_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
    stream: type[io.StringIO],
    plain: bool,
    environment: dict[str, str],
) -> None:
    text = shown(monkeypatch, stream(), plain, **environment)
    assert text == "all of it\nwhat  value\nok        1\n-        12\nsaid\n"


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"CLICOLOR": "0"}])
def test_colours_can_be_off_with_boxes_on(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    text = shown(monkeypatch, Terminal(), **environment)
    assert "┃" in text and "\x1b" not in text


@pytest.mark.parametrize("name", ["FORCE_COLOR", "CLICOLOR_FORCE"])
def test_colours_can_be_forced_where_nobody_looks(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    text = shown(monkeypatch, io.StringIO(), **{name: "1"})
    assert COLOUR in text
    # Colours alone: no boxes, and no codes that move the cursor.
    assert not re.search("[━─┃│]", text) and not re.search("\x1b\\[[^m]*[A-KSTfhln]", text)


def test_nothing_is_cut_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    wide = Table()
    wide.add_column("a" * 500)
    wide.add_row("b" * 700)
    Output().show(Group(wide, wide), None)
    assert stream.getvalue().split() == ["a" * 500, "b" * 700] * 2


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("columns", [10, 20, 40])
def test_a_narrow_terminal_has_every_cell(
    columns: int, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    found = Table("profile", *(f"figure {number}" for number in range(6)))
    found.add_row("a-long-name-of-one", *(f"{number}000000" for number in range(6)))
    Output(plain=plain).show(Group(found, table()), {})
    assert all(f"{number}000000" in stream.getvalue() for number in range(6))
    assert "a-long-name-of-one" in stream.getvalue()


def test_json_is_alone_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(as_json=True)
    output.result("results", "results/RUN")
    output.say("on the way")
    output.show(table(), {"value": 1.5})
    output.error("it went wrong")
    told = capsys.readouterr()
    assert json.loads(told.out) == {"value": 1.5}
    assert told.err.splitlines() == ["results: results/RUN", "on the way", "it went wrong"]


@pytest.mark.parametrize("as_json", [False, True])
def test_quiet_says_the_result_and_errors(
    capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    output = Output(quiet=True, as_json=as_json)
    output.result("results", "results/RUN")
    output.say("on the way")
    output.show(table(), {})
    output.error("it went wrong")
    told = capsys.readouterr()
    assert told.out == ("{}\n" if as_json else "results/RUN\n")
    assert told.err == "it went wrong\n"


def test_markup_of_a_text_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    Output().say("[red]a[/] [bold")
    assert capsys.readouterr().out == "[red]a[/] [bold\n"


def test_a_reader_that_is_gone_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream:
        monkeypatch.setattr(sys, "stdout", Guarded(stream))
        output = Output()
        for _ in range(3):
            output.say("nobody reads it")
            output.show(table(), None)
        assert isinstance(sys.stdout.lost, BrokenPipeError)
        # Leaving is a reader's right.
        assert terminal.lost_output() is None


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w") as stream:
        monkeypatch.setattr(sys, "stdout", Guarded(stream))
        Output().say("no room")
        assert terminal.lost_output() == "No space left on device"


@pytest.mark.parametrize("columns", ["0", "1", "abc", "\u00b2", "-5", "9" * 5000, ""])
@pytest.mark.parametrize("lines", ["0", "x"])
def test_a_size_that_is_none_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, columns: str, lines: str
) -> None:
    text = shown(monkeypatch, Terminal(), COLUMNS=columns, LINES=lines, CLICOLOR="0")
    assert "all of it" in text and "│ ok   │     1 │" in text


def test_a_size_that_is_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, Terminal(), COLUMNS="12", CLICOLOR="0")
    assert "│" not in text and "what  value" in text


HOSTILE = "client_[/x] [red]:smile: \x1b]0;t\x07\x9b2J\u202egpj.\ud800\r"
SPELT = r"client_[/x] [red]:smile: \x1b]0;t\x07\x9b2J\u202egpj.\ud800\r"


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_what_comes_from_outside_is_text(
    monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    out, err = stream(), stream()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    output = Output()
    hostile = Table(HOSTILE, title=HOSTILE, title_justify="left", caption=HOSTILE)
    hostile.add_row(HOSTILE)
    hostile.add_row(terminal.styled(HOSTILE, "red"))
    output.show(hostile, None)
    output.say(HOSTILE)
    output.result("results", HOSTILE)
    output.error(HOSTILE)
    assert out.getvalue().count(SPELT) == 7 and err.getvalue().count(SPELT) == 1
    seen = out.getvalue() + err.getvalue()
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\ud800]", seen)


def test_no_name_begins_a_line_of_its_own(tmp_path: Path) -> None:
    events = made_run.events(clients=1, rounds=1, method="x\ny", profile="x\ny")
    for event in events:
        if event["event"] == "round":
            event["metrics"] = {"x\ny": 0.5, "accuracy": 0.5}
    run = made_run.folder(tmp_path / "run", events)
    tally, out = SummaryBuilder(), io.StringIO()
    lines = RoundLines(terminal.console(out), 1, 1)
    for event in events:
        tally.take(typed(event))
        lines.take(typed(event), tally)
    lines.close()
    compared, target = comparison.compare(comparison.runs([run]), None)
    tables = (
        *(closing_table(tally.summary()), listing.table(listing.rows(tmp_path))),
        comparison.table(compared, target),
    )
    output = Output()
    for table in tables:
        with output.console.capture() as captured:
            output.console.print(table)
        out.write(captured.get())
    assert out.getvalue().count(r"x\ny") >= 5
    assert not re.search("^y", out.getvalue(), re.M) and "│ y" not in out.getvalue()


def test_rounds_of_hostile_names_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    events = made_run.events(clients=1, rounds=1)
    for event in events:
        if event["event"] == "round":
            event["metrics"] = {HOSTILE: 0.5}
    late = {"t": 99, "node": "server", "event": "missed", "peer": "client-1", "round": 1}
    tally, lines = SummaryBuilder(), RoundLines(terminal.console(sys.stdout), 1, 1)
    for event in [*events, late | {"reason": HOSTILE}]:
        tally.take(typed(event))
        lines.take(typed(event), tally)
    lines.close()
    Output().show(closing_table(tally.summary()), None)
    assert capsys.readouterr().out.count(SPELT) == 3


@pytest.mark.parametrize(
    ("used", "links", "row"),
    [
        ("cubic", "userspace", None),
        ("bbr", "userspace", "congestion control bbr (asked: cubic)"),
        ("bbr", "loopback", None),
    ],
)
def test_a_congestion_control_that_was_not_asked_for_is_named_at_the_end(
    used: str, links: str, row: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    tally = SummaryBuilder()
    for event in made_run.events(clients=1, rounds=1):
        event |= {"congestion": "cubic"} if event["event"] == "run" else {}
        event |= {"facts": {"backend": links}} if event["event"] == "links" else {}
        tally.take(typed(event))
    for node in ("server", "client-1"):
        tally.take(typed({"t": 9, "node": node, "event": "connection", "congestion": used}))
    Output().show(closing_table(tally.summary()), None)
    said = " ".join(capsys.readouterr().out.split())
    assert row in said if row else "congestion" not in said
    assert tally.summary().congestion == (None if links == "loopback" else used)


PRINTING = """
import sys
from testbed.report import listing, terminal
from testbed.report.compare import comparison
from testbed.report.terminal import Output
terminal.guard()
output = Output(as_json=sys.argv[1] == "json", quiet=sys.argv[1] == "quiet")
with open(sys.argv[2], "w") as file:
    assert file.fileno() > 2
    output.result("results", "\\u00fc" if sys.argv[1] == "quiet" else "x")
    if sys.argv[1] == "json":
        output.document({})
    elif sys.argv[1] in ("table", "kept"):
        output.show("a table", {}, kept=sys.argv[1] == "kept")
sys.exit(terminal.lost_output() or 0)
"""


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        *(("json", "Bad file descriptor\n"), ("quiet", "Bad file descriptor\n")),
        *(("table", "Bad file descriptor\n"), ("kept", ""), ("plain", "")),
    ],
)
def test_a_stream_that_is_not_there_is_nobodys_file(how: str, reason: str, tmp_path: Path) -> None:
    words = [sys.executable, "-c", PRINTING, how, str(tmp_path / "file")]
    shell = ["sh", "-c", 'exec "$@" >&-', "sh", *words]
    done = subprocess.run(
        shell, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=60
    )
    told = done.stderr.removeprefix("results: x\n")
    assert (done.returncode, told) == (1 if reason else 0, reason)
    assert (tmp_path / "file").read_text() == ""


def test_who_has_no_standard_input_reads_nothing() -> None:
    script = "import sys; from testbed.report import terminal; terminal.guard()\n"
    script += "print(sys.stdin.isatty(), [*sys.stdin])"
    words = ["sh", "-c", 'exec "$@" <&-', "sh", sys.executable, "-c", script]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("False []\n", "")


def test_letters_that_an_encoding_lacks_end_nothing(tmp_path: Path) -> None:
    words = [sys.executable, "-c", PRINTING, "quiet", str(tmp_path / "file")]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\\xfc\n", "")
