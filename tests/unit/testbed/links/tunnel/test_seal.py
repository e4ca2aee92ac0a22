"""What passes between hosts sealed: opened at the other end, in its place alone."""

import pytest

from testbed.links.tunnel.seal import HEAD_BYTES, TAG_BYTES, Broken, Opener, Seal

KEY = bytes(range(32))
MOST_BYTES = 1000
PIECES = [b"a state", bytes(MOST_BYTES), b"", bytes(MOST_BYTES)]


def opener(key: bytes = KEY, *, calls: bool = True) -> Opener:
    return Opener(key, MOST_BYTES, calls=calls)


def closed(*pieces: bytes) -> list[bytes]:
    seal = Seal(KEY, calls=True)
    return [seal.close(piece) for piece in pieces]


def test_messages_are_opened_in_their_order_and_none_is_as_another() -> None:
    found = closed(*PIECES)
    assert [len(each) - HEAD_BYTES - TAG_BYTES for each in found] == [len(each) for each in PIECES]
    assert len({each[HEAD_BYTES:] for each in found}) == 4 and b"a state" not in b"".join(found)
    assert list(opener().open(b"".join(found))) == PIECES


def test_a_part_of_a_message_is_waited_for() -> None:
    opens, found = opener(), []
    for byte in b"".join(closed(*PIECES)):
        found += opens.open(bytes([byte]))
    assert found == PIECES


@pytest.mark.parametrize(
    ("key", "calls", "at"),
    [(KEY[::-1], True, 0), (KEY, False, 0), (KEY, True, 1)],
    ids=["another key", "the other way", "another place"],
)
def test_elsewhere_than_in_its_place_nothing_is_opened(key: bytes, calls: bool, at: int) -> None:
    with pytest.raises(Broken, match=r"what came is not what was sealed there \(its tag is wrong"):
        list(opener(key, calls=calls).open(closed(b"one", b"two")[at]))


@pytest.mark.parametrize("place", range(HEAD_BYTES + len(b"one") + TAG_BYTES))
def test_what_was_changed_is_not_opened_nor_what_comes_after_it(place: int) -> None:
    """Where it would be longer by that it is no message yet, or one that is too long."""
    one, *others = closed(b"one", *[bytes(100)] * 10)
    changed = bytearray(one)
    changed[place] ^= 1
    opens = opener()
    with pytest.raises(Broken) as told:
        list(opens.open(bytes(changed) + b"".join(others)))
    assert told.value.strerror == str(told.value)
    with pytest.raises(Broken):
        list(opens.open(others[0]))


def test_what_came_before_it_is_given() -> None:
    one, two = closed(b"one", b"two")
    found = []
    with pytest.raises(Broken):
        for each in opener().open(one + two[:-1] + b"\0" + two):
            found.append(each)
    assert found == [b"one"]


def test_a_length_beyond_all_messages_is_not_waited_for() -> None:
    with pytest.raises(Broken, match=f"a message of {MOST_BYTES + 1} bytes"):
        list(opener().open((MOST_BYTES + 1).to_bytes(HEAD_BYTES, "big")))
