"""Lines between a driver and an agent: what is said arrives, and what was changed ends them."""

import contextlib
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest

from testbed.links.tunnel.callers import Callers
from testbed.links.tunnel.proof import Stranger
from testbed.links.tunnel.seal import HEAD_BYTES, TAG_BYTES
from testbed.record import events
from testbed.run.config import RunConfig
from testbed.run.hosts import line as lines
from testbed.run.hosts.line import Line, LineClosed
from testbed.run.hosts.messages import Answer, Ask, Check, Give, Order, Said, Tell

TOKEN, OTHER = b"t" * 32, b"o" * 32
KEY = b"k" * 32


@pytest.fixture
def owned() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def pair(owned: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    listener = owned.enter_context(socket.create_server(("127.0.0.1", 0)))
    one = owned.enter_context(socket.create_connection(listener.getsockname()))
    return one, owned.enter_context(listener.accept()[0])


def joined(owned: contextlib.ExitStack) -> tuple[Line, Line]:
    one, other = pair(owned)
    return Line(one, KEY, Answer, calls=True), Line(other, KEY, Order, calls=False)


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


CHANGES = ["body", "digest", "cut", "longer", "again", "back", "left out", "swapped", "earlier"]


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_on_its_way_ends_the_line(owned: contextlib.ExitStack, change: str):
    """By whoever sits between the two, who has no key."""
    near, between = pair(owned)
    driver = Line(near, KEY, Answer, calls=True)
    far, forwards = pair(owned)
    agent = Line(far, KEY, Order, calls=False)
    driver.send(Ask(1.0))
    data = between.recv(1 << 16)
    if change == "body":
        forwards.sendall(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
    elif change == "digest":
        forwards.sendall(data[:4] + bytes([data[4] ^ 1]) + data[5:])
    elif change == "cut":
        forwards.sendall(struct.pack("!I", len(data) - 37) + data[4:-1])
    elif change == "longer":
        forwards.sendall(struct.pack("!I", len(data) - 35) + data[4:] + b" ")
    elif change == "swapped":
        driver.send(Ask(2.0))
        forwards.sendall(between.recv(1 << 16) + data)
    elif change == "earlier":
        # Of an earlier connection, whose key was another; a line's first message like this one.
        again, heard = pair(owned)
        Line(again, OTHER, Answer, calls=True).send(Ask(1.0))
        forwards.sendall(heard.recv(1 << 16))
    elif change == "again":
        forwards.sendall(data + data)
        assert agent.receive(Ask, 5).asked == 1.0
    elif change == "back":
        between.sendall(data)
    else:
        driver.send(Ask(2.0))
        forwards.sendall(between.recv(1 << 16))
    ear = driver if change == "back" else agent
    with pytest.raises(LineClosed, match="what came is not what was sealed there"):
        ear.receive(Ask, 5)


def test_who_listens_reads_nothing_and_not_that_two_messages_are_one(owned: contextlib.ExitStack):
    driver, agent = pair(owned), pair(owned)
    said, known = [], Give(1, b"a state of client-1" * 100)
    for (near, between), kind, calls in ((driver, Answer, True), (agent, Order, False)):
        line = Line(near, KEY, kind, calls=calls)
        for _ in range(2):
            line.send(known)
            said.append(between.recv(1 << 16)[HEAD_BYTES:-TAG_BYTES])
    plain = msgspec.json.encode(known)
    assert {len(each) for each in said} == {len(plain)}
    assert len(set(said)) == 4 and not any(b"node" in each or b"state" in each for each in said)
    # What two messages are combined with has nothing in common, in either direction.
    streams = [bytes(a ^ b for a, b in zip(each, plain, strict=True)) for each in said]
    assert len({stream[at : at + 8] for stream in streams for at in range(0, 2000, 8)}) == 4 * 250


def test_a_length_beyond_all_messages_is_not_waited_for(owned: contextlib.ExitStack):
    near, far = pair(owned)
    line = Line(near, KEY, Answer, calls=True)
    far.sendall(struct.pack("!I", lines.MOST_BYTES + 1) + bytes(32))
    with pytest.raises(LineClosed, match=f"a message of {lines.MOST_BYTES + 1} bytes"):
        line.receive(Tell, 5)


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


def test_secrets_of_a_run_are_of_its_token_its_chance_and_their_use():
    one = lines.secret(TOKEN, "keys", b"1" * 32)
    assert one == lines.secret(TOKEN, "keys", b"1" * 32) and len(one) == 32
    others = [(TOKEN, "tunnel", b"1"), (TOKEN, "keys", b"2"), (OTHER, "keys", b"1")]
    assert one not in [lines.secret(token, what, each * 32) for token, what, each in others]
