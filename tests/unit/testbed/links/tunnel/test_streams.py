"""Streams between two hosts: sealed or not they carry the same, and only where both ends agree."""

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from agreed import agreed

from testbed.links.tunnel import certificate, streams
from testbed.links.tunnel.streams import Broken, Sealed, Stream

SECRET = bytes(range(32))
LIMIT_S = 20.0
LARGE = bytes(range(256)) * 10_000

Pair = tuple[Stream, Stream]
SealedPair = tuple[Sealed, Sealed]


@pytest.fixture
def owned() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def sealed(owned: contextlib.ExitStack, other: bytes = SECRET) -> SealedPair:
    one, two = (owned.enter_context(each) for each in socket.socketpair())
    return Sealed(one, SECRET, serves=True), Sealed(two, other, serves=False)


def agree(*ends: Sealed) -> list[BaseException | None]:
    """What each end made of it."""
    by = time.monotonic() + LIMIT_S
    with ThreadPoolExecutor(len(ends)) as pool:
        found = [pool.submit(end.agree, by) for end in ends]
        return [each.exception() for each in found]


@pytest.fixture(params=["sealed", "as it is"])
def pair(request: pytest.FixtureRequest, owned: contextlib.ExitStack) -> Pair:
    one, two = (owned.enter_context(each) for each in socket.socketpair())
    ends = agreed(one, two) if request.param == "sealed" else (Stream(one), Stream(two))
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
    one, other = sealed(owned)
    assert agree(one, other) == [None, None]
    one.settimeout(0)
    for _ in range(100):
        with contextlib.suppress(BlockingIOError):
            assert one.send(LARGE) <= streams._MOST_SEALED_BYTES
    assert one.has_more and len(one._waits) <= 1.01 * streams._MOST_SEALED_BYTES


def test_who_ends_the_stream_and_goes_on_is_told_of(owned: contextlib.ExitStack):
    one, other = sealed(owned)
    assert agree(one, other) == [None, None]
    with pytest.raises(ssl.SSLWantReadError):
        one._tls.unwrap()
    one.connection.sendall(one._outgoing.read() + b"\x17\x03\x03\x00\x20" + bytes(32))
    other.settimeout(LIMIT_S)
    with pytest.raises(Broken, match="it has ended the stream"):
        other.recv(100)


def test_a_part_of_a_record_is_waited_for(owned: contextlib.ExitStack):
    one, other = sealed(owned)
    assert agree(one, other) == [None, None]
    ours, theirs = (owned.enter_context(each) for each in socket.socketpair())
    other.connection, whole = ours, one._tls.write(b"a frame") and one._outgoing.read()
    other.settimeout(0)
    for place in range(len(whole)):
        with pytest.raises(BlockingIOError):
            other.recv(100)
        theirs.sendall(whole[place : place + 1])
    assert other.recv(100) == b"a frame"


def test_what_was_sealed_before_what_was_changed_is_given(owned: contextlib.ExitStack):
    one, other = sealed(owned)
    assert agree(one, other) == [None, None]
    records = []
    for data in (b"one", b"two"):
        assert one._tls.write(data)
        records.append(one._outgoing.read())
    one.connection.sendall(records[0] + records[1][:-1] + bytes([records[1][-1] ^ 1]))
    other.settimeout(LIMIT_S)
    assert not other.is_broken
    assert other.recv(100) == b"one" and other.is_broken
    for does in (lambda: other.recv(100), lambda: other.send(b"x"), lambda: other.sendall(b"x")):
        with pytest.raises(Broken, match="what came is not what was sealed there"):
            does()


@pytest.mark.parametrize("bit", [0, 255])
def test_an_end_of_another_secret_is_no_end(owned: contextlib.ExitStack, bit: int):
    changed = int.from_bytes(SECRET, "big") ^ 1 << bit
    one, other = sealed(owned, other=changed.to_bytes(32, "big"))
    for error in agree(one, other):
        assert isinstance(error, Broken)
        assert str(error) == error.strerror and "it is another, or what passed was" in str(error)


def test_two_that_would_both_call_do_not_agree(owned: contextlib.ExitStack):
    one, two = (owned.enter_context(each) for each in socket.socketpair())
    ends = [Sealed(each, SECRET, serves=False) for each in (one, two)]
    assert all(isinstance(error, Broken) for error in agree(*ends))


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\n\r\n" * 100, bytes(1000)])
def test_who_cannot_seal_is_not_waited_for(owned: contextlib.ExitStack, said: bytes):
    one, two = (owned.enter_context(each) for each in socket.socketpair())
    two.sendall(said)
    with pytest.raises(OSError):
        Sealed(one, SECRET, serves=True).agree(time.monotonic() + 0.2)


def test_who_agrees_a_byte_at_a_time_is_not_waited_for_longer(owned: contextlib.ExitStack):
    one, two = (owned.enter_context(each) for each in socket.socketpair())
    ended = threading.Event()

    def trickle() -> None:
        # A record of a handshake that never ends.
        for byte in b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc" + bytes(1 << 14):
            two.sendall(bytes([byte]))
            if ended.wait(0.01):
                return

    with ThreadPoolExecutor(1) as pool:
        said = pool.submit(trickle)
        with pytest.raises(TimeoutError):
            Sealed(one, SECRET, serves=True).agree(time.monotonic() + 0.3)
        assert not said.done()
        ended.set()


def test_a_certificate_is_what_its_secret_makes_it_and_has_signed_itself():
    one, again, other = (certificate.made(secret) for secret in (SECRET, SECRET, bytes(32)))
    assert one == again and one.der != other.der
    shown = one.pem[one.pem.index(b"-----BEGIN CERTIFICATE") :].decode()
    assert ssl.PEM_cert_to_DER_cert(shown) == one.der
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=one.der)
    (read,) = context.get_ca_certs() or [context.cert_store_stats()]
    assert read
