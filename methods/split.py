"""Split learning: a model cut in two or three, trained over the network client by client.

Gupta and Raskar, "Distributed learning of deep neural network over multiple agents", 2018;
Vepakomma et al., "Split learning for health", arXiv 1812.00564. Clients have the first layers and
take turns with the server: of each batch the head's output goes up and the loss's gradient of it
comes down. A client that is done hands its weights to the next one, here through the server. With
labels = private (the paper's U-shaped configuration) clients have the last layers too, and labels
stay.

Round t, for each client k in an order drawn anew: the server sends the client-side weights; E
epochs of batches of B on the client's n_k samples; the client sends its weights back. Where a
client is lost in its turn, both sides go on from where they were before it.

Payload bytes a client and round, b = 4, T tokens of D features: weights 2 * |client side| * b;
labels shared, up n_k * E * (T*D*b + 8), of a language model T*D*b + 8*T, down n_k * E * T*D*b;
labels private, 2 * n_k * E * T*D*b each way.

A language model whose classifier is its embedding is untied, and then trains both: they are in
different parts, with labels shared at different nodes.

From the papers: the exchange and the order of turns. Chosen here: the cut, that it is between a
transformer's blocks, the optimizer, that both sides' begin anew with each turn, that the order
changes each round, and int64 labels.
"""

import random
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
import torch
from torch import Tensor, nn

from methods import Fleet, Missed, Peer, Shard, fedavg
from methods.shared import averaging, flops
from methods.shared.local_training import learnt, load_trainable, trainable_state
from methods.shared.objective import scores
from methods.split_model import Cut, crossing, cut, size, tokens_of, untied
from methods.split_model.coding import PLAIN, Codings
from methods.split_model.exchange import batches, labels_of, serve, sizes, train_on
from testbed.seeds import derive


class Config(averaging.Training, frozen=True, forbid_unknown_fields=True, kw_only=True):
    head_blocks: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 1
    """Blocks of the model that the clients have, after the embedding."""
    tail_blocks: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    """Blocks before the classifier that the clients have; 0 where labels are shared."""
    labels: Literal["shared", "private"] = "shared"
    """shared: the server gets them and has the classifier. private: the clients have it."""
    local_epochs: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    """E: passes over a client's samples in its turn."""
    learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 3e-4
    """Of both sides. Clients of few classes each pull at one model: a lower one forgets less."""


def cut_of(config: Config, model: nn.Module) -> Cut:
    return cut(
        model,
        head_blocks=config.head_blocks,
        tail_blocks=config.tail_blocks,
        private=config.labels == "private",
    )


def check(config: Config, model: nn.Module) -> None:
    """Raises ValueError where the model cannot be cut so."""
    cut_of(config, model)


def adapt(config: Config, model: nn.Module) -> nn.Module:
    """The model with weights of its own in either part."""
    return untied(model)


class Server:
    def __init__(self, config: Config, model: nn.Module, shard: Shard, seed: int) -> None:
        self.config = config
        self.model = model
        self.seed = seed
        self.cut = cut_of(config, model)
        self.tokens = tokens_of(model, shard.inputs)
        self.labels = None if self.cut.tail is not None else labels_of(shard.targets)

    async def round(self, fleet: Fleet) -> None:
        # 1. Clients take turns.
        order = sorted(fleet.clients)
        random.Random(derive(self.seed, "turns", fleet.round)).shuffle(order)
        for client in order:
            before = trainable_state(self.cut.server)
            try:
                await self._turn(fleet, client)
            except Missed:
                load_trainable(self.cut.server, before)

    async def _turn(self, fleet: Fleet, client: str) -> None:
        # 2. The client goes on from the client-side weights that the one before it left.
        for kind, part in self.cut.client_side.items():
            await fleet.send(client, kind, trainable_state(part))
        # 3. Its batches train both sides.
        arriving = sizes(fleet.samples[client], self.config.local_epochs, self.config.batch_size)
        await serve(
            fleet,
            client,
            self.cut.server,
            fedavg.new_optimizer(self.config, self.cut.server, fleet.round),
            [self.tokens.expand(count, -1, -1) for count in arriving],
            labels=self.labels,
        )
        # 4. It leaves its weights for the next.
        left = {
            kind: (
                await fleet.receive(client, kind, like=learnt(part), base=trainable_state(part))
            ).tensors
            for kind, part in self.cut.client_side.items()
        }
        for kind, part in self.cut.client_side.items():
            load_trainable(part, left[kind])

    def evaluate(self, inputs: Tensor, targets: Tensor) -> dict[str, float]:
        return scores(self.model, inputs, targets)


class Client:
    received = ("cut",)

    def __init__(self, config: Config, model: nn.Module, shard: Shard, seed: int) -> None:
        self.config = config
        self.cut = cut_of(config, model)
        self.shard = shard
        self.generator = torch.Generator().manual_seed(seed)

    def round(self, peer: Peer) -> None:
        # 1. Start from the weights that the server hands on.
        start = {}
        for kind, part in self.cut.client_side.items():
            start[kind] = peer.receive(kind, like=learnt(part)).tensors
            load_trainable(part, start[kind])
            part.train()
        # 2. Train together with the server.
        codings = self.codings(peer.round)
        optimizer = fedavg.new_optimizer(
            self.config, nn.ModuleDict(self.cut.client_side), peer.round
        )
        for batch in batches(
            self.shard, self.config.local_epochs, self.config.batch_size, self.generator
        ):
            optimizer.zero_grad(set_to_none=True)
            train_on(peer, self.cut.head, self.cut.tail, batch, codings=codings)
            optimizer.step()
        # 3. Hand the weights back.
        for kind, part in self.cut.client_side.items():
            peer.send(kind, trainable_state(part), base=start[kind])

    def codings(self, number: int) -> Codings:
        """How what crosses the cut travels in this round."""
        return PLAIN


stageable = ("up", "down")


def staged_shapes(config: Config, model: nn.Module, way: str) -> list[Sequence[int]]:
    """Tokens or their gradient both ways, and what clients hand back of their side."""
    parts = cut_of(config, model).client_side.values() if way == "up" else ()
    weights = [each.shape for part in parts for each in learnt(part).values()]
    return [crossing(model, config.batch_size), *weights]


def traffic(config: Config, model: nn.Module) -> tuple[int, int]:
    """The client-side weights both ways, and the batches of the one sample that it has at least."""
    weights = sum(size(learnt(part)) for part in cut_of(config, model).client_side.values())
    tokens = size({"tokens": tokens_of(model)}) * config.local_epochs
    if config.labels == "private":
        return weights + 2 * tokens, weights + 2 * tokens
    # Of a text, whose length is not known here, one token.
    return weights + tokens + 8 * config.local_epochs, weights + tokens


def server_sees(config: Config) -> str:
    return "activations and labels" if config.labels == "shared" else "activations"


def client_flops(config: Config, model: nn.Module, image: Tensor) -> float:
    """Each epoch: the head, and with private labels the tail, forward and backward."""
    parts = cut_of(config, model)
    a_step = flops.step(parts.head, image, parts.head)
    if parts.tail is not None:
        with torch.no_grad():
            tokens = parts.head(image)
        a_step += flops.step(parts.tail, tokens, parts.tail, input_gradient=True)
    return config.local_epochs * a_step
