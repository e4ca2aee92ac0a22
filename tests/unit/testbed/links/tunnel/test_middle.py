"""A man in the middle of a tunnel: what he does is told, and no frame comes but those sent."""

import contextlib
import socket
from collections.abc import Callable, Iterator

import pytest
from agreed import agreed, pass_on

from testbed.links.tunnel.clocks import Offset
from testbed.links.tunnel.messages import Frame
from testbed.links.tunnel.tunnel import Gone, Tunnel

FRAMES = [bytes([number]) * 300 for number in range(6)]
AT = 3
"""The record that he has to do with."""
_HEAD_BYTES = 5

Records = list[bytes]


class Middle:
    """Two ends of a tunnel that has been agreed on, and himself between them."""

    def __init__(self, owned: contextlib.ExitStack) -> None:
        sockets = [*socket.socketpair(), *socket.socketpair()]
        one, self._of_one, self._of_other, other = map(owned.enter_context, sockets)
        ends = self._of_one, self._of_other
        streams = agreed(one, other, between=lambda: pass_on(*ends))
        offset = Offset()
        offset.learn(0.0, 0.0, 0.0, 0.0)
        self.one, self.other = (
            Tunnel(name, stream, offset, 0.0) for name, stream in zip("ba", streams, strict=True)
        )

    def sent(self, tunnel: Tunnel) -> Records:
        """Records of FRAMES, one each, as he holds them on their way from one end."""
        for data in FRAMES:
            tunnel.send(1.0, 0.0, [data], 1)
            tunnel.flush()
        data = (self._of_one if tunnel is self.one else self._of_other).recv(1 << 16)
        found = []
        while data:
            end = _HEAD_BYTES + int.from_bytes(data[3:_HEAD_BYTES], "big")
            found.append(data[:end])
            data = data[end:]
        assert len(found) == len(FRAMES)
        return found

    def come(self, records: Records) -> Iterator[Frame]:
        """What the other end makes of records, each as it comes; Gone as it says."""
        for record in records:
            self._of_other.sendall(record)
            yield from self.other.read(lambda: 1.0)


@pytest.fixture
def owned() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def flipped(record: bytes, place: int) -> bytes:
    changed = bytearray(record)
    changed[place] ^= 1
    return bytes(changed)


def in_place(change: Callable[[bytes], bytes]) -> Callable[[Records], Records]:
    return lambda records: [*records[:AT], change(records[AT]), *records[AT + 1 :]]


WAYS: dict[str, Callable[[Records], Records]] = {
    "its first bit changed": in_place(lambda record: flipped(record, _HEAD_BYTES)),
    "a bit within changed": in_place(lambda record: flipped(record, 100)),
    "its last bit changed": in_place(lambda record: flipped(record, -1)),
    "its kind changed": in_place(lambda record: flipped(record, 0)),
    "its length changed": in_place(lambda record: flipped(record, _HEAD_BYTES - 1)),
    "cut short": in_place(lambda record: record[:-1]),
    "longer": in_place(lambda record: record + b"\0"),
    "without what it had": in_place(lambda record: record[:3] + b"\0\0"),
    "left out": lambda records: records[:AT] + records[AT + 1 :],
    "all before it left out": lambda records: records[AT:],
    "said twice": lambda records: [*records[: AT + 1], *records[AT:]],
    "said again at the end": lambda records: [*records, records[AT]],
    "all again": lambda records: records * 2,
    "swapped": lambda records: [*records[:AT], records[AT + 1], records[AT], *records[AT + 2 :]],
    "one made up before it": lambda records: [
        *(*records[:AT], b"\x17\x03\x03\x00\x40" + bytes(64), *records[AT:])
    ],
    "a farewell made up": lambda records: [*records[:AT], b"\x15\x03\x03\x00\x02\x01\x00"],
    "his own words": lambda records: [*records[:AT], b"hello, this is host a speaking"],
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_what_is_done_to_a_record_is_told_and_no_other_frame_comes(
    owned: contextlib.ExitStack, way: Callable[[Records], Records]
):
    middle = Middle(owned)
    come: list[bytes] = []
    with pytest.raises(Gone, match=r"^what came is not what was sealed there \(\w.*\)$"):
        for frame in middle.come(way(middle.sent(middle.one))):
            come.append(frame.data)
    assert come == FRAMES[: len(come)]


def test_what_he_leaves_alone_comes(owned: contextlib.ExitStack):
    middle = Middle(owned)
    records = middle.sent(middle.one)
    assert FRAMES[0][:20] not in b"".join(records)
    assert [frame.data for frame in middle.come(records)] == FRAMES


def test_what_a_host_has_sent_does_not_come_back_to_it(owned: contextlib.ExitStack):
    middle = Middle(owned)
    with pytest.raises(Gone, match="what came is not what was sealed there"):
        list(middle.come(middle.sent(middle.other)))


def test_what_two_hosts_have_sent_at_another_time_is_not_taken(owned: contextlib.ExitStack):
    """By the same secret even: it may have been said once more."""
    before, now = Middle(owned), Middle(owned)
    with pytest.raises(Gone, match="what came is not what was sealed there"):
        list(now.come(before.sent(before.one)))


def test_what_is_cut_off_is_a_host_that_has_gone(owned: contextlib.ExitStack):
    middle = Middle(owned)
    records = middle.sent(middle.one)
    assert len(list(middle.come(records[:AT]))) == AT
    middle._of_other.sendall(records[AT][:50])
    middle._of_other.close()
    with pytest.raises(Gone, match=r"^it closed the connection$"):
        middle.other.read(lambda: 1.0)
    assert not middle.other.has_left
