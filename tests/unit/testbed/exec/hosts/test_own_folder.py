"""What comes of another host's word of a folder, be it true or not."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.exec import places
from testbed.exec.hosts.own_folder import Full, Lied, OwnFolder
from testbed.exec.leaving import Leaving
from testbed.exec.lines import Piece


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A node's own in a run's, beside which nothing else may come to be."""
    own = tmp_path / "run" / "own"
    own.mkdir(parents=True)
    (own / "stdout.txt").write_text("its output")
    (tmp_path / "secret").write_text("secret")
    before = _seen(tmp_path, own)
    yield own
    assert _seen(tmp_path, own) == before


def _seen(folder: Path, but: Path) -> list[tuple[str, str]]:
    paths = [path for path in folder.rglob("*") if path != but and but not in path.parents]
    return sorted((str(p), p.read_text() if p.is_file() else "") for p in paths)


def put(folder: Path, *pieces: Piece) -> OwnFolder:
    own = OwnFolder(folder)
    try:
        for piece in pieces:
            own.take(piece)
    finally:
        own.close()
    return own


def test_a_folder_comes_as_it_was(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    source = tmp_path_factory.mktemp("source")
    os.mkdir(os.fsencode(source) + b"/a \xff\n")
    inner = source / os.fsdecode(b"a \xff\n")
    (inner / "f").write_bytes(os.urandom(3_000_000))
    (inner / "f").chmod(0o4751)
    (inner / "empty").touch()
    (inner / "latest").symlink_to("f")
    inner.chmod(0o510)
    leaving = Leaving(str(source))
    own = OwnFolder(folder)
    while True:
        parcel = leaving.parcel()
        for piece in parcel.pieces:
            own.take(piece)
        if parcel.last:
            break
    own.close()
    came = folder / inner.name
    assert (own.files, own.bytes, own.refused) == (2, 3_000_000, {})
    assert (came / "f").read_bytes() == (inner / "f").read_bytes()
    assert os.readlink(came / "latest") == "f"
    # No right of another user comes with a file.
    assert stat.S_IMODE((came / "f").stat().st_mode) == 0o751
    assert stat.S_IMODE(came.stat().st_mode) == 0o510
    assert (came / "f").stat().st_uid == os.geteuid()


LIES = {
    "an absolute path": [Piece(b"/tmp/x", "file")],
    "a path above": [Piece(b"../x", "file")],
    "a path above a folder": [Piece(b"d", "folder"), Piece(b"d/../../x", "file")],
    "no path": [Piece(b"", "file")],
    "a link out": [Piece(b"l", "link", data=b"../secret")],
    "a link to a path": [Piece(b"l", "link", data=b"/etc")],
    "a chain of links out": [
        Piece(b"here", "link", data=b"."),
        Piece(b"l", "link", data=b"here/../../secret"),
    ],
}


@pytest.mark.parametrize("pieces", LIES.values(), ids=LIES)
def test_lies_are_told_and_come_to_nothing(folder: Path, pieces: list[Piece]) -> None:
    with pytest.raises(Lied):
        put(folder, *pieces)
    assert not (folder / "l").is_symlink()


def test_no_link_is_written_through_and_nothing_replaced(folder: Path) -> None:
    (folder / "out").symlink_to("../..")
    (folder / "file").symlink_to("../../secret")
    own = put(
        folder,
        Piece(b"out/x", "file", 0o600, b"in"),
        Piece(b"file", "file", 0o600, b"in"),
        Piece(b"stdout.txt", "file", 0o600, b"mine"),
        Piece(b"stdout.txt", "link", data=b"x"),
        Piece(b"stdout.txt", "folder", 0o700),
        Piece(b"nowhere/x", "file", 0o600, b"in"),
        Piece(b"last", "file", 0o600, b"in"),
    )
    assert (folder / "stdout.txt").read_text() == "its output"
    assert (own.files, own.bytes) == (1, 2) and (folder / "last").read_bytes() == b"in"
    assert own.refused == {
        os.strerror(errno.ENOTDIR): (1, b"out/x"),
        os.strerror(errno.EEXIST): (4, b"file"),
        os.strerror(errno.ENOENT): (1, b"nowhere/x"),
    }


def test_modes_are_of_folders_that_came_alone(folder: Path) -> None:
    """A link in the place of a folder that came is not followed for its mode either."""
    own = OwnFolder(folder)
    own.take(Piece(b"d", "folder", 0o777))
    (folder / "d").rmdir()
    (folder / "d").symlink_to("../..")
    before = stat.S_IMODE(folder.parent.parent.stat().st_mode)
    own.close()
    assert stat.S_IMODE(folder.parent.parent.stat().st_mode) == before


def test_there_is_no_more_than_a_node_may_have(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "MOST_BYTES", 10)
    monkeypatch.setattr(places, "MOST_PLACES", 2)
    with pytest.raises(Lied, match="more than 10 bytes"):
        put(
            folder,
            Piece(b"a", "file", data=b"x" * 6, whole=False),
            Piece(b"a", "file", data=b"x" * 6),
        )
    assert not (folder / "a").exists()
    with pytest.raises(Lied, match="more than 2 files"):
        put(folder, *(Piece(b"%d" % number, "folder") for number in range(3)))


def test_a_file_of_which_a_part_came_is_not_there(folder: Path) -> None:
    own = put(
        folder,
        Piece(b"torn", "file", data=b"x", whole=False),
        Piece(b"next", "file", data=b"y"),
        Piece(b"last", "file", data=b"z", whole=False),
    )
    assert own.files == 1
    assert sorted(path.name for path in folder.iterdir()) == ["next", "stdout.txt"]


def test_a_full_disk_is_told_and_leaves_no_part(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(Full, match="No space left on device"):
        put(folder, Piece(b"f", "file", data=b"x", whole=False))
    assert [path.name for path in folder.iterdir()] == ["stdout.txt"]
