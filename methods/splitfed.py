"""SplitFed: split learning with clients in parallel, and federated averaging of what they have.

Thapa et al., "SplitFed: When Federated Learning Meets Split Learning", AAAI 2022, algorithms 1 and
2. A batch goes over the wire as in ``split``, options and bytes a client and round are the same.

Round t: the fed server, here the same process, sends every client the client-side weights; all
train E epochs together with the main server, which works on whoever's batch is there; clients send
their weights, and their mean weighted by n_k becomes the next client side. Of the server side

v1: one copy a client, all from the same weights; their weighted mean is the next server side.
v2: one for all, trained on one batch after the other. With private labels a batch includes a round
    trip to its client, so that the server works on nobody else's meanwhile.

The paper's v2 takes clients in random order. order = drawn draws it from the seed for each step, so
that the same seed gives the same result, and a batch waits for those before it; order = arrival
takes whoever is there, and results depend on the links. Of a client lost during a round, v1 takes
nothing; in v2's server side the batches that it sent stay.

From the paper: all but the following. Chosen here: the cut, which side of v2's order is the
default, that optimizers on both sides begin anew each round. v1 holds one server side with its
optimizer for each client in the round.
"""

import asyncio
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from torch import Tensor, nn

from methods import Fleet, Missed, Shard, fedavg, split
from methods.shared.averaging import WeightedMean
from methods.shared.beside import only_with
from methods.shared.local_training import copy_of, load_trainable, trainable_state
from methods.shared.objective import scores
from methods.split_model import tokens_of
from methods.split_model.coding import PLAIN, Codings
from methods.split_model.exchange import labels_of, serve, sizes
from methods.split_model.order import Arrival, AtOnce, Drawn, Order
from testbed.seeds import derive


class Config(split.Config, frozen=True, forbid_unknown_fields=True, kw_only=True):
    variant: Literal["v1", "v2"] = "v1"
    """v1: a server-side model for each client, averaged. v2: one for all."""
    order: Annotated[Literal["drawn", "arrival"], only_with("variant", "v2")] = "drawn"
    """Of v2: whose batch is next. arrival is faster, and does not give the same result twice."""
    learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 1e-3
    """Of both sides."""


class Server:
    def __init__(self, config: Config, model: nn.Module, shard: Shard, seed: int) -> None:
        self.config = config
        self.model = model
        self.seed = seed
        self.cut = split.cut_of(config, model)
        self.tokens = tokens_of(model, shard.inputs)
        self.labels = None if self.cut.tail is not None else labels_of(shard.targets)

    async def round(self, fleet: Fleet) -> None:
        start = {kind: trainable_state(part) for kind, part in self.cut.client_side.items()}
        means = {kind: WeightedMean() for kind in (*start, "server")}
        counts = {
            client: sizes(fleet.samples[client], self.config.local_epochs, self.config.batch_size)
            for client in fleet.clients
        }
        order = self._order(fleet.round, counts)
        common = fedavg.new_optimizer(self.config, self.cut.server, fleet.round)

        async def train(client: str) -> None:
            # 1. Client and server begin with the present weights; in v1 the server has a copy of
            #    its side for each client.
            for kind, state in start.items():
                await fleet.send(client, kind, state)
            side, optimizer = self.cut.server, common
            if self.config.variant == "v1":
                side = copy_of(self.cut.server)
                optimizer = fedavg.new_optimizer(self.config, side, fleet.round)
            # 2. Batches are worked on as they arrive.
            await serve(
                fleet,
                client,
                side,
                optimizer,
                [self.tokens.expand(count, -1, -1) for count in counts[client]],
                labels=self.labels,
                order=order,
                codings=self.codings(fleet.round, client),
            )
            # 3. What was learnt enters the means as it comes.
            learnt = {
                kind: (await fleet.receive(client, kind, like=state, base=state)).tensors
                for kind, state in start.items()
            }
            if self.config.variant == "v1":
                learnt["server"] = trainable_state(side)
            for kind, tensors in learnt.items():
                means[kind].add(tensors, weight=fleet.samples[client])

        async def take_part(client: str) -> None:
            try:
                await train(client)
            except Missed:
                order.leave(client)

        async with asyncio.TaskGroup() as group:
            for client in counts:
                group.create_task(take_part(client))
        # 4. The means are the next round's weights; where nobody was left, nothing changes.
        for kind, part in (*self.cut.client_side.items(), ("server", self.cut.server)):
            load_trainable(part, means[kind].result())

    def codings(self, number: int, client: str) -> Codings:
        """How what crosses the cut travels in this round, to and from this client."""
        return PLAIN

    def _order(self, number: int, counts: Mapping[str, list[int]]) -> Order:
        if self.config.variant == "v1":
            return AtOnce()
        if self.config.order == "arrival":
            return Arrival()
        batches = {client: len(having) for client, having in counts.items()}
        return Drawn(batches, derive(self.seed, "turns", number))

    def evaluate(self, inputs: Tensor, targets: Tensor) -> dict[str, float]:
        return scores(self.model, inputs, targets)


class Client(split.Client):
    """The client of plain split learning."""


stageable = split.stageable
staged_shapes = split.staged_shapes
check = split.check
adapt = split.adapt
traffic = split.traffic
server_sees = split.server_sees
client_flops = split.client_flops
