"""Lines between a driver and an agent: what is said arrives, and what was changed ends them."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
from agreed import agreed, pass_on
from agreed import lines as lined

from testbed.links.tunnel import proof
from testbed.links.tunnel.callers import Callers
from testbed.links.tunnel.proof import Stranger
from testbed.links.tunnel.streams import Sealed
from testbed.record import events
from testbed.run.config import RunConfig
from testbed.run.hosts import line as lines
from testbed.run.hosts.line import Line, LineClosed
from testbed.run.hosts.messages import Answer, Ask, Check, Give, Order, Said, Tell

TOKEN, OTHER = b"t" * 32, b"o" * 32
HEAD_BYTES, RECORD_BYTES, TAG_BYTES = 4, 5, 17
"""Before a message; of TLS before what a record has, and after it, with its kind."""


@pytest.fixture
def owned() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def pair(owned: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    listener = owned.enter_context(socket.create_server(("127.0.0.1", 0)))
    one = owned.enter_context(socket.create_connection(listener.getsockname()))
    return one, owned.enter_context(listener.accept()[0])


def joined(owned: contextlib.ExitStack) -> tuple[Line, Line]:
    return lined(*pair(owned), Answer, Order)


def test_both_ends_hear_each_other_in_order(owned: contextlib.ExitStack):
    driver, agent = joined(owned)
    config = RunConfig(clients=3, options={"rank": 4})
    driver.send(Ask(1.5))
    driver.send(Check(config))
    assert agent.receive(Ask, 5).asked == 1.5
    assert agent.receive(Check, 5).config == config
    told = events.Failed(traceback="x" * 1_000_000)
    agent.send(Tell(1, 2, 3))
    agent.send(Said(2, told))
    assert driver.receive(Tell, 5) == Tell(1, 2, 3)
    assert driver.receive(Said, 5) == Said(2, told)
    assert driver.read() == []


def test_an_end_is_told_after_what_came_before_it(owned: contextlib.ExitStack):
    driver, agent = joined(owned)
    agent.send(Tell(1, 2, 3))
    agent.close()
    assert driver.receive(Tell, 5) == Tell(1, 2, 3)
    with pytest.raises(LineClosed, match="it closed the connection"):
        driver.read()


def test_a_silent_host_ends_the_line_after_what_came_before(
    owned: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
):
    driver, agent = joined(owned)
    agent.send(Tell(1, 2, 3))
    assert driver.receive(Tell, 5) and not driver.is_cut
    agent.send(Tell(4, 5, 6))
    monkeypatch.setattr(lines.silence, "lasts", lambda connection: True)
    assert driver.is_cut and driver.receive(Tell, 5) == Tell(4, 5, 6)
    with pytest.raises(LineClosed, match="no word from it for 3 s"):
        driver.receive(Tell, 60)


def test_an_end_is_told_in_the_same_words_by_who_reads_and_who_writes(
    owned: contextlib.ExitStack, until: Callable[..., Any]
) -> None:
    driver, agent = joined(owned)
    driver.send(Tell(1, 2, 3))
    agent.close()  # With something unread, which makes it a reset.

    def told() -> str | None:
        try:
            return driver.send(Tell(1, 2, 3))
        except LineClosed as error:
            return str(error)

    assert until(told, "nobody hears it", 5.0) == "it closed the connection"
    with pytest.raises(LineClosed, match=r"^it closed the connection$"):
        driver.read()


def test_another_message_than_the_one_awaited_is_named(owned: contextlib.ExitStack):
    driver, agent = joined(owned)
    agent.send(Tell(1, 2, 3))
    with pytest.raises(LineClosed, match="it said Tell where Said was to come"):
        driver.receive(Said, 5)
    with pytest.raises(LineClosed, match=r"no answer within 0\.01 s"):
        driver.receive(Said, 0.01)


class Middle:
    """Two ends of a line, and somebody between them who has no key."""

    def __init__(self, owned: contextlib.ExitStack) -> None:
        (near, self.between), (far, self.forwards) = pair(owned), pair(owned)
        self.driver, self.agent = lined(
            near, far, Answer, Order, lambda: pass_on(self.between, self.forwards)
        )

    def said(self, message: msgspec.Struct) -> bytes:
        """By the driver, as he has it: one record."""
        self.driver.send(message)
        return self.between.recv(1 << 16)


CHANGES = ["body", "digest", "cut", "longer", "again", "back", "left out", "swapped", "earlier"]


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_on_its_way_ends_the_line(owned: contextlib.ExitStack, change: str):
    middle = Middle(owned)
    data, forwards = middle.said(Ask(1.0)), middle.forwards
    kind, length = data[:3], int.from_bytes(data[3:RECORD_BYTES], "big")
    body = data[RECORD_BYTES:]
    assert len(body) == length
    if change == "body":
        forwards.sendall(data[:8] + bytes([data[8] ^ 1]) + data[9:])
    elif change == "digest":
        forwards.sendall(data[:-1] + bytes([data[-1] ^ 1]))
    elif change == "cut":
        forwards.sendall(kind + struct.pack("!H", length - 1) + body[:-1])
    elif change == "longer":
        forwards.sendall(kind + struct.pack("!H", length + 1) + body + b" ")
    elif change == "swapped":
        forwards.sendall(middle.said(Ask(2.0)) + data)
    elif change == "earlier":
        # Of an earlier connection; a line's first message like this one.
        forwards.sendall(Middle(owned).said(Ask(1.0)))
    elif change == "again":
        forwards.sendall(data + data)
        assert middle.agent.receive(Ask, 5).asked == 1.0
    elif change == "back":
        middle.between.sendall(data)
    else:
        forwards.sendall(middle.said(Ask(2.0)))
    ear = middle.driver if change == "back" else middle.agent
    with pytest.raises(LineClosed, match="what came is not what was sealed there"):
        ear.receive(Ask, 5)


def test_who_listens_reads_nothing_and_not_that_two_messages_are_one(owned: contextlib.ExitStack):
    middle, known = Middle(owned), Give(1, b"a state of client-1" * 100)
    said = []
    for line, end in ((middle.driver, middle.between), (middle.agent, middle.forwards)):
        for _ in range(2):
            line.send(known)
            said.append(end.recv(1 << 16)[RECORD_BYTES:-TAG_BYTES])
    plain = msgspec.json.encode(known)
    plain = len(plain).to_bytes(HEAD_BYTES, "big") + plain
    assert {len(each) for each in said} == {len(plain)}
    assert len(set(said)) == 4 and not any(b"node" in each or b"state" in each for each in said)
    # What two messages are combined with has nothing in common, in either direction.
    streams = [bytes(a ^ b for a, b in zip(each, plain, strict=True)) for each in said]
    assert len({stream[at : at + 8] for stream in streams for at in range(0, 2000, 8)}) == 4 * 250


def test_a_length_beyond_all_messages_is_not_waited_for(owned: contextlib.ExitStack):
    far, near = agreed(*pair(owned))
    line = Line(near, Answer)
    far.sendall(struct.pack("!I", lines.MOST_BYTES + 1) + bytes(32))
    with pytest.raises(LineClosed, match=f"it sent a message of {lines.MOST_BYTES + 1} bytes"):
        line.receive(Tell, 5)


def test_what_came_with_the_last_of_agreeing_is_heard(owned: contextlib.ExitStack):
    """The connection itself has nothing more then."""
    called, calling = pair(owned)
    ends = Sealed(called, TOKEN, serves=True), Sealed(calling, TOKEN, serves=False)
    for each in ends:
        each.settimeout(0)
    while not ends[1].agrees():
        assert not ends[0].agrees()
    Line(ends[1], Answer).send(Ask(1.0))
    assert ends[0].agrees()
    assert Line(ends[0], Order).receive(Ask, 5) == Ask(1.0)


def test_who_hears_nothing_is_not_waited_for_by_who_speaks(
    owned: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lines, "SEND_LIMIT_S", 1)
    driver, _ = joined(owned)
    large = Give(1, bytes(1 << 20))
    with ThreadPoolExecutor(1) as pool:
        said = pool.submit(lambda: [driver.send(large) for _ in range(100)])
        error = said.exception(30.0)
    assert isinstance(error, LineClosed)


def test_nobody_waits_to_read_while_a_record_is_on_its_way(owned: contextlib.ExitStack):
    middle = Middle(owned)
    data = middle.said(Ask(1.0))
    for place in range(len(data)):
        assert middle.agent.read() == []
        middle.forwards.sendall(data[place : place + 1])
    assert middle.agent.receive(Ask, 5) == Ask(1.0)


def test_what_is_signed_and_no_message_ends_the_line(owned: contextlib.ExitStack):
    driver, agent = joined(owned)
    agent.send(Ask(1.0))
    with pytest.raises(LineClosed, match="it sent what cannot be read"):
        driver.receive(Tell, 5)


class Listener:
    """An agent's, which answers one driver."""

    def __init__(self, owned: contextlib.ExitStack) -> None:
        listener = owned.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.address = listener.getsockname()
        self.callers = Callers(listener, lines.GREETING, TOKEN, lines.CALLED)
        owned.callback(self.callers.close)

    def answer(self) -> Line | None:
        until = time.monotonic() + 5
        while time.monotonic() < until and not self.callers.last:
            for called in self.callers.take({lines.CALLER}):
                return lines.answer(called, Order)
            time.sleep(0.01)
        return None


def test_an_agent_lets_in_who_has_its_token_alone(owned: contextlib.ExitStack):
    listener = Listener(owned)
    with ThreadPoolExecutor(1) as pool:
        answered = pool.submit(listener.answer)
        driver = lines.call(listener.address, TOKEN, Answer)
        driver.send(Ask(1.0))
        agent = answered.result()
        assert agent is not None
        owned.callback(agent.close)
        assert agent.receive(Ask, 5) == Ask(1.0)
        driver.close()
        answered = pool.submit(listener.answer)
        with pytest.raises(Stranger, match="is its token another"):
            lines.call(listener.address, OTHER, Answer)
        assert answered.result() is None and "did not know the token" in listener.callers.last


def test_an_agent_that_proves_itself_and_does_not_agree_is_not_waited_for(
    owned: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lines, "CALL_LIMIT_S", 0.5)
    listener = owned.enter_context(socket.create_server(("127.0.0.1", 0)))
    said, ended = [b"", b"not a word of TLS"], threading.Event()

    def prove() -> None:
        for words in said:
            connection = owned.enter_context(listener.accept()[0])
            ours = proof.greet(connection, lines.GREETING)
            heard = b""
            while missing := proof.missing(heard):
                heard += connection.recv(missing)
            told = lines.GREETING, ours, heard, {lines.CALLER}, lines.CALLED
            connection.sendall(proof.judged(TOKEN, *told)[2] + words)
        ended.wait(30.0)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(prove)
        with pytest.raises(TimeoutError):
            lines.call(listener.getsockname(), TOKEN, Answer)
        with pytest.raises(Stranger, match="it is another, or what passed was changed"):
            lines.call(listener.getsockname(), TOKEN, Answer)
        ended.set()


def test_secrets_of_a_run_are_of_its_token_its_chance_and_their_use():
    one = lines.secret(TOKEN, "keys", b"1" * 32)
    assert one == lines.secret(TOKEN, "keys", b"1" * 32) and len(one) == 32
    others = [(TOKEN, "tunnel", b"1"), (TOKEN, "keys", b"2"), (OTHER, "keys", b"1")]
    assert one not in [lines.secret(token, what, each * 32) for token, what, each in others]
