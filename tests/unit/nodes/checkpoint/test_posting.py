"""States that go to the driver in pieces: kept there as nodes of its own would, and given back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import torch
from made_events import Reported

from methods import Shard
from nodes.checkpoint import Snapshot, Unkept, posting
from nodes.checkpoint.posting import Collected, Poster
from nodes.checkpoint.store import Checkpointer, Start
from testbed.record.events import Saved, Unsaved
from testbed.run.states import PIECE_BYTES, StatePiece

ID = "0123456789abcdef" * 2
NOTHING = Shard(torch.empty(0), torch.empty(0), torch.empty(0), 0)


class Node:
    def __init__(self, value: float = 0.0) -> None:
        self.done = torch.full((PIECE_BYTES,), value)
        """Four pieces of it."""


class Posted:
    """A node elsewhere and the driver's collection."""

    def __init__(self, folder: Path) -> None:
        self.node = Node()
        self.said: list[msgspec.Struct] = []
        self.poster = Poster(ID, "client-2", Snapshot(self.node, None, NOTHING), self.said.append)
        self.collected = Collected(folder, 3, Start(files={"client-2": 4}, run=ID))

    def save(self, number: int) -> list[Saved | Unsaved]:
        """What comes of a state at the driver."""
        self.node.done.fill_(number)
        self.said.clear()
        self.poster.save(number, parts=number)
        assert all(len(piece.data) <= PIECE_BYTES for piece in self.said)
        return [told for piece in self.said if (told := self.collected.take("client-2", piece))]


@pytest.fixture
def posted(tmp_path: Path) -> Iterator[Posted]:
    made = Posted(tmp_path)
    yield made
    made.collected.close()


def test_a_state_is_the_file_that_a_node_of_the_drivers_own_would_write(
    posted: Posted, tmp_path: Path
) -> None:
    (tmp_path / "own").mkdir()
    own = Checkpointer(tmp_path / "own", ID, "client-2", 3, posted.poster._snapshot, Reported())
    for number in range(1, 5):
        (saved,) = posted.save(number)
        own.save(number, parts=number)
        assert isinstance(saved, Saved) and saved.round == number
    names = [f"client-2.{number}.safetensors" for number in (2, 3, 4)]
    for name in names:
        assert (tmp_path / name).read_bytes() == (tmp_path / "own" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.glob("*.*")) == names
    pieces = list(posted.collected.stored("client-2"))
    assert len(pieces) > 4 and list(posted.collected.stored("client-1")) == []
    back = Node()
    poster = Poster(ID, "client-2", Snapshot(back, None, NOTHING), posted.said.append)
    assert poster.load(b"".join(pieces)) == {"parts": 4}
    assert bool((back.done == 4).all())
    with pytest.raises(Unkept, match="the state of client-2: is torn"):
        poster.load(b"".join(pieces)[:-1])
    other = Poster(ID, "client-22", Snapshot(back, None, NOTHING), posted.said.append)
    with pytest.raises(Unkept, match=r"client-22: is another state, kept as 'client-2\.4\.safet"):
        other.load(b"".join(pieces))
    other = Poster("0" * 32, "client-2", Snapshot(back, None, NOTHING), posted.said.append)
    with pytest.raises(Unkept, match="the state of client-2: is a state of another run"):
        other.load(b"".join(pieces))


def test_a_state_that_is_cut_short_leaves_the_one_before(posted: Posted, tmp_path: Path) -> None:
    posted.save(1)
    posted.node.done.fill_(2)
    posted.said.clear()
    posted.poster.save(2)
    for piece in posted.said[:-1]:
        assert posted.collected.take("client-2", piece) is None
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["client-2.1.safetensors"]
    (saved,) = posted.save(3)
    assert isinstance(saved, Saved)


def test_a_state_without_room_is_told_once_and_the_next_is_taken(
    posted: Posted, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = SimpleNamespace(f_bavail=1, f_frsize=1)
    with monkeypatch.context() as patched:
        patched.setattr("nodes.checkpoint.shelf.os.statvfs", lambda _: full)
        (told,) = posted.save(1)
    assert isinstance(told, Unsaved) and "MB are free on the disk" in told.reason
    (told,) = posted.save(2)
    assert isinstance(told, Saved)


def test_a_state_that_is_longer_than_it_says_is_not_kept(posted: Posted, tmp_path: Path) -> None:
    told = posted.collected.take("client-2", StatePiece(1, 3, b"four"))
    assert isinstance(told, Unsaved) and "more than the 3 bytes" in told.reason
    assert posted.collected.take("client-2", StatePiece(1, 3, b"")) is None
    assert list(tmp_path.iterdir()) == []


def test_a_node_without_a_state_begins_anew(posted: Posted) -> None:
    channel = SimpleNamespace(send=posted.said.append)
    keeping = posting.Posted(ID, {})
    assert keeping.folder is None
    _, told = keeping.of_node("client-2", 3, posted.poster._snapshot, channel)
    assert told is None
