"""Callers who have yet to prove themselves: no number of silent ones keeps another waiting."""

import contextlib
import socket
import time
from collections.abc import Container, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from testbed.links.tunnel import callers as module
from testbed.links.tunnel import proof
from testbed.links.tunnel.callers import Called, Callers
from testbed.links.tunnel.proof import Stranger
from testbed.links.tunnel.streams import Broken, Sealed

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

    def prove(self, name: str) -> Sealed:
        """One that has yet to agree."""
        by, connection = time.monotonic() + LIMIT_S, self.connection()
        secret = proof.call(connection, GREETING, TOKEN, name, "b", by)
        return Sealed(connection, secret, serves=False)

    def call(self, name: str) -> Sealed:
        stream = self.prove(name)
        stream.agree(time.monotonic() + LIMIT_S)
        return stream

    def taken(self, names: set[str], count: int) -> list[Called]:
        found: list[Called] = []
        by = time.monotonic() + LIMIT_S
        while len(found) < count and time.monotonic() < by:
            found += self.callers.take(names)
            time.sleep(0.001)
        for each in found:
            self.owned.callback(each.stream.close)
        return found

    def look_until_somebody_is_sent_away(self, names: Container[str] = ()) -> None:
        by = time.monotonic() + LIMIT_S
        while not self.callers.last and time.monotonic() < by:
            assert list(self.callers.take(names)) == []
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
        calls = [pool.submit(case.call, name) for name in ("a", "c")]
        found = {each.name: each.stream for each in case.taken({"a", "c"}, 2)}
        for name, call in zip("ac", calls, strict=True):
            call.result().sendall(name.encode())
            assert found[name].recv(100) == name.encode()
    assert case.callers.patience_s is not None and case.callers.patience_s > 0
    case.callers.close()
    assert silent[0].recv(100)[: len(GREETING)] == GREETING and silent[0].recv(1) == b""


def test_who_proves_itself_and_does_not_agree_keeps_nobody_waiting(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LIMIT_S", LIMIT_S)
    with ThreadPoolExecutor(1) as pool:
        for _ in range(3):
            proves = pool.submit(case.prove, "a")
            while not proves.done():
                assert list(case.callers.take({"a"})) == []
            proves.result()
        assert len(case.callers._waiting) == 3
        call = pool.submit(case.call, "a")
        began = time.monotonic()
        (found,) = case.taken({"a"}, 1)
        assert time.monotonic() - began < LIMIT_S
        call.result().sendall(b"word")
        assert found.stream.recv(100) == b"word" and case.callers.last == ""
    for each in case.callers._waiting:
        each.by = 0.0
    assert list(case.callers.take({"a"})) == []
    assert case.callers.last == "127.0.0.1 called and said too little in time"
    assert case.callers.patience_s is None


def test_who_has_proved_itself_has_its_time_once_more(case: Case) -> None:
    case.connection()
    with ThreadPoolExecutor(1) as pool:
        proves = pool.submit(case.prove, "a")
        while not proves.done():
            assert list(case.callers.take({"a"})) == []
    later = case.connection()
    while len(case.callers._waiting) < 3:
        case.callers._accept()
    times = [each.by for each in case.callers._waiting]
    assert times == sorted(times) and case.callers._waiting[1].stream is not None
    later.close()


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n" * 9, b"\x16\x03\x01\0\4\1\0\0\0", None])
def test_who_passes_a_proof_on_and_cannot_agree_is_sent_away(
    case: Case, said: bytes | None
) -> None:
    """Also by a secret of his own."""
    with ThreadPoolExecutor(1) as pool:
        proves = pool.submit(case.prove, "a")
        while not proves.done():
            assert list(case.callers.take({"a"})) == []
        stream = proves.result()
        if said is None:
            agrees = pool.submit(
                Sealed(stream.connection, bytes(32), serves=False).agree, time.monotonic() + LIMIT_S
            )
        else:
            stream.connection.sendall(said)
        case.look_until_somebody_is_sent_away({"a"})
        if said is None:
            assert isinstance(agrees.exception(), Broken)
    assert "called and it is another, or what passed was changed (" in case.callers.last


def test_what_comes_a_byte_at_a_time_is_waited_for_to_its_end(case: Case) -> None:
    caller = case.connection()
    assert list(case.callers.take({"a"})) == []
    theirs, ours = caller.recv(100)[len(GREETING) :], bytes(proof.NONCE_BYTES)
    parts = GREETING, theirs, ours, b"a", b"b"
    said = b"\1a" + ours + proof.digest(TOKEN, b"calls", *parts)
    for place in range(len(said)):
        assert list(case.callers.take({"a"})) == []
        caller.sendall(said[place : place + 1])
    assert list(case.callers.take({"a"})) == []
    assert caller.recv(100) == proof.digest(TOKEN, b"listens", *parts)
    near, between = (case.owned.enter_context(each) for each in socket.socketpair())
    for each in (near, caller, between):
        each.setblocking(False)
    stream, found = Sealed(near, proof.digest(TOKEN, b"key", *parts), serves=False), []
    while not stream.agrees() or not found:
        for one, other in ((caller, between), (between, caller)):
            with contextlib.suppress(BlockingIOError):
                other.sendall(one.recv(1))
        found += case.callers.take({"a"})
    case.owned.callback(found[0].stream.close)
    assert found[0].name == "a" and found[0].stream.connection.getblocking()


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
        (b"\x01a" + bytes(48), "did not know the token"),
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

    def heard(stream: Sealed) -> bytes:
        try:
            stream.agree(time.monotonic() + LIMIT_S)
            return stream.recv(100)
        except OSError:
            return b""

    with ThreadPoolExecutor(2) as pool:
        # Both have proved it by the time at which one is taken.
        proves = [pool.submit(case.prove, "a") for _ in range(2)]
        while not all(each.done() for each in proves):
            assert list(case.callers.take(names)) == []
        calls = [pool.submit(heard, each.result()) for each in proves]
        while names:
            for found in case.callers.take(names):
                names.remove(found.name)
                case.owned.callback(found.stream.close)
                found.stream.sendall(b"word")
        case.look_until_somebody_is_sent_away()
        assert case.callers.last.endswith("was 'a', which is not awaited")
        assert sorted(each.result() for each in calls) == [b"", b"word"]
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(case.prove, "a")
        case.callers.last = ""
        case.look_until_somebody_is_sent_away()
        assert case.callers.last.endswith("was 'a', which is not awaited")
        assert isinstance(late.exception(), Stranger)
