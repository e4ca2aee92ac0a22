"""What is told of a folder that a program leaves, and what is left out of it."""

import os
import socket
import stat
from pathlib import Path

import pytest

from testbed.exec import places
from testbed.exec.leaving import MOST_PIECES, PARCEL_BYTES, Leaving
from testbed.exec.lines import LeftOut, Piece


def told(folder: Path) -> tuple[list[Piece], dict[str, LeftOut]]:
    leaving, found = Leaving(str(folder)), []
    while True:
        parcel = leaving.parcel()
        found += parcel.pieces
        assert len(parcel.pieces) <= MOST_PIECES
        assert sum(len(piece.data) for piece in parcel.pieces) <= 2 * PARCEL_BYTES
        if parcel.last:
            return found, {each.why: each for each in parcel.left_out}
        assert not parcel.left_out


def test_files_folders_and_links_are_told_with_their_modes_and_names(tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/a b\n\xff"
    os.mkdir(odd, 0o750)
    for name, mode in ((b"/empty", 0o600), (b"/large", 0o754)):
        with Path(os.fsdecode(odd + name)).open("wb") as file:
            file.write(b"x" * (0 if name == b"/empty" else 2 * PARCEL_BYTES + 1))
        os.chmod(odd + name, mode)
    os.symlink(b"large", odd + b"/latest")
    pieces, left_out = told(tmp_path)
    assert not left_out
    first, *others = pieces
    assert first == Piece(b"a b\n\xff", "folder", stat.S_IMODE(os.stat(odd).st_mode))
    assert others[0] == Piece(b"a b\n\xff/empty", "file", 0o600)
    large, link = others[1:-1], others[-1]
    assert b"".join(piece.data for piece in large) == b"x" * (2 * PARCEL_BYTES + 1)
    assert [piece.whole for piece in large] == [False, False, True]
    assert {(piece.path, piece.mode) for piece in large} == {(b"a b\n\xff/large", 0o754)}
    assert link == Piece(b"a b\n\xff/latest", "link", data=b"large")


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    assert told(tmp_path / "none") == ([], {"unreadable": LeftOut("unreadable", b".")})


def test_what_is_no_file_and_what_leads_out_is_left_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        (tmp_path / "out").symlink_to("/etc/passwd")
        (tmp_path / "stdout.txt").write_text("mine")
        (tmp_path / "deeper").mkdir()
        (tmp_path / "deeper" / "stdout.txt").write_text("no output's")
        deep = tmp_path.joinpath(*["d"] * (places.MOST_DEEP + 1))
        deep.mkdir(parents=True)
        pieces, left_out = told(tmp_path)
    assert left_out == {
        "special": LeftOut("special", b"pipe", 2),
        "link": LeftOut("link", b"out"),
        "output": LeftOut("output", b"stdout.txt"),
        "depth": LeftOut("depth", b"/".join([b"d"] * (places.MOST_DEEP + 1))),
    }
    assert [p.path for p in pieces if p.kind == "file"] == [b"deeper/stdout.txt"]


def test_what_is_too_large_is_left_out_and_smaller_ones_are_not(tmp_path: Path) -> None:
    with (tmp_path / "a hole").open("wb") as file:
        file.truncate(places.MOST_BYTES + 1)
    (tmp_path / "b").write_bytes(b"small")
    pieces, left_out = told(tmp_path)
    assert pieces[0].path == b"b" and left_out == {"bytes": LeftOut("bytes", b"a hole")}


def test_there_is_an_end_to_so_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "MOST_PLACES", 5)
    for number in range(10):
        (tmp_path / str(number)).touch()
    pieces, left_out = told(tmp_path)
    assert [piece.path for piece in pieces] == [b"0", b"1", b"2", b"3", b"4"]
    assert left_out == {"number": LeftOut("number", b"5")}
