"""What passes between hosts sealed, and is opened at the other end."""

from testbed.run.hosts.seal import Seal

KEY = bytes(range(32))
PIECES = [b"a state", bytes(1000), b"", bytes(1000)]


def test_pieces_are_opened_in_their_order_and_none_is_as_another():
    seal, opens = Seal(KEY), Seal(KEY)
    sealed = [seal(piece) for piece in PIECES]
    assert [len(piece) for piece in sealed] == [len(piece) for piece in PIECES]
    assert len(set(sealed)) == 4 and b"a state" not in b"".join(sealed)
    assert [opens(piece) for piece in sealed] == PIECES


def test_another_key_opens_nothing():
    assert Seal(KEY[::-1])(Seal(KEY)(bytes(1000))) != bytes(1000)
