"""Mutated messages at a real server and at a real client: what is honest arrives as it was sent."""

import asyncio
import contextlib
import gc
import os
import random
import socket
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import zmq
from mutations import Frames, corpus, frames_of, mutated_frames, resident_bytes

from testbed.record.drops import Condensed
from testbed.record.events import Dropped, Event
from testbed.transport.sockets import MOST_UNREAD, ClientTransport, ServerTransport
from testbed.transport.wire import Message, encode_tensors

HOST = "127.0.0.1"
LIMIT_S = 120.0
BATCH = 100
MOST_MB = 96
"""What the process may grow by, both ends and the attacker in it."""
PATIENT = [pytest.mark.patient, pytest.mark.timeout(900)]
counts = pytest.mark.parametrize(
    "count",
    [1_000, pytest.param(int(os.environ.get("WIRETUNE_MUTATIONS", 60_000)), marks=PATIENT)],
)


def update(number: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    return {"w": torch.randn(64, 32, generator=generator), "b": torch.randn(7, generator=generator)}


def summed(found: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([each[name] for each in found]).sum(0) for name in found[0]}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Reported(list[Event]):
    def __init__(self) -> None:
        super().__init__()
        self.report = Condensed(self.append)

    def drops(self) -> list[Dropped]:
        return [event for event in self if isinstance(event, Dropped)]


@contextlib.contextmanager
def caller(name: str, port: int, waiting: int = 0) -> Iterator[zmq.Socket[Any]]:
    """A socket as a client of that name has it, to which any frames can be given.

    ``waiting``: messages that it keeps until they are sent; 0: any number.
    """
    context = zmq.Context()
    sock: zmq.Socket[Any] = context.socket(zmq.DEALER)
    sock.setsockopt(zmq.IDENTITY, name.encode())
    sock.setsockopt(zmq.LINGER, 0)
    sock.setsockopt(zmq.SNDHWM, waiting)
    sock.connect(f"tcp://{HOST}:{port}")
    try:
        yield sock
    finally:
        sock.close()
        context.term()


def free_port() -> int:
    with socket.create_server((HOST, 0)) as found:
        return int(found.getsockname()[1])


def attacks(seed: int) -> Iterator[Frames]:
    """Messages that were changed, some as they are and of other rounds, and whole replays."""
    draw, whole = random.Random(seed), corpus()
    honest = [frames_of("update", number, update(number)) for number in range(3)]
    while True:
        some = draw.choice(whole + honest)
        yield some if draw.random() < 0.05 else mutated_frames(draw, some, whole) or [b""]


async def honest_one(server: ServerTransport, batch: int) -> Message:
    """The honest client's next message, once the whole batch of the other's is taken, too."""
    found: list[Message] = []
    done = False
    while not (found and done):
        message = await asyncio.wait_for(server.receive(), LIMIT_S)
        if message.sender == "client-1":
            found.append(message)
        done = done or (message.kind, message.round) == ("batch", batch)
    return found[0]


@pytest.mark.thorough
def test_who_sends_more_than_is_read_is_held_back() -> None:
    many, large = 3 * MOST_UNREAD, bytes(20_000)
    port = free_port()
    server = ServerTransport(HOST, port, {"client-1"}, lambda event: None)
    with contextlib.closing(server), caller("client-1", port, waiting=10) as flood:
        sent = 0
        while sent < many and flood.poll(3_000, zmq.POLLOUT):
            flood.send(large)
            sent += 1
    assert MOST_UNREAD <= sent < many


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="reads its memory from /proc")
@counts
def test_a_server_takes_what_is_honest_as_it_was_sent(count: int) -> None:
    """Among mutated messages of a member that has turned, and of a stranger."""

    async def main() -> None:
        port, reported = free_port(), Reported()
        server = ServerTransport(HOST, port, {"client-1", "client-2"}, reported.report)
        client = ClientTransport("client-1", HOST, port, lambda event: None)
        changed = attacks(1)
        rounds = count // BATCH
        taken, warm = [], 0
        with (
            contextlib.closing(server),
            contextlib.closing(client),
            caller("client-2", port) as turned,
            caller("mallory", port) as stranger,
        ):
            for number in range(rounds):
                for _ in range(BATCH // 2):
                    for sock in (turned, stranger):
                        sock.send_multipart(next(changed))
                turned.send_multipart(frames_of("batch", number, {}))
                client.send("update", number, update(number), {})
                message = await honest_one(server, number)
                assert (message.kind, message.round) == ("update", number)
                taken.append({name: each.clone() for name, each in message.tensors.items()})
                await server.send("client-1", "model", number, encode_tensors(taken[-1]), {})
                answer = await asyncio.to_thread(client.receive, LIMIT_S)
                assert same(dict(answer.tensors), update(number))
                if number == rounds // 3:
                    gc.collect()
                    warm = resident_bytes()
            gc.collect()
            assert resident_bytes() - warm < MOST_MB << 20
        assert same(summed(taken), summed([update(number) for number in range(rounds)]))
        assert {event.peer for event in reported.drops()} >= {"mallory", "client-2"}
        assert len(reported.drops()) < 400 + count // 20, "summed up, not told one by one"

    asyncio.run(main())


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="reads its memory from /proc")
@counts
def test_a_client_of_a_hostile_server_goes_on(count: int) -> None:
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.LINGER, 0)
    router.setsockopt(zmq.SNDHWM, 0)
    port = router.bind_to_random_port(f"tcp://{HOST}")
    reported = Reported()
    client = ClientTransport("client-1", HOST, port, reported.report)
    changed = attacks(2)
    warm = 0
    try:
        client.send("hello", 0, {}, {})
        identity = router.recv_multipart()[0]
        for number in range(count // BATCH):
            for _ in range(BATCH):
                router.send_multipart([identity, *next(changed)])
            router.send_multipart([identity, *frames_of("honest", number, update(number))])
            while (message := client.receive(LIMIT_S)).kind != "honest":
                pass
            assert message.round == number and same(dict(message.tensors), update(number))
            if number == count // BATCH // 3:
                gc.collect()
                warm = resident_bytes()
        gc.collect()
        assert resident_bytes() - warm < MOST_MB << 20
        assert reported.drops()
        assert len(reported.drops()) < 400 + count // 20
    finally:
        client.close()
        router.close()
        context.term()
