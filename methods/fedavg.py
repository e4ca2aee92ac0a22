"""FedAvg: Communication-Efficient Learning of Deep Networks from Decentralized Data.

McMahan et al., AISTATS 2017, algorithm 1, with every client in every round. Round t: the server
sends w_t; client k trains E epochs of batches of B on its n_k samples; the server takes
w_{t+1} = sum_k n_k w_k / sum_k n_k over the updates that came. One way a client: 4 bytes a
parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from methods import Fleet, Peer, Shard, privacy
from methods.shared import flops
from methods.shared.averaging import Training, with_unsaid
from methods.shared.local_training import learnt, load_trainable, trainable_state
from methods.shared.objective import scores

if TYPE_CHECKING:
    from testbed.transport.wire import Message


stageable = ("up", "down")


class Config(privacy.Options, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``averaging.LocalTraining`` and what privacy adds to it."""


def check(config: Config, model: nn.Module) -> None:
    """Raises ValueError where the model does not allow the privacy that is asked for."""
    privacy.check(config, model)


check_samples = privacy.check_samples


def adapt(config: Config, model: nn.Module) -> nn.Module:
    return privacy.prepare(config, model)


def all_reduce(config: Config) -> None:
    """Raises ValueError where the mean takes a server that all trust."""
    if config.dp == "client":
        raise ValueError(
            "dp = 'client': its noise is the server's to add, and an all-reduce has none; take "
            "dp=sample, or transport=zmq"
        )
    if config.cosine_rounds is not None:
        raise ValueError(
            f"cosine_rounds = {config.cosine_rounds}: the rate goes by the round, which an "
            "all-reduce tells nobody; leave it out, or take transport=zmq"
        )


class Server:
    kind = "model"

    def __init__(self, config: Config, model: nn.Module, shard: Shard, seed: int) -> None:
        self.model = model
        self.privacy = privacy.load(config.dp).ServerSide(config, seed)

    async def round(self, fleet: Fleet) -> None:
        # 1. Everybody gets the present weights, unless no privacy is left to train them with.
        state = trainable_state(self.model)
        mean = self.privacy.mean(state, fleet)
        if mean is None:
            return
        sent = await self.announce(state, fleet)
        # 2. Updates enter the mean as they come.
        async for update in fleet.gather(self.kind, like=state, base=sent):
            if self.take(update, fleet):
                mean.add(update.tensors, weight=fleet.samples[update.sender])
        # 3. Their mean is the new model; where none came, the model stays.
        if found := mean.result():
            load_trainable(self.model, with_unsaid(self.step(sent, found), state, sent))

    async def announce(self, state: Mapping[str, Tensor], fleet: Fleet) -> Mapping[str, Tensor]:
        """Send everybody these weights; what clients have then."""
        return await fleet.broadcast(self.kind, state, base="held")

    def step(self, start: Mapping[str, Tensor], mean: dict[str, Tensor]) -> dict[str, Tensor]:
        """The new weights, by those that clients began with and the mean of what came of them."""
        return mean

    def take(self, update: Message, fleet: Fleet) -> bool:
        taken: bool = self.privacy.take(update, fleet)
        return taken

    def metrics(self) -> dict[str, float]:
        found: dict[str, float] = self.privacy.metrics()
        return found

    def evaluate(self, inputs: Tensor, targets: Tensor) -> dict[str, float]:
        return scores(self.model, inputs, targets) | self.metrics()


class Client:
    kind = Server.kind
    received = ("model",)

    def __init__(self, config: Config, model: nn.Module, shard: Shard, seed: int) -> None:
        self.config = config
        self.model = model
        self.shard = shard
        self.generator = torch.Generator().manual_seed(seed)
        self.privacy = privacy.load(config.dp).ClientSide(config, len(shard.targets))
        self.number = 1
        """The present round's."""

    def round(self, peer: Peer) -> None:
        self.number = peer.round
        start = peer.receive(self.kind, like=learnt(self.model), base="held").tensors
        end, details = self.update(start)
        peer.send(self.kind, end, to="server", base=start, **details)

    def update(self, start: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, float]]:
        end = self.trained(start)
        # 3. What is sent, and what is said beside it.
        return self.privacy.outgoing(start, end), self.privacy.details

    def trained(self, start: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights that it ends with."""
        # 1. Start from the server's weights.
        load_trainable(self.model, start)
        # 2. Train on the client's own samples.
        self.privacy.train(
            *(self.model, self.shard, self.optimizer(start), self.generator), epochs=self.epochs
        )
        return trainable_state(self.model)

    @property
    def epochs(self) -> int:
        """Passes over its samples in the present round."""
        return self.config.local_epochs

    def optimizer(self, start: Mapping[str, Tensor]) -> torch.optim.Optimizer:
        """The optimizer of a round that begins at ``start``."""
        return new_optimizer(self.config, self.model, self.number)


def traffic(config: Config, model: nn.Module) -> tuple[int, int]:
    """Both ways, all that training changes."""
    size = sum(each.numel() * each.element_size() for each in learnt(model).values())
    return size, size


def client_flops(config: Config, model: nn.Module, image: Tensor) -> float:
    """Each epoch: the model forward and backward."""
    return 0.0 if config.local_steps else config.local_epochs * flops.step(model, image, model)


def fixed_flops(config: Config, model: nn.Module, image: Tensor) -> float:
    """The same of the samples of local_steps."""
    samples = (config.local_steps or 0) * config.batch_size
    return samples * flops.step(model, image, model) if samples else 0.0


def new_optimizer(config: Training, model: nn.Module, number: int) -> torch.optim.Optimizer:
    """The optimizer of a round, from 1, of all that the model has to train."""
    rate = config.round_rate(number)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=rate,
            momentum=0.9,
            nesterov=True,
            weight_decay=config.weight_decay,
        )
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=config.weight_decay)
