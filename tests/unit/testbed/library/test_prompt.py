"""The prompt of a network: what its lines do."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from testbed.library import prompt, visit
from testbed.library.lines import About, Seen

NODES = [
    Seen("server", "10.0.0.1", None, 5, 6, 0),
    Seen("client-1", "10.1.0.1", "4g", 6, 5, 1),
]
ABOUT = About("links: userspace, as asked", "pass", "2026-01-01 00:00:00", NODES)


class Made:
    """A prompt whose network only notes what is run in it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(visit, "about", lambda network: ABOUT)
        self.ran: list[tuple[str, Any]] = []
        self.shown: list[About] = []
        self.codes: list[int] = []
        environment = {"SHELL": "/bin/mine"}
        self.prompt = prompt.Prompt(Path("lab"), environment, self.shown.append, self.run)

    def run(self, network: Path, node: str, command: Any, *_: Any, **__: Any) -> int:
        self.ran.append((node, command))
        return self.codes.pop(0) if self.codes else 0


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    return Made(monkeypatch)


def test_a_line_that_begins_with_a_node_is_run_there(made: Made) -> None:
    for line in ("client-1 ping -c 3 server", "  server   sh -c 'a | b'  ", "client-1 sleep 9 &"):
        assert made.prompt.obey(line)
    assert made.ran == [
        ("client-1", "ping -c 3 server"),
        ("server", "sh -c 'a | b'"),
        ("client-1", "sleep 9 &"),
    ]


def test_a_node_alone_is_its_shell(made: Made) -> None:
    made.prompt.obey("client-1\n")
    assert made.ran == [("client-1", ["/bin/mine"])]


def test_it_has_words_of_its_own(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    made.prompt.obey("nodes")
    assert capsys.readouterr().out == "server client-1\n"
    made.prompt.obey("links")
    assert made.shown == [ABOUT]
    made.prompt.obey("help")
    assert "NODE COMMAND" in capsys.readouterr().out
    assert made.prompt.obey("") and made.prompt.obey("# a remark") and made.ran == []
    assert not made.prompt.obey("exit") and not made.prompt.obey("quit")


def test_what_it_does_not_know_is_said(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    made.prompt.obey("client-2 ls")
    assert "client-2: is no node: did you mean client-1" in capsys.readouterr().err
    assert made.prompt.code == prompt.UNKNOWN and made.ran == []


def test_lines_of_a_file_are_obeyed_up_to_exit(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    made.codes = [0, 7]
    monkeypatch.setattr(sys, "stdin", io.StringIO("client-1 a\nserver b\nexit\nserver c\n"))
    assert made.prompt.read() == 7
    assert [node for node, _ in made.ran] == ["client-1", "server"]


def test_lines_may_be_of_any_editor_and_name_any_file(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = io.BytesIO(b"\xef\xbb\xbfclient-1\tls \xff\r\n\r\nserver  b\r\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(lines, "utf-8"))
    assert made.prompt.read() == 0
    assert made.ran == [("client-1", "ls \udcff"), ("server", "b")]
