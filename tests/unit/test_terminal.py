"""What is said where: plain or not, coloured or not, quiet, JSON, and to streams that are gone."""

import io
import json
import os
import re
import sys
from pathlib import Path

import pytest
from rich.console import Group
from rich.table import Table

from testbed import terminal
from testbed.terminal import Guarded, Output

VARIABLES = ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "CLICOLOR", "TERM", "COLUMNS")
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
    found.add_row("[green]ok", "1")
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
