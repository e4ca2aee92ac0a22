"""Rounds of an averaging method in process: its server's weights after each, and what came up."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from copied import copied
from in_process import Network, play, shards
from torch import Tensor, nn

from methods import Shard
from methods.shared.local_training import trainable_state

CLASSES = 3
SHAPE = (1, 4, 4)
SAMPLES = {"client-1": 12, "client-2": 6, "client-3": 4}
"""Each divides the first: a batch of twelve has every sample of a client equally often."""
PUBLIC = torch.rand(10, *SHAPE, generator=torch.Generator().manual_seed(8))


def linear() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES))
    model.spec = SimpleNamespace(side=4, channels=1)  # type: ignore[assignment]
    return model


class Rounds:
    def __init__(
        self,
        method: Any,
        rounds: int = 3,
        model: nn.Module | None = None,
        dies_after: Mapping[str, int] | None = None,
        **options: Any,
    ) -> None:
        """``model``: as loaded; else a linear one, with ``options`` all of it trained."""
        if model is None:
            options = {"variant": "full"} | options
            if method.__name__ == "methods.fedavg":
                del options["variant"]
        self.config = method.Config(**options)
        start = method.adapt(self.config, copied(model or linear()))
        found = shards(SAMPLES, SHAPE, CLASSES)
        self.parts = {name: shard._replace(public=PUBLIC) for name, shard in found.items()}
        nothing = Shard(torch.empty(0, *SHAPE), torch.empty(0, dtype=torch.int64), PUBLIC, 0)
        self.server = method.Server(self.config, copied(start), nothing, 7)
        self.clients = {
            name: method.Client(self.config, copied(start), shard, shard.client)
            for name, shard in self.parts.items()
        }
        self.states = [trainable_state(start)]
        """The server's weights before the first round and after each."""
        self.network = Network(dies_after=dies_after or {})

        def note(number: int) -> None:
            self.states.append(trainable_state(self.server.model))

        play(self.server, self.clients, SAMPLES, rounds, self.network, after_round=note)

    def mean(self, number: int) -> dict[str, np.ndarray]:
        """sum(n_k w_k) / sum(n_k) over what came in a round, float64."""
        came = [message for message in self.network.of("up") if message.round == number]
        weights = [SAMPLES[message.sender] for message in came]
        return {
            name: np.average(
                [message.tensors[name].double().numpy() for message in came],
                axis=0,
                weights=weights,
            )
            for name in came[0].tensors
        }


def same(one: list[dict[str, Tensor]], other: list[dict[str, Tensor]]) -> bool:
    """Whether weights are equal to the bit, round by round."""
    return len(one) == len(other) and all(
        mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
        for mine, theirs in zip(one, other, strict=True)
    )
