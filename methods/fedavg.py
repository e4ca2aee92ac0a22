"""FedAvg: Communication-Efficient Learning of Deep Networks from Decentralized Data.

McMahan et al., AISTATS 2017, algorithm 1, with every client in every round. Round t: the server
sends w_t; client k trains E epochs of batches of B on its n_k samples; the server takes
w_{t+1} = sum_k n_k w_k / sum_k n_k over the updates that came. One way a client: 4 bytes a
parameter.
"""

from typing import Annotated, Literal

import msgspec
import torch
from torch import Tensor, nn

from methods import Fleet, Peer, Shard, flops
from methods.averaging import WeightedMean
from methods.local import accuracy_and_loss, load_trainable, train, trainable_state


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    local_epochs: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 2
    """E: passes over a client's samples a round."""
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 16
    """B, samples."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """A client's; its state begins anew each round. sgd has Nesterov momentum 0.9."""
    learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 1e-3
    weight_decay: Annotated[float, msgspec.Meta(ge=0)] = 1e-4


class Server:
    kind = "model"

    def __init__(self, config: Config, model: nn.Module, shard: Shard, seed: int) -> None:
        self.model = model

    async def round(self, fleet: Fleet) -> None:
        # 1. Everybody gets the present weights.
        state = trainable_state(self.model)
        await fleet.broadcast(self.kind, state)
        # 2. Updates enter the mean as they come.
        mean = WeightedMean()
        async for update in fleet.gather(self.kind, like=state):
            mean.add(update.tensors, weight=fleet.samples[update.sender])
        # 3. Their mean is the new model; where none came, the model stays.
        load_trainable(self.model, mean.result())

    def evaluate(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        return accuracy_and_loss(self.model, images, labels)


class Client:
    kind = Server.kind

    def __init__(self, config: Config, model: nn.Module, shard: Shard, seed: int) -> None:
        self.config = config
        self.model = model
        self.shard = shard
        self.generator = torch.Generator().manual_seed(seed)

    def round(self, peer: Peer) -> None:
        # 1. Start from the server's weights.
        state = peer.receive(self.kind, like=trainable_state(self.model)).tensors
        load_trainable(self.model, state)
        # 2. Train on the client's own samples.
        train(
            self.model,
            self.shard,
            new_optimizer(self.config, self.model),
            epochs=self.config.local_epochs,
            batch_size=self.config.batch_size,
            generator=self.generator,
        )
        # 3. Send the result.
        peer.send(self.kind, trainable_state(self.model))


def traffic(config: Config, model: nn.Module) -> tuple[int, int]:
    """Both ways, every trainable parameter."""
    size = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return size, size


def client_flops(config: Config, model: nn.Module, image: Tensor) -> float:
    """Each epoch: the model forward and backward."""
    return config.local_epochs * flops.step(model, image, model)


def new_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=config.learning_rate,
            momentum=0.9,
            nesterov=True,
            weight_decay=config.weight_decay,
        )
    return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
