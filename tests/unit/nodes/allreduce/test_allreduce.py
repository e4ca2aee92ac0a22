"""Rounds by an all-reduce: what a server's mean gives, nothing lost, and nobody waited for in vain.

gloo itself carries the sums, over 127.0.0.1; the rest is in process.
"""

import asyncio
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from copied import copied
from in_process import LIMIT_S, Network, play, shards
from made_events import Reported
from torch import Tensor

from methods import fedavg
from methods.shared.averaging import WeightedMean
from methods.shared.local_training import trainable_state
from nodes.allreduce.client import ReducingClient, flat, mean
from nodes.allreduce.server import ReducingServer
from nodes.compute import Real
from nodes.program import FineTuning
from nodes.workload.models import ModelSpec, VisionTransformer
from testbed.config_error import ConfigError
from testbed.processes.channel import Channel
from testbed.processes.child import Child
from testbed.run.config import RunConfig
from testbed.transport.gloo import Group, ReduceFailed

HOST = "127.0.0.1"
SPEC = ModelSpec(side=4, patch=2, width=16, depth=2, heads=2)
CLASSES = 3
SAMPLES = {"client-1": 12, "client-2": 20, "client-3": 8}
CONFIG = fedavg.Config(batch_size=4, optimizer="sgd", learning_rate=0.05)
"""AdamW's first steps depend on a gradient's sign, and so on its last bit."""


class Rounds:
    """Clients that average by themselves, and the models that they have at the end."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.first = VisionTransformer(SPEC, CLASSES)
        self.parts = shards(SAMPLES, (1, 4, 4), CLASSES)
        self.events = Reported()
        self.methods = {
            name: fedavg.Client(CONFIG, copied(self.first), shard, number)
            for number, (name, shard) in enumerate(self.parts.items())
        }
        self.clients = {name: self.client(name) for name in SAMPLES}
        self.server = ReducingServer(self.conductor(), list(SAMPLES))

    def conductor(self) -> fedavg.Server:
        return fedavg.Server(CONFIG, copied(self.first), self.parts["client-1"], 0)

    def client(self, name: str) -> ReducingClient:
        report = self.events
        own = SAMPLES[name]
        return ReducingClient(self.methods[name], own, HOST, {}, LIMIT_S, Real(), report)

    def play(self, rounds: int = 1, **network: Any) -> Network:
        return play(self.server, self.clients, SAMPLES, rounds, Network(**network))

    def weights(self, name: str) -> Tensor:
        return flattened(trainable_state(self.methods[name].model))


def flattened(state: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in state.values()])


def by_a_server(rounds: int, **network: Any) -> Tensor:
    """The weights that the same clients come to with a server's mean."""
    one = Rounds()
    server = one.conductor()
    play(server, one.methods, SAMPLES, rounds, Network(**network))
    return flattened(trainable_state(server.model))


def test_all_have_the_mean_that_a_server_would_have_taken() -> None:
    rounds = Rounds()
    network = rounds.play(rounds=2)
    expected = by_a_server(rounds=2)
    found = [rounds.weights(name) for name in SAMPLES]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-5)
    assert not torch.allclose(found[0], flattened(trainable_state(rounds.first)), atol=1e-3)
    assert network.missed() == set()


def test_no_weights_pass_the_server() -> None:
    rounds = Rounds()
    payload = rounds.play(rounds=3).payload()
    parameters = len(flattened(trainable_state(rounds.first)))
    kinds = {kind: size for way in payload.values() for kind, size in way.items() if size}
    # Addresses, and those once: members know one another for as long as they are the same.
    assert kinds.keys() == {"address", "addresses"}
    assert sum(kinds.values()) < parameters
    assert rounds.server.model.state_dict().keys() == rounds.first.state_dict().keys()
    kept, first = (trainable_state(model) for model in (rounds.server.model, rounds.first))
    assert torch.equal(flattened(kept), flattened(first))
    reductions = [event for event in rounds.events if event["event"] == "reduced"]
    assert [event["members"] for event in reductions] == 9 * [3]
    assert {event["reason"] for event in reductions} == {None}


def test_one_client_is_asked_for_metrics_of_the_model_that_counts() -> None:
    rounds = Rounds()
    rounds.play()
    own = rounds.clients["client-1"].evaluate(*rounds.parts["client-1"][:2])
    assert 0 <= own["accuracy"] <= 1
    asked = []

    class Asked:
        def conclude(self) -> None:
            asked.append("conclude")

        async def send(self, client: str, kind: str, tensors: Any) -> None:
            asked.append((client, kind))

        async def receive(self, client: str, kind: str) -> Any:
            asked.append((client, kind))
            return SimpleNamespace(details=own)

    told = asyncio.run(rounds.server.ask_metrics(Asked()))
    assert asked == ["conclude", ("client-1", "evaluate"), ("client-1", "metrics")]
    assert told["accuracy"] == own["accuracy"]


@pytest.mark.parametrize("messages", [0, 1, 2], ids=["training", "connecting", "reducing"])
def test_a_client_that_dies_leaves_the_others_their_mean(messages: int) -> None:
    rounds = Rounds()
    network = rounds.play(dies_after={"client-2": messages})
    found = [rounds.weights(name) for name in ("client-1", "client-3")]
    assert torch.equal(*found)
    expected = by_a_server(1, dies_after={"client-2": 0})
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-5)
    assert network.missed() == {("client-2", "killed")}


def test_where_all_but_one_die_it_goes_on_by_itself() -> None:
    rounds = Rounds()
    network = rounds.play(rounds=2, dies_after={"client-1": 0, "client-3": 1})
    assert {name for name, _ in network.missed()} == {"client-1", "client-3"}
    method = Rounds().methods["client-2"]
    for _ in range(2):
        state, _ = method.update(trainable_state(method.model))
    torch.testing.assert_close(rounds.weights("client-2"), flattened(state), rtol=0, atol=1e-5)


def test_who_missed_a_round_gives_nothing_and_gets_the_model() -> None:
    rounds = Rounds()
    late = rounds.methods["client-2"].model
    with torch.no_grad():
        for parameter in late.parameters():
            parameter.fill_(1e6)
    rounds.clients["client-2"]._has = "another"
    network = rounds.play()
    expected = by_a_server(1, dies_after={"client-2": 0})
    for name in SAMPLES:
        torch.testing.assert_close(rounds.weights(name), expected, rtol=0, atol=1e-5)
    ((name, reason),) = network.missed()
    assert name == "client-2" and "missed the model of an earlier round" in reason


def spoil(method: fedavg.Client) -> None:
    """It trains, and what it gives of that is no numbers."""
    trained = method.update
    method.update = lambda start: (  # type: ignore[method-assign]
        {name: tensor * torch.nan for name, tensor in trained(start)[0].items()},
        {},
    )


def test_an_update_that_is_not_finite_is_left_out() -> None:
    rounds = Rounds()
    spoil(rounds.methods["client-3"])
    network = rounds.play()
    expected = by_a_server(1, dies_after={"client-3": 0})
    for name in SAMPLES:
        torch.testing.assert_close(rounds.weights(name), expected, rtol=0, atol=1e-5)
    assert network.missed() == {
        ("client-3", "its update was not taken: it holds values that are not finite")
    }


def test_where_no_update_can_be_given_the_model_stays() -> None:
    rounds = Rounds()
    for method in rounds.methods.values():
        spoil(method)
    network = rounds.play()
    for name in SAMPLES:
        assert torch.equal(rounds.weights(name), flattened(trainable_state(rounds.first)))
    assert {name for name, _ in network.missed()} == set(SAMPLES)


def test_a_model_that_nobody_has_ends_the_run() -> None:
    rounds = Rounds()
    rounds.server._holders = {"client-9"}
    with pytest.raises(RuntimeError, match="every client that had the present model is gone"):
        rounds.play()


# The group itself, in processes of its own as in a run.


def member(rank: int, size: int, give: Tensor, channel: Channel, limit_s: float) -> None:
    torch.set_num_threads(1)

    def exchange(own: bytes) -> list[bytes]:
        channel.send({"address": own.hex()})
        return [bytes.fromhex(each) for each in channel.receive(LIMIT_S)["addresses"]]

    group = Group(HOST, rank, size, limit_s, exchange, "reno")
    channel.send({"connected": group.congestion})
    while True:
        channel.receive(LIMIT_S)
        total = give.clone()
        try:
            group.reduce(total)
            channel.send({"total": total.tolist()})
        except ReduceFailed as error:
            group.close()
            channel.send({"failed": str(error)})
            # It leaves the group and not the world: its end would close its connections too.


class Members:
    """Processes that reduce together."""

    def __init__(self, gifts: list[Tensor], limit_s: float = LIMIT_S) -> None:
        pairs = [Channel.pair() for _ in gifts]
        self.channels = [ours for ours, _ in pairs]
        self.children = [
            Child(
                f"member-{rank}",
                lambda rank=rank, give=give: member(  # type: ignore[misc]
                    rank, len(gifts), give, pairs[rank][1], limit_s
                ),
            )
            for rank, give in enumerate(gifts)
        ]
        for _, theirs in pairs:
            theirs.close()
        addresses = [channel.receive(LIMIT_S)["address"] for channel in self.channels]
        self.tell({"addresses": addresses})
        self.congestion = [channel.receive(LIMIT_S)["connected"] for channel in self.channels]

    def tell(self, line: dict[str, Any], but: int | None = None) -> None:
        for rank, channel in enumerate(self.channels):
            if rank != but:
                channel.send(line)

    def end(self) -> None:
        for child in self.children:
            child.kill()
        for channel in self.channels:
            channel.close()


@pytest.mark.parametrize("size", [2, 3])
def test_an_all_reduce_of_processes_is_the_weighted_mean(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    updates = [
        {"w": torch.randn(31, 7, generator=generator), "b": torch.randn(5, generator=generator)}
        for _ in range(size)
    ]
    weights = [12, 20, 8][:size]
    expected = WeightedMean()
    for update, weight in zip(updates, weights, strict=True):
        expected.add(update, weight)
    members = Members([flat(u, w) for u, w in zip(updates, weights, strict=True)])
    try:
        members.tell({"again": True})
        totals = [channel.receive(LIMIT_S)["total"] for channel in members.channels]
    finally:
        members.end()
    assert all(total == totals[0] for total in totals)
    assert totals[0][-1] == sum(weights)
    # Each connection has two ends.
    assert members.congestion == size * [(size - 1) * ["reno"]]
    found = mean(torch.tensor(totals[0]), updates[0])
    for name, tensor in expected.result().items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)


def test_a_killed_member_fails_all_others_at_once() -> None:
    members = Members([torch.ones(100_000)] * 4)
    try:
        members.tell({"again": True}, but=1)
        members.children[1].kill()
        others = [channel for rank, channel in enumerate(members.channels) if rank != 1]
        reasons = [channel.receive(LIMIT_S / 2)["failed"] for channel in others]
    finally:
        members.end()
    assert all(reason and "/" not in reason for reason in reasons), reasons


def test_a_silent_member_fails_the_others_at_the_limit() -> None:
    members = Members([torch.ones(1000)] * 3, limit_s=0.5)
    try:
        members.tell({"again": True}, but=2)
        reasons = [channel.receive(LIMIT_S)["failed"] for channel in members.channels[:2]]
    finally:
        members.end()
    # The first to give up leaves, which the other may see before its own limit.
    assert "Operation timed out" in reasons


def test_what_the_exchange_raises_comes_out_as_it_is() -> None:
    def exchange(own: bytes) -> list[bytes]:
        raise ReduceFailed("another member was lost")

    with pytest.raises(ReduceFailed, match=r"^another member was lost$"):
        Group(HOST, 0, 2, LIMIT_S, exchange)


REFUSED = {
    "a method without a mean": ({"method": "kdfft"}, 3, "kdfft is no mean of weights"),
    "momentum of a server": ({"method": "fedavgm"}, 3, "fedavgm is no mean of weights"),
    "moments of a server": ({"method": "fedadam"}, 3, "fedadam is no mean of weights"),
    "an outer optimizer": ({"method": "diloco"}, 3, "diloco is no mean of weights"),
    "distilling at a server": ({"method": "feddf"}, 3, "feddf is no mean of weights"),
    "a projection": ({"method": "fedptr"}, 3, "fedptr is no mean of weights"),
    "synthetic images": ({"method": "feddm"}, 3, "feddm is no mean of weights"),
    "noise of a server": (
        {"method": "fedavg", "options": {"dp": "client", "dp_noise": 1.0}}, 3, "dp = 'client'",
    ),
    "one client": ({}, 1, "at least 2 clients"),
    "a draw of clients": ({"clients_per_round": 2}, 3, "clients_per_round = 2"),
    "a deadline": ({"deadline_s": 5.0}, 3, "deadline_s = 5"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_together_is_refused(case: str) -> None:
    fields, clients, words = REFUSED[case]
    with pytest.raises(ConfigError, match=words):
        FineTuning(RunConfig(transport="gloo", **fields), clients)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["fedavg", "fedpeft", "fedprox"])
def test_methods_that_average_may(method: str) -> None:
    program = FineTuning(RunConfig(transport="gloo", method=method), 3)
    assert program.peer_to_peer
    assert not FineTuning(RunConfig(method=method), 3).peer_to_peer
