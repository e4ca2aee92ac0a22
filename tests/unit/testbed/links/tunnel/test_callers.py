"""Callers who have yet to prove themselves: no number of silent ones keeps another waiting."""

import contextlib
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from testbed.links.tunnel import callers as module
from testbed.links.tunnel import proof
from testbed.links.tunnel.callers import Called, Callers
from testbed.links.tunnel.proof import Stranger

GREETING, TOKEN = b"wiretune thing 1\n", b"t" * 32
LIMIT_S = 20.0


class Case:
    def __init__(self, owned: contextlib.ExitStack) -> None:
        self.listener = owned.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.callers = Callers(self.listener, GREETING, TOKEN, "b")
        owned.callback(self.callers.close)
        self.owned = owned

    def connection(self) -> socket.socket:
        return self.owned.enter_context(socket.create_connection(self.listener.getsockname()))

    def prove(self, name: str, token: bytes = TOKEN) -> bytes:
        by = time.monotonic() + LIMIT_S
        return proof.call(self.connection(), GREETING, token, name, "b", by)

    def taken(self, names: set[str], count: int) -> list[Called]:
        found: list[Called] = []
        by = time.monotonic() + LIMIT_S
        while len(found) < count and time.monotonic() < by:
            found += self.callers.take(names)
            time.sleep(0.001)
        for each in found:
            self.owned.enter_context(each.connection)
        return found

    def look_until_somebody_is_sent_away(self) -> None:
        by = time.monotonic() + LIMIT_S
        while not self.callers.last and time.monotonic() < by:
            assert list(self.callers.take(set())) == []
            time.sleep(0.001)


@pytest.fixture
def case() -> Iterator[Case]:
    with contextlib.ExitStack() as owned:
        yield Case(owned)


def test_the_silent_keep_nobody_waiting_who_proves_that_it_knows_the_token(case: Case) -> None:
    silent = [case.connection() for _ in range(20)]
    for each in silent[:10]:
        each.sendall(b"\x01")
    with ThreadPoolExecutor(2) as pool:
        keys = [pool.submit(case.prove, name) for name in ("a", "c")]
        found = {each.name: each.key for each in case.taken({"a", "c"}, 2)}
        assert [found["a"], found["c"]] == [each.result() for each in keys]
    assert case.callers.patience_s is not None and case.callers.patience_s > 0
    case.callers.close()
    assert silent[0].recv(100)[: len(GREETING)] == GREETING and silent[0].recv(1) == b""


def test_what_comes_a_byte_at_a_time_is_waited_for_to_its_end(case: Case) -> None:
    caller = case.connection()
    assert list(case.callers.take({"a"})) == []
    theirs = caller.recv(100)[len(GREETING) :]
    ours = proof.public(X25519PrivateKey.generate())
    said = b"\1a" + ours + proof.digest(TOKEN, b"calls", GREETING, theirs, ours, b"a", b"b")
    for place in range(len(said)):
        assert list(case.callers.take({"a"})) == []
        caller.sendall(said[place : place + 1])
    (found,) = case.taken({"a"}, 1)
    assert found.name == "a" and found.connection.getblocking()


def test_of_more_than_are_kept_the_oldest_goes(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    first = case.connection()
    others = [case.connection() for _ in range(3)]
    case.look_until_somebody_is_sent_away()
    assert first.recv(100)[: len(GREETING)] == GREETING and first.recv(1) == b""
    assert all(each.recv(100)[: len(GREETING)] == GREETING for each in others)
    for each in others:
        each.setblocking(False)
        with pytest.raises(BlockingIOError):
            each.recv(1)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"", "said too little in time"),
        (b"\x01a", "said too little in time"),
        (b"\0" * 90, "gave a name of 0 bytes"),
        (b"\xff" * 90, "gave a name of 255 bytes"),
        (b"\x01a" + bytes(64), "did not know the token"),
    ],
)
def test_a_stranger_is_sent_away_with_its_reason(
    case: Case, said: bytes, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LIMIT_S", 0.1)
    case.connection().sendall(said)
    case.look_until_somebody_is_sent_away()
    assert case.callers.last == f"127.0.0.1 called and {reason}"
    assert case.callers.patience_s is None


def test_who_has_been_taken_is_awaited_no_more(case: Case) -> None:
    names = {"a"}
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(case.prove, "a") for _ in range(2)]
        while names:
            for found in case.callers.take(names):
                names.remove(found.name)
                case.owned.enter_context(found.connection)
        case.look_until_somebody_is_sent_away()
        assert case.callers.last.endswith("was 'a', which is not awaited")
        assert [type(e) for each in calls if (e := each.exception())] == [Stranger]
