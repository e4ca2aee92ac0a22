"""What two ends agree on: TLS 1.3 with keys of that connection alone, to which nobody comes back.

So the certificate, which whoever learns the token can make, opens nothing that was recorded.
"""

import contextlib
import select
import socket
import ssl
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from agreed import LIMIT_S, SECRET, agreed, pass_on

from testbed.links.tunnel import streams
from testbed.links.tunnel.streams import Broken, Sealed

HANDSHAKE, HEAD_BYTES = 22, 5
CALLERS_HELLO, CALLED_HELLO = 1, 2
TLS_1_3, TLS_1_2 = b"\x03\x04", b"\x03\x03"
PRE_SHARED_KEY, EARLY_DATA, VERSIONS, WAYS_OF_PSK, KEY_SHARE = 41, 42, 43, 45, 51
"""Extensions of TLS by their numbers (RFC 8446, 4.2)."""
NO_EXCHANGE = 0
"""The way by which a shared key alone makes the connection's."""
RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
"""A called end's random number where it asks for another hello, which has no key."""


class Recorded(NamedTuple):
    """All that has passed between two ends until both had agreed."""

    to_called: bytes
    to_caller: bytes

    @property
    def hellos(self) -> tuple[dict[int, bytes], dict[int, bytes]]:
        """What each end's has, by the extension's number."""
        assert RETRY not in self.to_caller
        return extensions(self.to_called, CALLERS_HELLO), extensions(self.to_caller, CALLED_HELLO)


def extensions(said: bytes, kind: int) -> dict[int, bytes]:
    assert said[0] == HANDSHAKE and said[HEAD_BYTES] == kind
    # After the message's head, a version and a random number.
    at = HEAD_BYTES + 4 + 2 + 32
    at += 1 + said[at]
    at += 2 + int.from_bytes(said[at : at + 2], "big") if kind == CALLERS_HELLO else 2
    at += 1 + said[at] if kind == CALLERS_HELLO else 1
    end = at + 2 + int.from_bytes(said[at : at + 2], "big")
    assert end == HEAD_BYTES + int.from_bytes(said[3:HEAD_BYTES], "big")
    found, at = {}, at + 2
    while at < end:
        number, length = (int.from_bytes(said[each : each + 2], "big") for each in (at, at + 2))
        found[number] = said[at + 4 : at + 4 + length]
        at += 4 + length
    return found


@pytest.fixture
def owned() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def recorded(owned: contextlib.ExitStack) -> tuple[Sealed, Sealed, Recorded]:
    """The called and the calling end, and what somebody between them has then."""
    sockets = [*socket.socketpair(), *socket.socketpair()]
    called, of_called, of_caller, caller = map(owned.enter_context, sockets)
    to_called, to_caller = bytearray(), bytearray()

    def between() -> None:
        by_called, by_caller = pass_on(of_called, of_caller)
        to_caller.extend(by_called)
        to_called.extend(by_caller)

    ends = agreed(called, caller, between=between)
    between()
    return *ends, Recorded(bytes(to_called), bytes(to_caller))


def test_both_speak_tls_1_3_and_offer_nothing_else(owned: contextlib.ExitStack):
    called, caller, passed = recorded(owned)
    assert [end._tls.version() for end in (called, caller)] == ["TLSv1.3"] * 2
    offered, taken = passed.hellos
    assert offered[VERSIONS] == bytes([len(TLS_1_3)]) + TLS_1_3
    assert taken[VERSIONS] == TLS_1_3


@pytest.mark.parametrize("serves", [True, False])
def test_who_speaks_tls_1_2_alone_is_refused(owned: contextlib.ExitStack, serves: bool):
    sockets = [owned.enter_context(each) for each in socket.socketpair()]
    ends = [Sealed(each, SECRET, serves=place == 0) for place, each in enumerate(sockets)]
    older = ends[0 if serves else 1]
    context = streams._context(SECRET, serves=serves)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    older._tls = context.wrap_bio(older._incoming, older._outgoing, server_side=serves)
    for each in sockets:
        each.setblocking(False)
    with pytest.raises(Broken, match="it is another, or what passed was changed"):
        while not all([end.agrees() for end in ends]):
            pass


def test_keys_are_exchanged_and_none_is_of_an_earlier_connection(owned: contextlib.ExitStack):
    """By one certificate: what is exchanged does not follow from it."""
    shares = []
    for _ in range(3):
        called, caller, passed = recorded(owned)
        for hello in passed.hellos:
            # Neither a key that both had nor what can be said before an exchange.
            assert PRE_SHARED_KEY not in hello and EARLY_DATA not in hello
            assert len(hello[KEY_SHARE]) >= 2 + 2 + 32
            shares.append(hello[KEY_SHARE])
        offered, taken = passed.hellos
        assert NO_EXCHANGE not in offered.get(WAYS_OF_PSK, b"\0")[1:]
        # The called has taken a group of which it was given a key.
        assert taken[KEY_SHARE][:2] in offered[KEY_SHARE]
        assert not called._tls.session_reused and not caller._tls.session_reused
    assert len(set(shares)) == 6


def test_nobody_is_given_what_to_come_back_with(owned: contextlib.ExitStack):
    called, caller = agreed(*map(owned.enter_context, socket.socketpair()))
    for each in (called, caller):
        each.settimeout(LIMIT_S)
    assert not select.select([called, caller], [], [], 0.05)[0]
    session = caller._tls.session
    assert session is None or not session.has_ticket
    called.sendall(b"word")
    assert caller.recv(100) == b"word"
    session = caller._tls.session
    assert session is None or not session.has_ticket


def test_what_was_recorded_opens_nothing_at_another_that_has_the_same_certificate(
    owned: contextlib.ExitStack,
):
    """Nor is the fault in what is said there: the end that had the keys takes the same bytes."""
    sockets = [*socket.socketpair(), *socket.socketpair()]
    called, of_called, of_caller, caller = map(owned.enter_context, sockets)
    for each in (called, caller):
        each.setblocking(False)
    one, other = Sealed(called, SECRET, serves=True), Sealed(caller, SECRET, serves=False)
    assert not other.agrees()
    hello = of_caller.recv(1 << 16)
    of_called.sendall(hello)
    assert not one.agrees()
    of_caller.sendall(of_called.recv(1 << 16))
    assert other.agrees()
    other.sendall(b"a word of the run")
    rest = of_caller.recv(1 << 16)

    near, far = map(owned.enter_context, socket.socketpair())
    near.setblocking(False)
    again = Sealed(near, SECRET, serves=True)
    far.sendall(hello)
    assert not again.agrees()
    assert far.recv(1 << 16)[0] == HANDSHAKE
    far.sendall(rest)
    with pytest.raises(Broken, match="it is another, or what passed was changed"):
        again.agrees()

    of_called.sendall(rest)
    assert one.agrees() and one.recv(100) == b"a word of the run"
