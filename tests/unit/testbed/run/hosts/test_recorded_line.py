"""A line that somebody has recorded: the token, learnt later, opens none of it."""

import contextlib
import select
import socket
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from agreed import agreed

from testbed.links.tunnel import certificate, proof
from testbed.links.tunnel.callers import Callers
from testbed.links.tunnel.streams import Broken, Sealed
from testbed.run.hosts import line as lines
from testbed.run.hosts.line import Line
from testbed.run.hosts.messages import Answer, Ask, Order, Tell

TOKEN = b"t" * 32
LIMIT_S = 20.0
NAMES = [b"driver", b"agent"]


class Recorded(NamedTuple):
    """All that has passed, parted as the program has it."""

    parts: list[bytes]
    """Greeting, the agent's random number, the driver's, and both names."""
    to_driver: bytes
    """After the proof."""
    to_agent: bytes
    certificates: list[bytes]
    """Of the ends, which nobody else ever has."""


@pytest.fixture
def owned() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def recorded(owned: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """A driver and an agent say a message each, over somebody who passes all on."""
    made, certificates = certificate.made, []

    def make(secret: bytes) -> certificate.Certificate:
        certificates.append(made(secret).pem)
        return made(secret)

    monkeypatch.setattr(certificate, "made", make)
    listener, between = (
        owned.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)
    )
    callers = Callers(listener, lines.GREETING, TOKEN, lines.CALLED)
    owned.callback(callers.close)
    said: dict[str, bytes] = {"to driver": b"", "to agent": b""}

    def pass_on() -> None:
        driver, _ = between.accept()
        with driver, socket.create_connection(listener.getsockname()) as agent:
            ways = {driver: (agent, "to agent"), agent: (driver, "to driver")}
            while True:
                for end in select.select(list(ways), [], [], LIMIT_S)[0]:
                    if not (data := end.recv(1 << 16)):
                        return
                    other, way = ways[end]
                    said[way] += data
                    other.sendall(data)

    def answer() -> None:
        until = time.monotonic() + LIMIT_S
        while time.monotonic() < until and not agents:
            agents.extend(lines.answer(each, Order) for each in callers.take({lines.CALLER}))
            time.sleep(0.01)
        agents[0].send(Tell(1, 2, 3))
        agents[0].receive(Ask, LIMIT_S)

    agents: list[Line] = []
    threads = [threading.Thread(target=each, daemon=True) for each in (pass_on, answer)]
    for each in threads:
        each.start()
    driver = lines.call(between.getsockname(), TOKEN, Answer)
    driver.send(Ask(1.5))
    assert driver.receive(Tell, LIMIT_S) == Tell(1, 2, 3)
    threads[1].join(LIMIT_S)
    driver.close()
    agents[0].close()
    threads[0].join(LIMIT_S)
    monkeypatch.undo()
    return parted(said["to driver"], said["to agent"], certificates)


def parted(to_driver: bytes, to_agent: bytes, certificates: list[bytes]) -> Recorded:
    greeting, rest = to_driver[: len(lines.GREETING)], to_driver[len(lines.GREETING) :]
    numbers, name = [], bytes([len(NAMES[0])]) + NAMES[0]
    assert to_agent.startswith(name)
    sealed = []
    for said in (rest, to_agent[len(name) :]):
        numbers.append(said[: proof.NONCE_BYTES])
        sealed.append(said[proof.NONCE_BYTES + proof.DIGEST_BYTES :])
    return Recorded([greeting, *numbers, *NAMES], *sealed, certificates)


def test_the_token_makes_the_certificate_and_that_opens_nothing(
    owned: contextlib.ExitStack, recorded: Recorded
):
    # He has all that the ends had, but for what they have forgotten.
    secret = proof.digest(TOKEN, b"key", *recorded.parts)
    assert recorded.certificates == [certificate.made(secret).pem] * 2
    for said, serves in ((recorded.to_agent, True), (recorded.to_driver, False)):
        assert b"asked" not in said and b"heard" not in said and len(said) > 500
        near, far = (owned.enter_context(each) for each in socket.socketpair())
        near.setblocking(False)
        stream = Sealed(near, secret, serves=serves)
        far.sendall(said)
        with pytest.raises(Broken, match="it is another, or what passed was changed"):
            stream.agrees()
    # And would be taken for either, if he had called or been called.
    called, calling = agreed(*map(owned.enter_context, socket.socketpair()), secret)
    calling.sendall(b"a word")
    assert called.recv(100) == b"a word"


def test_no_two_lines_of_a_token_have_one_certificate(recorded: Recorded):
    for place in (1, 2):
        parts = list(recorded.parts)
        parts[place] = bytes([parts[place][0] ^ 1]) + parts[place][1:]
        other = certificate.made(proof.digest(TOKEN, b"key", *parts)).pem
        assert other not in recorded.certificates
