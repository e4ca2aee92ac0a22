"""The method contract without a server's help: neighbours exchange weights over real sockets."""

import asyncio
import socket
import threading
import time

import pytest
import torch
from made_events import Reported

from methods import Fleet as MethodFleet
from methods import Missed
from methods import Peer as MethodPeer
from nodes.fleet import Fleet
from nodes.peer import Overtaken, Peer, Stopped
from testbed.transport.sockets import ClientTransport, ServerTransport

HOST = "127.0.0.1"
NAMES = ["client-1", "client-2", "client-3"]
LIMIT_S = 20.0
LIKE = {"w": torch.zeros(2)}


class GossipServer:
    """Says when a round begins, and that is all."""

    def __init__(self) -> None:
        self.done: list[set[str]] = []
        """Of each round, who has taken part in it to its end."""

    async def round(self, fleet: MethodFleet) -> None:
        await fleet.broadcast("go", {})
        self.done.append({message.sender async for message in fleet.gather("done")})


class GossipClient:
    """w becomes the mean of its own and the next one's on the ring: D-PSGD's averaging step."""

    def __init__(self, number: int) -> None:
        self.name = NAMES[number]
        self.next = NAMES[(number + 1) % 3]
        self.previous = NAMES[(number + 2) % 3]
        self.weights = torch.tensor([float(number), 10.0])
        self.missed = 0

    def round(self, peer: MethodPeer) -> None:
        peer.receive("go")
        peer.send("model", {"w": self.weights.clone()}, to=self.previous)
        try:
            theirs = peer.receive("model", like=LIKE, sender=self.next).tensors["w"]
            self.weights = (self.weights + theirs) / 2
        except Missed:
            self.missed += 1
        peer.send("done", {})


class Died(Exception):
    """Stands for the end of a client's process."""


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server((HOST, 0)) for _ in range(count)]
    ports: list[int] = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


class Ring:
    """A server and three clients, each with transports of its own."""

    def __init__(self, round_timeout_s: float = LIMIT_S) -> None:
        """``round_timeout_s``: the server's limit, which begins first, and each client's."""
        self.server = GossipServer()
        self.dies: str | None = None
        """Who is lost in the first round, without a word to its neighbours."""
        self.dead = threading.Event()
        self.port, *ports = free_ports(4)
        self.addresses = {name: (HOST, port) for name, port in zip(NAMES, ports, strict=True)}
        self.clients = [GossipClient(number) for number in range(3)]
        self.events = {name: Reported() for name in NAMES}
        self.round_timeout_s = round_timeout_s

    def take_part(self, client: GossipClient) -> None:
        report = self.events[client.name]
        transport = ClientTransport(client.name, HOST, self.port, report)
        transport.listen(*self.addresses[client.name], self.addresses)
        peer = Peer(transport, report, self.round_timeout_s, between_rounds_s=LIMIT_S)
        try:
            peer.join(LIMIT_S)
            while True:
                peer.await_round()
                try:
                    client.round(peer)
                except Overtaken:
                    continue
        except Stopped:
            transport.close()
        except Died:
            self.dead.set()
            transport.close()

    def run(self, rounds: int) -> None:
        threads = [
            threading.Thread(target=self.take_part, args=(client,), daemon=True)
            for client in self.clients
        ]
        for thread in threads:
            thread.start()
        asyncio.run(self.lead(rounds))
        for thread in threads:
            thread.join(LIMIT_S)
            assert not thread.is_alive()

    async def lead(self, rounds: int) -> None:
        transport = ServerTransport(HOST, self.port, set(NAMES), lambda event: None)
        limit_s = self.round_timeout_s
        fleet = Fleet(
            transport, dict.fromkeys(NAMES, 1), lambda event: None, limit_s, peer_to_peer=True
        )
        pump = asyncio.create_task(fleet.pump())
        await fleet.join(LIMIT_S)
        if self.dies is not None:
            watch = asyncio.create_task(self.tell_of_death(fleet, self.dies))
        for number in range(1, rounds + 1):
            fleet.begin(number)
            await self.server.round(fleet)
        if self.dies is not None:
            await watch
        await fleet.stop()
        pump.cancel()
        transport.close()

    async def tell_of_death(self, fleet: Fleet, name: str) -> None:
        assert await asyncio.to_thread(self.dead.wait, LIMIT_S)
        fleet.lose(name, "killed by SIGKILL")


def test_neighbours_average_as_a_hand_calculation_says() -> None:
    ring = Ring()
    ring.run(rounds=2)
    # (0, 1, 2) -> (0.5, 1.5, 1) -> (1, 1.25, 0.75)
    found = [client.weights.tolist() for client in ring.clients]
    assert found == [[1.0, 10.0], [1.25, 10.0], [0.75, 10.0]]
    for name, sender in zip(NAMES, NAMES[1:] + NAMES[:1], strict=True):
        heard = [e for e in ring.events[name] if e["event"] == "message" and e["kind"] == "model"]
        assert [(e["peer"], e["round"], e["payload_bytes"]) for e in heard] == [
            (sender, 1, 8), (sender, 2, 8),
        ]  # fmt: skip


def test_a_silent_neighbour_costs_its_part_and_is_recorded() -> None:
    ring = Ring(round_timeout_s=1)
    mute = ring.clients[1]
    mute.round = lambda peer: (peer.receive("go"), peer.send("done", {}))  # type: ignore
    ring.run(rounds=1)
    first, _, third = ring.clients
    assert first.missed == 1 and torch.equal(first.weights, torch.tensor([0.0, 10.0]))
    assert third.missed == 0 and torch.equal(third.weights, torch.tensor([1.0, 10.0]))
    (missed,) = [e for e in ring.events["client-1"] if e["event"] == "missed"]
    assert (missed["peer"], missed["round"]) == ("client-2", 1)
    assert missed["reason"] == "nothing within 0.8 s of the round's beginning"
    # Who waited in vain has had the time to tell the server.
    assert ring.server.done == [set(NAMES)]


def test_a_dead_neighbour_is_not_waited_for() -> None:
    ring = Ring()

    def die(peer: MethodPeer) -> None:
        peer.receive("go")
        raise Died

    dead = ring.clients[1]
    dead.round, ring.dies = die, dead.name  # type: ignore[method-assign]
    began_s = time.monotonic()
    ring.run(rounds=3)
    assert time.monotonic() - began_s < LIMIT_S / 2
    # The first client waits for it, in the round that it was lost in and in all later ones.
    assert ring.server.done == 3 * [{"client-1", "client-3"}]
    missed = [e for e in ring.events["client-1"] if e["event"] == "missed"]
    assert [(e["peer"], e["round"], e["reason"]) for e in missed] == [
        ("client-2", number, "lost: killed by SIGKILL") for number in (1, 2, 3)
    ]
    # The third sends to it in each round, and calls it no more once it knows.
    told = [e for e in ring.events["client-3"] if e["event"] == "message" and e["kind"] == "absent"]
    assert len(told) == 1


def test_a_stranger_at_a_clients_door_is_dropped() -> None:
    port, own = free_ports(2)
    heard = Reported()
    client = ClientTransport("client-1", HOST, port, heard)
    client.listen(HOST, own, {"client-2": (HOST, 1)})
    stranger = ClientTransport("client-9", HOST, own, lambda event: None)
    friend = ClientTransport("client-2", HOST, own, lambda event: None)
    try:
        stranger.send("model", 1, LIKE, {})
        friend.send("model", 1, LIKE, {})
        assert client.receive(LIMIT_S).sender == "client-2"
        while not [e for e in heard if e["event"] == "dropped"]:
            with pytest.raises(TimeoutError):
                client.receive(0.05)
        (dropped,) = [e for e in heard if e["event"] == "dropped"]
        assert (dropped["peer"], dropped["reason"]) == ("client-9", "stranger")
    finally:
        for transport in (client, stranger, friend):
            transport.close()
