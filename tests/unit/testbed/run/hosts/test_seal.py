"""What passes between hosts sealed: opened at the other end, in its place alone."""

import pytest

from testbed.run.hosts.seal import TAG_BYTES, Seal

KEY = bytes(range(32))
PIECES = [b"a state", bytes(1000), b"", bytes(1000)]


def test_messages_are_opened_in_their_order_and_none_is_as_another() -> None:
    closes, opens = Seal(KEY, 0), Seal(KEY, 0)
    closed = [closes.close(piece) for piece in PIECES]
    assert [len(each) - TAG_BYTES for each in closed] == [len(piece) for piece in PIECES]
    assert len(set(closed)) == 4 and b"a state" not in b"".join(closed)
    assert [opens.open(each) for each in closed] == PIECES


@pytest.mark.parametrize(
    ("key", "direction", "at"),
    [(KEY[::-1], 0, 0), (KEY, 1, 0), (KEY, 0, 1)],
    ids=["another key", "the other way", "another place"],
)
def test_elsewhere_than_in_its_place_nothing_is_opened(key: bytes, direction: int, at: int) -> None:
    closes, opens = Seal(KEY, 0), Seal(key, direction)
    closed = [closes.close(piece) for piece in (b"one", b"two")]
    assert opens.open(closed[at]) is None


@pytest.mark.parametrize("length", [0, 1, TAG_BYTES - 1, TAG_BYTES, TAG_BYTES + 2])
def test_a_part_of_a_message_is_none(length: int) -> None:
    assert Seal(KEY, 0).open(Seal(KEY, 0).close(b"one")[:length]) is None
