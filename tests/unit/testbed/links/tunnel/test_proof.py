"""Proof by both ends: they get one secret, and who does not know the token gets in nowhere."""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from testbed.links.tunnel import proof
from testbed.links.tunnel.proof import DIGEST_BYTES, NONCE_BYTES, Stranger

GREETING = b"wiretune thing 5\n"
TOKEN, OTHER = b"t" * 32, b"o" * 32
LIMIT_S = 20.0
SAID_BYTES = 1 + len("a") + NONCE_BYTES + DIGEST_BYTES


class Called:
    """An end that was called, a step at a time, and the connection that calls it."""

    def __init__(self, owned: contextlib.ExitStack, token: bytes = TOKEN) -> None:
        self.caller, self.connection = map(owned.enter_context, socket.socketpair())
        self._token = token
        self._ours = proof.greet(self.connection, GREETING)

    def heard(self) -> bytes:
        by = time.monotonic() + LIMIT_S
        return proof.read(self.connection, SAID_BYTES, by)

    def answers(self, said: bytes) -> tuple[bytes, bytes]:
        """The secret, and what it answers."""
        _, secret, answer = proof.judged(self._token, GREETING, self._ours, said, {"a"}, "b")
        return secret, answer


def call(connection: socket.socket, token: bytes = TOKEN) -> bytes:
    return proof.call(connection, GREETING, token, "a", "b", time.monotonic() + LIMIT_S)


@pytest.fixture
def owned() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def pool(owned: contextlib.ExitStack) -> ThreadPoolExecutor:
    return owned.enter_context(ThreadPoolExecutor(1))


def refused(calls: "Future[bytes]") -> str:
    error = calls.exception(LIMIT_S)
    assert isinstance(error, Stranger)
    return str(error)


def said_by(token: bytes, listener: bytes, own: bytes) -> bytes:
    """A caller's words, of a number of his choice."""
    parts = GREETING, listener, own, b"a", b"b"
    return b"\x01a" + own + proof.digest(token, b"calls", *parts)


def test_both_ends_get_one_secret_which_no_other_connection_has(
    owned: contextlib.ExitStack, pool: ThreadPoolExecutor
) -> None:
    secrets = set()
    for _ in range(3):
        called = Called(owned)
        calls = pool.submit(call, called.caller)
        secret, answer = called.answers(called.heard())
        called.connection.sendall(answer)
        assert calls.result() == secret and len(secret) == 32
        secrets.add(secret)
    assert len(secrets) == 3


@pytest.mark.parametrize("place", range(len(GREETING) + NONCE_BYTES))
@pytest.mark.parametrize("bit", [0x01, 0x80])
def test_no_bit_of_what_the_called_says_can_be_another(
    owned: contextlib.ExitStack, pool: ThreadPoolExecutor, place: int, bit: int
) -> None:
    called = Called(owned)
    near, between = map(owned.enter_context, socket.socketpair())
    calls = pool.submit(call, near)
    greeting = bytearray(called.caller.recv(100))
    greeting[place] ^= bit
    between.sendall(greeting)
    if place < len(GREETING):
        assert refused(calls) == "is no thing of this version"
        return
    with pytest.raises(Stranger, match="did not know the token"):
        called.answers(between.recv(200))
    between.close()
    assert refused(calls) == "closed the connection: is its token another?"


@pytest.mark.parametrize("place", range(1, SAID_BYTES))
@pytest.mark.parametrize("bit", [0x01, 0x80])
def test_no_bit_of_what_a_caller_says_can_be_another(
    owned: contextlib.ExitStack, pool: ThreadPoolExecutor, place: int, bit: int
) -> None:
    called = Called(owned)
    calls = pool.submit(call, called.caller)
    said = bytearray(called.heard())
    said[place] ^= bit
    with pytest.raises(Stranger, match="did not know the token"):
        called.answers(bytes(said))
    called.connection.close()
    assert refused(calls) == "closed the connection: is its token another?"


@pytest.mark.parametrize("place", range(DIGEST_BYTES))
def test_no_bit_of_an_answer_can_be_another(
    owned: contextlib.ExitStack, pool: ThreadPoolExecutor, place: int
) -> None:
    called = Called(owned)
    calls = pool.submit(call, called.caller)
    answer = bytearray(called.answers(called.heard())[1])
    answer[place] ^= 1
    called.connection.sendall(answer)
    assert refused(calls) == "does not know the token"


CUTS: dict[str, tuple[Callable[[bytes, bytes], bytes], str]] = {
    "nothing": (lambda head, chance: b"", "closed the connection"),
    "half a greeting": (lambda head, chance: head[:9], "closed the connection"),
    "no number": (lambda head, chance: head, "closed the connection"),
    "half a number": (lambda head, chance: head + chance[:8], "closed the connection"),
    "no answer": (lambda head, chance: head + chance, "closed the connection"),
    "half an answer": (lambda head, chance: head + chance + bytes(16), "closed the connection"),
    "nothing known": (lambda head, chance: head + chance + bytes(32), "does not know the token"),
}


@pytest.mark.parametrize(("change", "why"), CUTS.values(), ids=CUTS.keys())
def test_what_is_cut_is_told(
    owned: contextlib.ExitStack,
    pool: ThreadPoolExecutor,
    change: Callable[[bytes, bytes], bytes],
    why: str,
) -> None:
    near, between = map(owned.enter_context, socket.socketpair())
    calls = pool.submit(call, near)
    own = os.urandom(NONCE_BYTES)
    between.sendall(change(GREETING, own))
    between.shutdown(socket.SHUT_WR)
    assert why in refused(calls)


def test_another_version_that_says_less_is_named_and_not_waited_for(
    owned: contextlib.ExitStack, pool: ThreadPoolExecutor
) -> None:
    near, between = map(owned.enter_context, socket.socketpair())
    calls = pool.submit(call, near)
    between.sendall(GREETING.replace(b"5", b"4") + bytes(8))
    assert refused(calls) == "is no thing of this version"


def test_what_two_speak_is_proved_too(
    owned: contextlib.ExitStack, pool: ThreadPoolExecutor
) -> None:
    """Who has one end take the other for another version's is found out."""
    called, other = Called(owned), b"wiretune thing 4\n"
    near, between = map(owned.enter_context, socket.socketpair())
    by = time.monotonic() + LIMIT_S
    calls = pool.submit(proof.call, near, other, TOKEN, "a", "b", by)
    between.sendall(called.caller.recv(100).replace(GREETING, other))
    with pytest.raises(Stranger, match="did not know the token"):
        called.answers(between.recv(200))
    between.close()
    assert refused(calls) == "closed the connection: is its token another?"


def test_who_does_not_know_the_token_cannot_put_his_own_numbers_in_between(
    owned: contextlib.ExitStack, pool: ThreadPoolExecutor
) -> None:
    """He has a secret with neither end, whatever he takes for the token."""
    called = Called(owned)
    listener = called.caller.recv(100)[len(GREETING) :]
    his = os.urandom(NONCE_BYTES)
    near, between = map(owned.enter_context, socket.socketpair())
    calls = pool.submit(call, near)
    between.sendall(GREETING + his)
    said = between.recv(200)
    # The caller's proof is of his number, and so none to the called; his own is none.
    for words in (said, said[:2] + his + said[-DIGEST_BYTES:], said_by(OTHER, listener, his)):
        with pytest.raises(Stranger, match="did not know the token"):
            called.answers(words)
    between.sendall(
        proof.digest(OTHER, b"listens", GREETING, his, said[2 : 2 + NONCE_BYTES], b"a", b"b")
    )
    assert refused(calls) == "does not know the token"


def test_a_callers_own_words_are_no_answer_to_it(
    owned: contextlib.ExitStack, pool: ThreadPoolExecutor
) -> None:
    near, between = map(owned.enter_context, socket.socketpair())
    calls = pool.submit(call, near)
    between.sendall(GREETING + os.urandom(NONCE_BYTES))
    between.sendall(between.recv(200)[-DIGEST_BYTES:])
    assert refused(calls) == "does not know the token"


def test_what_was_said_at_an_earlier_connection_proves_nothing(
    owned: contextlib.ExitStack, pool: ThreadPoolExecutor
) -> None:
    earlier, now = Called(owned), Called(owned)
    greeting = earlier.caller.recv(100, socket.MSG_PEEK)
    calls = pool.submit(call, earlier.caller)
    said = earlier.heard()
    _, answer = earlier.answers(said)
    earlier.connection.sendall(answer)
    calls.result()
    with pytest.raises(Stranger, match="did not know the token"):
        now.answers(said)
    near, between = map(owned.enter_context, socket.socketpair())
    calls = pool.submit(call, near)
    between.sendall(greeting + answer)
    assert refused(calls) == "does not know the token"
