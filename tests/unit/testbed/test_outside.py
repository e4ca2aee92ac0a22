"""Files and paths that come from outside."""

import os
from pathlib import Path

import pytest

from testbed import outside
from testbed.config_error import ConfigError


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_marks_and_ends_of_lines_are_no_content(tmp_path: Path, mark: bytes, end: bytes) -> None:
    file = tmp_path / "x.toml"
    file.write_bytes(mark + end.join([b"a = 1", b"b = 'u'", b""]))
    assert outside.text(file, "file") == "a = 1\nb = 'u'\n"
    assert outside.toml(file, "file") == {"a": 1, "b": "u"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("a = 1".encode("utf-16"), "is UTF-16; save it as UTF-8"),
        ("a = 1".encode("utf-16-le"), "UTF-16 without its mark"),
        (b"a = '\xfc'", "line 1: is not UTF-8 text (byte 0xfc)"),
        (b"a = ", "is not TOML"),
        (b"a = nan", "a = nan: must be a finite number"),
        (b"[a]\nb = [1, inf]", "a.b[1] = inf: must be a finite number"),
        (b"a = " + b"9" * 5000, "more than 64 bits"),
        (b"a = " + b"9" * 30, "more than 64 bits"),
        (b"a = " + b"[" * 3000 + b"]" * 3000, "more than 32 deep"),
        (b"a = " + b"[" * 40 + b"]" * 40, "more than 32 deep"),
    ],
)
def test_what_is_no_such_document_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "x.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        outside.toml(file, "file")
    assert reason in str(refused.value) and str(file) in str(refused.value)


def test_only_a_regular_file_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, reason in (
        (tmp_path / "pipe", "is a pipe"),
        (tmp_path, "Is a directory"),
        (Path("/dev/null"), "is a device"),
        (tmp_path / "absent", "No such file"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with pytest.raises(ConfigError, match=reason):
            outside.text(name, "file")


def test_a_home_is_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert outside.expanded("~/x") == tmp_path / "x"
    assert outside.absolute("~") == str(tmp_path)
    with pytest.raises(ConfigError, match="no such user's home"):
        outside.expanded("~nobody-of-that-name/x")


@pytest.mark.parametrize("path", ["a\0b", os.fsdecode(b"\xff.toml")])
def test_what_can_be_no_path_of_a_record_is_refused(path: str) -> None:
    with pytest.raises(ConfigError):
        outside.expanded(path)


def test_a_digest_is_of_the_contents(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("x")
    two.write_text("x")
    assert outside.digest(one, "file") == outside.digest(two, "file")
    two.write_text("y")
    assert outside.digest(one, "file") != outside.digest(two, "file")


def test_a_name_that_this_python_takes_for_another_encoding_is_told_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = os.fsdecode(b"k\xc3\xb6ln\xff")
    assert "is no UTF-8" in str(outside.unwritable(name))
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "ascii")
    assert "PYTHONUTF8=1" in str(outside.unwritable(name))
