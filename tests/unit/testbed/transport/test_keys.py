"""Keys of connections: nobody but the run's own is let in, and each speaks as itself alone."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest
import torch
import zmq
from talking import HOST, LIMIT_S, Reports, free_port, soon

from testbed.config_error import ConfigError
from testbed.run.zygote import Address, Told
from testbed.transport import keys as keys_module
from testbed.transport import sockets, wire
from testbed.transport.keys import Keys, RunKeys, asked, told
from testbed.transport.sockets import ClientTransport, ServerTransport, Timeout
from testbed.transport.wire import Header, encode_header, encode_tensors

TENSORS = {"weight": torch.arange(6, dtype=torch.float32)}
NAMES = ("client-1", "client-2")
RUN = RunKeys(NAMES, among_clients=True)
OTHER_RUN = RunKeys(NAMES)


@contextlib.asynccontextmanager
async def serving(port: int, since_ns: int = 0) -> AsyncIterator[tuple[ServerTransport, Reports]]:
    """A server of RUN."""
    reports = Reports()
    keys = RUN.of("server")
    server = ServerTransport(HOST, port, NAMES, reports, keys=keys, since_ns=since_ns)
    watching = asyncio.create_task(server.watch_connections())
    try:
        yield server, reports
    finally:
        watching.cancel()
        server.close()


@contextlib.contextmanager
def calling(port: int, name: str, keys: Keys | None) -> Iterator[tuple[ClientTransport, Reports]]:
    reports = Reports()
    client = ClientTransport(name, HOST, port, reports, keys=keys)
    try:
        yield client, reports
    finally:
        # What was never let in would be waited for.
        for sock in client._sockets.values():
            sock.setsockopt(zmq.LINGER, 0)
        client.close()


def changed(name: str, **values: Any) -> Keys:
    return msgspec.structs.replace(RUN.of(name), **values)


def as_another() -> Keys:
    """Of client-2, that has learnt the word of client-1."""
    return changed("client-2", called=RUN.of("client-1").called)


def with_a_made_up_word() -> Keys:
    mark = RUN.of("client-2").called["server"]
    return changed("client-2", called={"server": mark._replace(word="client-1")})


def with_anothers_public_key() -> Keys:
    """A thief's, who knows all of client-1 but its secret."""
    one = RUN.of("client-1")
    return changed("client-2", public=one.public, called=one.called)


def of_an_earlier_run() -> Keys:
    """Expired: it knows the server's key of now."""
    keys = OTHER_RUN.of("client-1")
    return msgspec.structs.replace(keys, called=RUN.of("client-1").called)


REASON = "it proved no key of this run"
NOT_LET_IN = {
    "no key": lambda: None,
    "keys of an earlier run": of_an_earlier_run,
    "another server's key": lambda: OTHER_RUN.of("client-1"),
    "another's public key": with_anothers_public_key,
}


@pytest.mark.parametrize("who", NOT_LET_IN)
def test_a_stranger_is_not_let_in_and_counted(who: str) -> None:
    keys = NOT_LET_IN[who]

    async def run() -> None:
        port = free_port()
        async with serving(port) as (server, reports):
            with calling(port, "client-1", RUN.of("client-1")) as (honest, _):
                honest.send("hello", 0, {}, {})
                assert (await soon(server.receive())).sender == "client-1"
                with calling(port, "client-1", keys()) as (stranger, heard):
                    stranger.send("update", 1, TENSORS, {})
                    refused = await reports.next("dropped")
                    # The honest one is still the one that is spoken to.
                    await server.send("client-1", "model", 1, encode_tensors(TENSORS), {})
                    got = await asyncio.to_thread(honest.receive, LIMIT_S)
                    assert torch.equal(got.tensors["weight"], TENSORS["weight"])
                    with pytest.raises(Timeout):
                        stranger.receive(0.05)
                    assert heard.all("message") == []
                honest.send("update", 2, {}, {})
                assert (await soon(server.receive())).round == 2
        assert (refused["peer"], refused["bytes"], refused["reason"]) == ("stranger", 0, REASON)
        assert {each["reason"] for each in reports.all("dropped")} == {REASON}
        assert [each["round"] for each in reports.all("message")] == [0, 2]

    asyncio.run(run())


@pytest.mark.parametrize("keys", [as_another, with_a_made_up_word])
def test_a_client_that_claims_anothers_name_is_not_believed(keys: Any) -> None:
    async def run() -> None:
        port = free_port()
        async with serving(port) as (server, reports):
            receiving = asyncio.create_task(server.receive())
            with calling(port, "client-1", keys()) as (thief, _):
                thief.send("update", 1, TENSORS, {})
                dropped = await reports.next("dropped")
            assert (dropped["peer"], dropped["reason"]) == ("client-2", "stranger")
            assert not receiving.done()
            receiving.cancel()

    asyncio.run(run())


def test_nobody_takes_over_what_is_for_another() -> None:
    """By no word that a client of the run knows, its own for another's listener included."""

    async def run() -> None:
        port = free_port()
        async with serving(port) as (server, reports):
            with calling(port, "client-1", RUN.of("client-1")) as (honest, _):
                honest.send("hello", 0, {}, {})
                await soon(server.receive())
                theirs = RUN.of("client-2")
                for word in ("client-1", theirs.callers["client-1"].word):
                    mark = theirs.called["server"]._replace(word=word)
                    keys = changed("client-2", called={"server": mark})
                    with calling(port, "client-1", keys) as (thief, _):
                        thief.send("hello", 0, {}, {})
                        receiving = asyncio.create_task(server.receive())
                        await reports.next("dropped")
                        await server.send("client-1", "model", 1, ([], []), {})
                        assert (await asyncio.to_thread(honest.receive, LIMIT_S)).kind == "model"
                        receiving.cancel()

    asyncio.run(run())


def test_a_client_that_comes_back_under_its_key_is_answered() -> None:
    async def run() -> None:
        port = free_port()
        async with serving(port) as (server, _):
            for _again in range(2):
                with calling(port, "client-1", RUN.of("client-1")) as (client, _):
                    client.send("hello", 0, {}, {})
                    assert (await soon(server.receive())).sender == "client-1"
                    await server.send("client-1", "welcome", 0, ([], []), {})
                    got = await asyncio.to_thread(client.receive, LIMIT_S)
                    assert got.kind == "welcome"

    asyncio.run(run())


class Between:
    """A man in the middle: passes streams on between one caller and ``port``, and keeps them."""

    def __init__(self, port: int, harm: int | None = None, up: bool = True) -> None:
        """``harm``: which byte of what the client sends is changed; None: none.

        ``up``: False, and it is of what the server sends.
        """
        self._to, self.harm, self._up = port, harm, up
        self.harmed = threading.Event()
        self.sent = bytearray()
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                one, _ = self._listener.accept()
                other = socket.create_connection((HOST, self._to))
                self._sockets += [one, other]
                for source, sink, up in ((one, other, True), (other, one, False)):
                    threading.Thread(
                        target=self._pass, args=(source, sink, up), daemon=True
                    ).start()

    def _pass(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        seen = 0
        with contextlib.suppress(OSError):
            while data := bytearray(source.recv(1 << 16)):
                at = self.harm if up == self._up else None
                if at is not None and seen <= at < seen + len(data):
                    data[at - seen] ^= 1
                    self.harm = None
                    self.harmed.set()
                seen += len(data)
                if up:
                    self.sent += data
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


def test_a_man_in_the_middle_reads_nothing_and_a_replay_is_refused() -> None:
    marks = {"weight": torch.full((64,), 0x5A, dtype=torch.uint8)}

    async def run() -> None:
        port = free_port()
        async with serving(port) as (server, reports):
            between = Between(port)
            with calling(between.port, "client-1", RUN.of("client-1")) as (client, _):
                client.send("update", 1, marks, {})
                got = await soon(server.receive())
                assert torch.equal(got.tensors["weight"], marks["weight"])
            between.close()
            for clear in (
                b"client-1",
                b"\x5a" * 8,
                RUN.of("client-1").called["server"].word.encode(),
            ):
                assert clear not in between.sent
            # All that it has heard, said once more.
            receiving = asyncio.create_task(server.receive())
            with socket.create_connection((HOST, port), LIMIT_S) as again:
                again.sendall(between.sent)
                dropped = await reports.next("dropped")
            assert (dropped["peer"], dropped["bytes"]) == ("stranger", 0)
            assert not receiving.done() and len(reports.all("message")) == 1
            receiving.cancel()

    asyncio.run(run())


def test_a_changed_byte_ends_the_connection_and_not_the_talk() -> None:
    """The client comes back, and nothing that was changed is taken for its."""

    async def run() -> None:
        port = free_port()
        async with serving(port) as (server, reports):
            # Beyond the handshake, of some 700 bytes.
            between = Between(port, harm=3000)
            with calling(between.port, "client-1", RUN.of("client-1")) as (client, _):
                receiving = asyncio.create_task(server.receive())
                client.send("update", 1, {"weight": torch.zeros(4096)}, {})
                await reports.next("connection")
                while len(between.sent) < 4000:
                    await asyncio.sleep(0.01)
                between.harm = None
                # What is sent before the end is noticed is lost with the connection.
                while not receiving.done():
                    client.send("update", 2, TENSORS, {})
                    await asyncio.wait([receiving], timeout=0.1)
                assert receiving.result().round == 2
            between.close()
        assert {each["round"] for each in reports.all("message")} == {2}

    asyncio.run(run())


@pytest.mark.parametrize("busy", [False, True], ids=["while it waits", "while it computes"])
@pytest.mark.parametrize("harm", [3000, 130], ids=["amid a message", "amid the handshake"])
def test_a_changed_byte_that_comes_down_does_not_silence_the_client(harm: int, busy: bool) -> None:
    """libzmq itself calls no more after that, and sending would block."""

    async def run() -> None:
        port = free_port()
        async with serving(port) as (server, _):
            between = Between(port, harm, up=False)
            with calling(between.port, "client-1", RUN.of("client-1")) as (client, _):
                client.send("hello", 0, {}, {})
                if harm == 3000:
                    await soon(server.receive())
                    large = sockets.encode_tensors({"weight": torch.zeros(4096)})
                    await server.send("client-1", "model", 1, large, {})
                assert await asyncio.to_thread(between.harmed.wait, LIMIT_S)

                def talk() -> wire.Message:
                    if busy:
                        # It learns of it no earlier than when it sends.
                        while client._sockets["server"].getsockopt(zmq.EVENTS) & zmq.POLLOUT:
                            time.sleep(0.01)
                        client.send("update", 1, TENSORS, {})
                    return client.receive(LIMIT_S)

                talking = asyncio.create_task(asyncio.to_thread(talk))
                receiving = asyncio.create_task(server.receive())
                # Whoever has called again can be sent to, and says so where it has something.
                while not talking.done():
                    with contextlib.suppress(sockets.Unreachable):
                        await server.send("client-1", "welcome", 2, ([], []), {})
                    await asyncio.wait([talking], timeout=0.1)
                assert talking.result().kind == "welcome"
                receiving.cancel()
            between.close()

    asyncio.run(run())


@pytest.mark.parametrize("secure", [False, True], ids=["in the clear", "of another run"])
def test_a_false_server_hears_nothing(secure: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    # A connection may have gone again before anything could be asked of it.
    monkeypatch.setattr(sockets, "_on_connection", lambda event, *_: seen.append(event["event"]))
    port = free_port()
    reports = Reports()
    keys = OTHER_RUN.of("server") if secure else None

    async def run() -> None:
        false = ServerTransport(HOST, port, NAMES, reports, keys=keys)
        watching = asyncio.create_task(false.watch_connections())
        receiving = asyncio.create_task(false.receive())
        with calling(port, "client-1", RUN.of("client-1")) as (client, heard):
            client.send("update", 1, TENSORS, {})
            while zmq.EVENT_ACCEPTED not in seen:
                with pytest.raises(Timeout):
                    await asyncio.to_thread(client.receive, 0.3)
            with pytest.raises(Timeout):
                await asyncio.to_thread(client.receive, 0.3)
            assert not receiving.done()
            assert heard.all("message") == reports.all("message") == []
        for task in (watching, receiving):
            task.cancel()
        false.close()

    asyncio.run(run())


# Neighbours


def test_neighbours_prove_who_they_are() -> None:
    port, own = free_port(), free_port()
    heard = Reports()
    client = ClientTransport("client-1", HOST, port, heard, keys=RUN.of("client-1"))
    client.listen(HOST, own, {"client-2": (HOST, 1)})
    addresses = {"client-1": (HOST, own)}
    transports = [client]
    try:
        for name, keys in (("client-2", None), ("client-2", RUN.of("client-2"))):
            other = ClientTransport(name, HOST, port, Reports(), keys=keys)
            transports.append(other)
            other._neighbours = addresses
            other.send("model", 1, TENSORS, {}, to="client-1")
        assert client.receive(LIMIT_S).sender == "client-2"
        while not heard.all("dropped"):
            with contextlib.suppress(Timeout):
                client.receive(0.05)
        assert heard.all("dropped")[0]["reason"] == REASON
        assert len(heard.all("message")) == 1
    finally:
        for transport in transports:
            for sock in transport._sockets.values():
                sock.setsockopt(zmq.LINGER, 0)
            transport.close()


# Times


@pytest.mark.parametrize(
    ("sent_s", "reason"),
    [
        (1e9, "sent after it arrived, it says"),
        (2**62 / 1e9, "sent after it arrived, it says"),
        (-100, "sent before the run began, it says"),
        (-(2**62) / 1e9, "sent before the run began, it says"),
    ],
)
def test_a_message_from_no_time_of_the_run_is_dropped(
    sent_s: float, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from testbed import clock

    now_ns = clock.monotonic_ns()

    async def run() -> None:
        port = free_port()
        async with serving(port, since_ns=now_ns) as (server, reports):
            with calling(port, "client-1", RUN.of("client-1")) as (client, _):
                sock = client._sockets["server"]
                for at_ns in (now_ns + round(1e9 * sent_s), now_ns):
                    sock.send(encode_header(Header("update", 1, at_ns)))
                await soon(server.receive())
            (dropped,) = reports.all("dropped")
            assert (dropped["peer"], dropped["reason"]) == ("client-1", reason)
            assert len(reports.all("message")) == 1

    asyncio.run(run())


# Keys


def test_each_node_has_its_own_keys_and_no_more() -> None:
    star = RunKeys(NAMES)
    server, one, two = (star.of(name) for name in ("server", *NAMES))
    assert len({server.secret, one.secret, two.secret}) == 3
    assert server.callers.keys() == set(NAMES) and server.called == {}
    assert one.called.keys() == {"server"} and one.callers == {}
    assert one.called["server"].word == server.callers["client-1"].word
    words = {keys.called["server"].word for keys in (one, two)}
    assert len(words) == 2
    among = [RUN.of(name) for name in NAMES]
    assert among[0].called["client-2"].word == among[1].callers["client-1"].word
    everywhere = {mark.word for keys in among for mark in keys.called.values()}
    assert len(everywhere) == 4


def test_keys_cross_the_channel_and_show_themselves_to_nobody() -> None:
    keys = RUN.of("client-1")
    line = msgspec.json.encode(Address("10.0.0.1", 5555, 7, keys))
    there = msgspec.json.decode(line, type=Told)
    assert isinstance(there, Address) and there.keys == keys
    assert keys.secret not in repr(there) and keys.called["server"].word not in repr(there)


def test_what_cannot_be_secure_is_refused_or_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [asked(each, "zmq") for each in (None, True, False)] == [True, True, False]
    assert [asked(each, "gloo") for each in (None, False)] == [None, False]
    with pytest.raises(ConfigError, match=r"^secure = true: gloo's connections"):
        asked(True, "gloo")
    assert [told(each) for each in (True, None, False)] == [
        "curve",
        "curve, but for the all-reduce",
        None,
    ]
    monkeypatch.setattr(keys_module.zmq, "has", lambda name: False)
    for each in (None, True):
        with pytest.raises(ConfigError, match=r"without CURVE.*--no-secure"):
            asked(each, "zmq")
    assert asked(False, "zmq") is False


def test_keys_of_one_seed_are_the_same_on_every_host() -> None:
    names = ["client-1", "client-2"]
    one, same, other = (RunKeys(names, seed=each * 32) for each in (b"1", b"1", b"2"))
    assert one.of("client-1") == same.of("client-1")
    assert one.of("client-1").secret not in (other.of("client-1").secret, one.of("server").secret)
    # What one host makes for the client another makes for the server to know it by.
    assert same.of("server").callers["client-2"].public == one.of("client-2").public
    assert RunKeys(names).of("client-1") != RunKeys(names).of("client-1")
