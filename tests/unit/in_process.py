"""Rounds of many exchanges in process: the real Fleet and Peers, every client in a thread."""

import asyncio
import contextlib
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from made_events import Reported
from torch import Tensor

from methods import Shard
from methods.payload.coder import Coder
from nodes.compute import Compute, Real
from nodes.fleet import Fleet
from nodes.kinds import HELLO, STOP, WELCOME
from nodes.peer import Overtaken, Peer, Refused, Stopped
from testbed import clock
from testbed.transport.sockets import Encoded, Timeout
from testbed.transport.wire import Header, Message, decode, encode_header, encode_tensors

LIMIT_S = 60.0
"""Nothing waits it out where the code works."""


class Sent(NamedTuple):
    """A message of a method, in the order in which the server sent and received them."""

    way: str
    """up, down, or among clients."""
    client: str
    """The one that is not the server; among clients the receiver."""
    message: Message


class Died(Exception):
    """The client's process was killed."""


@dataclass
class Network:
    """Messages between a server and its clients, and what may impair them."""

    dies_after: Mapping[str, int] = field(default_factory=dict)
    """A client and how many messages it still sends."""
    waits_for: Mapping[str, str] = field(default_factory=dict)
    """A client whose first "smashed" leaves only when another's has arrived."""
    log: list[Sent] = field(default_factory=list)
    events: Reported = field(default_factory=Reported)

    def of(self, way: str, kind: str | None = None) -> list[Message]:
        return [
            sent.message
            for sent in self.log
            if sent.way == way and kind in (None, sent.message.kind)
        ]

    def payload(self) -> dict[str, dict[str, int]]:
        """Bytes by direction and kind."""
        found: dict[str, dict[str, int]] = {"up": {}, "down": {}}
        for way, _, message in self.log:
            found.setdefault(way, {}).setdefault(message.kind, 0)
            found[way][message.kind] += message.payload_bytes
        return found

    def missed(self) -> set[tuple[str, str]]:
        return {(e["peer"], e["reason"]) for e in self.events if e["event"] == "missed"}


def carried(
    sender: str, kind: str, number: int, encoded: Encoded, details: Mapping[str, Any]
) -> Message:
    """A message as it arrives: its tensors are views of buffers that nobody else has."""
    entries, buffers = encoded
    frames = [
        encode_header(Header(kind, number, clock.monotonic_ns(), dict(details), entries)),
        *buffers,
    ]
    header, arrived = decode([memoryview(bytearray(frame)) for frame in frames])
    return Message(sender, header, arrived, 0, sum(len(frame) for frame in frames))


class ServerEnd:
    """In place of a ServerTransport."""

    def __init__(self, network: Network, names: list[str]) -> None:
        self._network = network
        self._arrivals: asyncio.Queue[Message] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self.clients: dict[str, queue.SimpleQueue[Message]] = {
            name: queue.SimpleQueue() for name in names
        }
        self.smashed = {name: threading.Event() for name in names}

    def arrive(self, message: Message) -> None:
        """Called by clients' threads."""

        def take() -> None:
            if message.kind != HELLO:
                self._network.log.append(Sent("up", message.sender, message))
            self._arrivals.put_nowait(message)
            if message.kind == "smashed":
                self.smashed[message.sender].set()

        self._loop.call_soon_threadsafe(take)

    async def receive(self) -> Message:
        return await self._arrivals.get()

    async def hang_up(self, clients: Iterable[str]) -> None:
        """Nobody here has yet to take what could be forgotten."""

    async def send(
        self, peer: str, kind: str, number: int, encoded: Encoded, details: Mapping[str, Any]
    ) -> None:
        await asyncio.sleep(0)
        message = carried("server", kind, number, encoded, details)
        if kind not in (WELCOME, STOP):
            self._network.log.append(Sent("down", peer, message))
        self.clients[peer].put(message)


class ClientEnd:
    """In place of a ClientTransport."""

    def __init__(self, name: str, network: Network, server: ServerEnd) -> None:
        self._name = name
        self._network = network
        self._server = server
        self._left = network.dies_after.get(name)
        self._waits_for = network.waits_for.get(name)

    def send(
        self,
        kind: str,
        number: int,
        tensors: Mapping[str, Tensor],
        details: Mapping[str, Any],
        to: str = "server",
    ) -> None:
        if kind == "smashed" and self._waits_for is not None:
            assert self._server.smashed[self._waits_for].wait(LIMIT_S)
            self._waits_for = None
        if kind != HELLO and self._left is not None:
            if self._left == 0:
                raise Died
            self._left -= 1
        message = carried(self._name, kind, number, encode_tensors(tensors), details)
        if to == "server":
            self._server.arrive(message)
        else:
            self._network.log.append(Sent("among", to, message))
            self._server.clients[to].put(message)

    def hang_up(self, neighbour: str) -> None:
        pass

    def receive(self, timeout_s: float) -> Message:
        try:
            return self._server.clients[self._name].get(timeout=timeout_s)
        except queue.Empty:
            raise Timeout from None


def play(
    server: Any,
    clients: Mapping[str, Any],
    samples: Mapping[str, int],
    rounds: int = 1,
    network: Network | None = None,
    after_round: Callable[[int], None] = lambda number: None,
    compute: Callable[[], Compute] = Real,
    first: int = 1,
    per_round: int | None = None,
    coders: Mapping[str, Coder] = MappingProxyType({}),
) -> Network:
    """Rounds ``first`` to ``rounds`` of a method; an error in a client's thread is raised here.

    ``compute`` makes every node's own. ``coders``: of nodes by name.
    """
    network = network or Network()
    errors: list[BaseException] = []

    async def main(own: Compute) -> None:
        loop = asyncio.get_running_loop()
        end = ServerEnd(network, list(clients))
        report = network.events
        present = {name: samples[name] for name in clients}
        fleet = Fleet(
            end,  # type: ignore[arg-type]
            *(present, report, LIMIT_S),
            per_round=per_round,
            compute=own,
            peer_to_peer=getattr(sys.modules[type(server).__module__], "peer_to_peer", False),
            coder=coders.get("server"),
        )
        pump = asyncio.create_task(fleet.pump())

        def lose(name: str, reason: str) -> None:
            # The loop is closed where the server's own error has ended the test.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(fleet.lose, name, reason)

        def live(name: str) -> None:
            torch.set_num_threads(1)
            transport = ClientEnd(name, network, end)
            computing = compute()
            peer = Peer(
                transport,  # type: ignore[arg-type]
                *(report, LIMIT_S, LIMIT_S, computing),
                name=name,
                coder=coders.get(name),
            )
            try:
                peer.join(LIMIT_S)
                while True:
                    peer.await_round()
                    try:
                        with computing.active():
                            clients[name].round(peer)
                    except (Overtaken, Refused):
                        continue
            except Stopped:
                return
            except Died:
                lose(name, "killed")
            except BaseException as error:
                errors.append(error)
                lose(name, f"failed: {error!r}")

        threads = [threading.Thread(target=live, args=(name,), daemon=True) for name in clients]
        for thread in threads:
            thread.start()
        await fleet.join(LIMIT_S)
        for number in range(first, rounds + 1):
            fleet.begin(number)
            await asyncio.wait_for(server.round(fleet), LIMIT_S)
            after_round(number)
        await fleet.stop()
        pump.cancel()
        for thread in threads:
            await asyncio.to_thread(thread.join, LIMIT_S)

    own = compute()
    with own.active():
        asyncio.run(main(own))
    if errors:
        raise errors[0]
    return network


def shards(counts: Mapping[str, int], shape: tuple[int, ...], classes: int) -> dict[str, Shard]:
    """Random images of each client; some of every label where there are enough."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: Shard(
            torch.rand(count, *shape, generator=generator),
            torch.randint(classes, (count,), generator=generator),
            public=torch.empty(0, *shape),
            client=number,
        )
        for number, (name, count) in enumerate(counts.items(), start=1)
    }
