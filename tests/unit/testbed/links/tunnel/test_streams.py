"""Streams between two hosts: sealed or not they carry the same, and only between two of one key."""

import contextlib
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from testbed.links.tunnel import streams
from testbed.links.tunnel.seal import Broken
from testbed.links.tunnel.streams import Sealed, Stream

KEY = bytes(range(32))
LIMIT_S = 20.0
LARGE = bytes(range(256)) * 10_000

Pair = tuple[Stream, Stream]


@pytest.fixture
def owned() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def sealed(owned: contextlib.ExitStack, key: bytes = KEY, other: bytes = KEY) -> Pair:
    one, two = (owned.enter_context(each) for each in socket.socketpair())
    return Sealed(one, key, calls=False), Sealed(two, other, calls=True)


@pytest.fixture(params=["sealed", "as it is"])
def pair(request: pytest.FixtureRequest, owned: contextlib.ExitStack) -> Pair:
    if request.param == "sealed":
        ends: Pair = sealed(owned)
    else:
        one, two = (owned.enter_context(each) for each in socket.socketpair())
        ends = Stream(one), Stream(two)
    for each in ends:
        each.settimeout(LIMIT_S)
    return ends


def all_of(end: Stream, count: int) -> bytes:
    found = b""
    while len(found) < count:
        data = end.recv(1 << 16)
        assert data
        found += data
    return found


def test_both_ways_all_comes_in_its_order(pair: Pair):
    with ThreadPoolExecutor(2) as pool:
        for one, other in (pair, pair[::-1]):
            sent = [pool.submit(one.sendall, data) for data in (b"", LARGE)]
            assert all_of(other, len(LARGE)) == LARGE
            assert [each.result() for each in sent] == [None, None]


def test_an_end_that_is_closed_is_told(pair: Pair):
    one, other = pair
    one.sendall(b"last")
    one.close()
    assert other.recv(100) == b"last" and other.recv(100) == b""


def test_what_the_connection_does_not_take_waits_and_stays_in_order(pair: Pair):
    one, other = pair
    one.settimeout(0)
    taken = 0
    with pytest.raises(BlockingIOError):
        while True:
            taken += one.send(LARGE[taken % len(LARGE) :])
    other.settimeout(0)
    with pytest.raises(BlockingIOError):
        one.send(b"")
        one.send(LARGE)
    found = bytearray()
    while len(found) < taken or one.has_more:
        with contextlib.suppress(BlockingIOError):
            one.send(b"")
        with contextlib.suppress(BlockingIOError):
            found += other.recv(1 << 16)
    assert bytes(found) == (LARGE * (1 + taken // len(LARGE)))[:taken]
    with pytest.raises(BlockingIOError):
        other.recv(1)


def test_sealed_ahead_of_the_connection_is_no_more_than_a_bound(owned: contextlib.ExitStack):
    one, _ = sealed(owned)
    one.settimeout(0)
    for _ in range(100):
        with contextlib.suppress(BlockingIOError):
            assert one.send(LARGE) <= streams._MOST_SEALED_BYTES
    assert one.has_more and len(one._waits) <= 1.01 * streams._MOST_SEALED_BYTES


def test_a_part_of_what_is_sealed_is_waited_for(owned: contextlib.ExitStack):
    one, other = sealed(owned)
    ours, theirs = (owned.enter_context(each) for each in socket.socketpair())
    one.sendall(b"a frame")
    whole, other._socket = other._socket.recv(100), ours
    other.settimeout(0)
    for place in range(len(whole)):
        with pytest.raises(BlockingIOError):
            other.recv(100)
        theirs.sendall(whole[place : place + 1])
    assert other.recv(100) == b"a frame"


@pytest.mark.parametrize("bit", [0, 255])
def test_an_end_of_another_key_is_no_end(owned: contextlib.ExitStack, bit: int):
    changed = int.from_bytes(KEY, "big") ^ 1 << bit
    one, other = sealed(owned, other=changed.to_bytes(32, "big"))
    for says, hears in ((one, other), (other, one)):
        says.sendall(b"a frame")
        with pytest.raises(Broken, match="what came is not what was sealed there"):
            hears.recv(100)


def test_two_that_have_both_called_do_not_hear_one_another(owned: contextlib.ExitStack):
    one, two = (owned.enter_context(each) for each in socket.socketpair())
    Sealed(one, KEY, calls=True).sendall(b"a frame")
    with pytest.raises(Broken):
        Sealed(two, KEY, calls=True).recv(100)


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n" * 100, bytes(1000)])
def test_who_cannot_seal_is_told_at_once(owned: contextlib.ExitStack, said: bytes):
    one, two = (owned.enter_context(each) for each in socket.socketpair())
    two.sendall(said)
    with pytest.raises(Broken):
        Sealed(one, KEY, calls=False).recv(1 << 16)
