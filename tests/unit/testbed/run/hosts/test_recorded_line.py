"""A line that somebody has recorded: the token, learnt later, opens none of it."""

import contextlib
import hmac
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from testbed.links.tunnel import proof
from testbed.links.tunnel.callers import Callers
from testbed.run.hosts import line as lines
from testbed.run.hosts.line import Line
from testbed.run.hosts.messages import Answer, Ask, Order, Tell

TOKEN = b"t" * 32
LIMIT_S = 20.0
PUBLIC_BYTES = DIGEST_BYTES = KEY_BYTES = 32
HEAD_BYTES = 4
NAMES = [b"driver", b"agent"]


class Recorded(NamedTuple):
    """All that has passed, parted as the program has it."""

    parts: list[bytes]
    """Greeting, the agent's public key, the driver's, and both names."""
    frames: list[bytes]
    """The first sealed message each way, the agent's first."""


def framed(*parts: bytes) -> bytes:
    return b"".join(bytes([len(part)]) + part for part in parts)


def hkdf(salt: bytes, secret: bytes, info: bytes) -> bytes:
    """RFC 5869, of one block."""
    return hmac.digest(hmac.digest(salt, secret, "sha256"), info + b"\1", "sha256")


def opened(key: bytes, frames: list[bytes]) -> list[bytes]:
    """What a key opens of them, whatever direction and place it is tried for."""
    found = []
    for frame in frames:
        for direction in (0, 1):
            for number in range(3):
                nonce = struct.pack("!LQ", direction, number)
                with contextlib.suppress(InvalidTag):
                    body = frame[HEAD_BYTES:]
                    found.append(ChaCha20Poly1305(key).decrypt(nonce, body, None))
    return found


def parted(to_driver: bytes, to_agent: bytes) -> Recorded:
    greeting, rest = to_driver[: len(lines.GREETING)], to_driver[len(lines.GREETING) :]
    agent, rest = rest[:PUBLIC_BYTES], rest[PUBLIC_BYTES + DIGEST_BYTES :]
    name, said = NAMES[0], to_agent[1 + len(NAMES[0]) :]
    assert to_agent.startswith(framed(name))
    driver, said = said[:PUBLIC_BYTES], said[PUBLIC_BYTES + DIGEST_BYTES :]
    for frame in (rest, said):
        assert len(frame) > HEAD_BYTES
    return Recorded([greeting, agent, driver, *NAMES], [rest, said])


@pytest.fixture
def owned() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[X25519PrivateKey]:
    """Private keys of both ends, which nobody else ever has."""
    found: list[X25519PrivateKey] = []

    class Keys:
        @staticmethod
        def generate() -> X25519PrivateKey:
            found.append(X25519PrivateKey.generate())
            return found[-1]

    monkeypatch.setattr(proof, "X25519PrivateKey", Keys)
    return found


@pytest.fixture
def recorded(owned: contextlib.ExitStack, made: list[X25519PrivateKey]) -> Recorded:
    """A driver and an agent say a message each, over somebody who passes all on."""
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
    return parted(said["to driver"], said["to agent"])


def test_token_and_all_that_has_passed_open_nothing(recorded: Recorded):
    """Whatever of it is taken for the secret that is in no message."""
    _, agent, driver, *names = recorded.parts
    information = framed(b"key", *recorded.parts)
    mixed = bytes(a ^ b for a, b in zip(agent, driver, strict=True))
    of_the_token = X25519PrivateKey.from_private_bytes(TOKEN)
    guesses = [b"", bytes(KEY_BYTES), agent, driver, agent + driver, mixed, TOKEN]
    publics = map(X25519PublicKey.from_public_bytes, (agent, driver))
    guesses += map(of_the_token.exchange, publics)
    keys = [hkdf(TOKEN, guess, information) for guess in guesses]
    keys += [hmac.digest(TOKEN, information, "sha256"), TOKEN]
    # And without an exchange at all, of what both have said.
    keys += [hmac.digest(TOKEN, framed(b"key", agent, driver, *names), "sha256")]
    keys += [hmac.digest(key, b"seal", "sha256") for key in keys]
    assert [opened(key, recorded.frames) for key in keys] == [[]] * len(keys)


def test_a_private_key_opens_all_of_it_which_neither_end_keeps(
    recorded: Recorded, made: list[X25519PrivateKey]
):
    """So what does not open it above is short of that alone."""
    lone = [sys.getrefcount(each) for each in [object(), object()]]
    assert [sys.getrefcount(each) for each in made] == lone
    _, agent, driver, *_ = recorded.parts
    publics = [each.public_key().public_bytes_raw() for each in made]
    assert sorted(publics) == sorted([agent, driver])
    information = framed(b"key", *recorded.parts)
    for own, public in zip(made, publics, strict=True):
        other = driver if public == agent else agent
        secret = own.exchange(X25519PublicKey.from_public_bytes(other))
        found = opened(hkdf(TOKEN, secret, information), recorded.frames)
        assert [b"heard" in found[0], b"asked" in found[1], len(found)] == [True, True, 2]
        # Nor does it without the token.
        assert opened(hkdf(b"o" * 32, secret, information), recorded.frames) == []
