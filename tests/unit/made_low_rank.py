"""Rounds of the methods with LoRA of a rank for each client, and what they come to by numpy."""

import copy
from typing import Any

import numpy as np
import torch
from in_process import Network, play, shards
from torch import nn

import methods
from methods import fedpeft
from methods.peft import lora
from nodes.workload.models import ModelSpec, VisionTransformer
from testbed.transport.wire import Message

CLASSES = 3
SHAPE = (1, 4, 4)
SPEC = ModelSpec(side=4, patch=2, width=16, depth=2, heads=2)
SAMPLES = {"client-1": 12, "client-2": 20, "client-3": 8}
RANKS = {"client-1": 5, "client-2": 3, "client-3": 1}
OPTIONS: dict[str, Any] = {"ranks": "5,3,1", "batch_size": 4}
HEAD = 4 * (SPEC.width * CLASSES + CLASSES)
"""Bytes of the classifier."""
LAYERS = 2 * SPEC.depth


def adapters(rank: int) -> int:
    """Bytes of a client's adapters: 4 r (inputs + outputs) a layer."""
    return LAYERS * 4 * rank * (SPEC.width + SPEC.width)


class Played:
    """A server and clients after some rounds of a method."""

    def __init__(self, name: str, rounds: int = 1, **options: Any) -> None:
        self.method = methods.load(name)
        self.config = self.method.Config(**options)
        torch.manual_seed(0)
        self.before = self.method.adapt(self.config, VisionTransformer(SPEC, CLASSES))
        self.parts = shards(SAMPLES, SHAPE, CLASSES)
        nothing = self.parts["client-1"]._replace(client=0)
        self.server = self.method.Server(self.config, copy.deepcopy(self.before), nothing, 0)
        self.clients = {
            name: self.method.Client(self.config, copy.deepcopy(self.before), shard, shard.client)
            for name, shard in self.parts.items()
        }
        self.done = 0
        self.network = Network()
        self.play(rounds)

    def play(self, rounds: int, *names: str, network: Network | None = None) -> Network:
        """So many further rounds, with these clients or all; ``network`` has what they sent."""
        some = {name: self.clients[name] for name in names or self.clients}
        first, self.done = self.done + 1, self.done + rounds
        self.network = network or Network()
        return play(self.server, some, SAMPLES, self.done, self.network, first=first)

    def loss(self, model: nn.Module) -> float:
        """Over all the clients' samples."""
        images = torch.cat([part.inputs for part in self.parts.values()])
        labels = torch.cat([part.targets for part in self.parts.values()])
        server = fedpeft.Server(fedpeft.Config(), model, self.parts["client-1"], 0)
        return server.evaluate(images, labels)["loss"]

    def sent(self, way: str, client: str) -> list[Message]:
        return [each.message for each in self.network.log if each[:2] == (way, client)]


def weights(model: nn.Module) -> dict[str, np.ndarray]:
    """What each adapted layer multiplies with, adapters and all, float64."""
    return {
        path: (
            each.layer.weight.double() + each.scale * each.lora_B.double() @ each.lora_A.double()
        )
        .detach()
        .numpy()
        for path, each in lora.adapters(model).items()
    }


def products(message: Message, scale: float) -> dict[str, np.ndarray]:
    """What a client's adapters add to each layer, float64."""
    tensors = {name: each.double().numpy() for name, each in message.tensors.items()}
    return {
        name.removesuffix(".lora_A"): scale * tensors[name.replace("lora_A", "lora_B")] @ a
        for name, a in tensors.items()
        if name.endswith("lora_A")
    }


def dense(updates: list[Message], scales: dict[str, float]) -> dict[str, np.ndarray]:
    """The mean by samples of what clients' adapters add to each layer."""
    own = {each.sender: products(each, scales[each.sender]) for each in updates}
    counts = [SAMPLES[name] for name in own]
    return {
        path: np.average([each[path] for each in own.values()], axis=0, weights=counts)
        for path in next(iter(own.values()))
    }
