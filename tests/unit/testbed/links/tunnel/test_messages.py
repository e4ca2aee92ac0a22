"""Messages of a tunnel: whatever pieces they come in they are read the same, and checked."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.links.tunnel import messages
from testbed.links.tunnel.messages import (
    Ask,
    Decoder,
    Filling,
    Frame,
    Leave,
    Malformed,
    Message,
    Rate,
    Tell,
)
from testbed.links.userspace.bursts import MAX_READ_BYTES

PACKET = bytes(range(64))
SAID: list[tuple[bytes, Message]] = [
    (messages.frame(1234.5, 0.25, len(PACKET)) + PACKET, Frame(1234.5, 0.25, PACKET)),
    (messages.ask(7.125), Ask(7.125)),
    (messages.tell(7.125, -3.5, -3.25), Tell(7.125, -3.5, -3.25)),
    (messages.filling(300), Filling(300)),
    (messages.filling(0), Filling(0)),
    (messages.rate(1e9), Rate(1e9)),
    (messages.leave(), Leave()),
]


@given(st.lists(st.integers(1, 50), min_size=1))
def test_pieces_of_any_size_give_the_same(sizes: list[int]):
    data = b"".join(text for text, _ in SAID)
    decoder, found, at = Decoder(), [], 0
    while at < len(data):
        for size in sizes:
            found += list(decoder.feed(data[at : at + size]))
            at += size
    assert found == [message for _, message in SAID]


@pytest.mark.parametrize(
    "wrong",
    [
        struct.pack("!BI", 0, 8),
        struct.pack("!BI", 9, 8),
        struct.pack("!BI", 1, 16 + 29),
        struct.pack("!BI", 1, 16 + MAX_READ_BYTES + 1),
        struct.pack("!BI", 1, 0xFFFFFFFF),
        struct.pack("!BI", 2, 9),
        struct.pack("!BI", 3, 8),
        struct.pack("!BI", 4, messages.MOST_FILLING_BYTES + 1),
        messages.frame(float("nan"), 0, 64) + PACKET,
        messages.frame(float("inf"), 0, 64) + PACKET,
        messages.frame(1.0, -1e-9, 64) + PACKET,
        messages.frame(1.0, float("nan"), 64) + PACKET,
        messages.frame(1.0, 4000.0, 64) + PACKET,
        messages.ask(float("nan")),
        messages.tell(0.0, float("inf"), 0.0),
        messages.rate(float("nan")),
        struct.pack("!BI", 6, 1),
    ],
)
def test_what_is_no_message_is_refused(wrong: bytes):
    decoder = Decoder()
    assert list(decoder.feed(messages.ask(1.0))) == [Ask(1.0)]
    with pytest.raises(Malformed):
        list(decoder.feed(wrong))


@given(st.binary(max_size=300))
def test_noise_is_refused_or_waited_for(noise: bytes):
    decoder = Decoder()
    try:
        for message in decoder.feed(noise):
            assert isinstance(message, Message)
    except Malformed:
        return
    assert len(decoder._partial) <= 5 + 16 + MAX_READ_BYTES
