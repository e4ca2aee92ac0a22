"""DiLoCo: Distributed Low-Communication Training of Language Models (Douillard et al., 2023).

arXiv 2311.08105, algorithm 1. A client takes H steps of AdamW, whose state is its own and lasts
from round to round; the server steps along what came of them, by SGD with Nesterov momentum, as
fedavgm with nesterov does:

    v <- 0.9 * v + D,    w_{t+1} = w_t + 0.7 * (D + 0.9 * v),

with D the mean of the clients' weights less the w_t that they began with. What is trained is a
variant of ``methods/peft/``, as for fedpeft. One way a client: 4 bytes a trainable parameter,
whatever H.

From the paper: steps instead of epochs, AdamW inside, Nesterov's momentum outside with these two
numbers, states of AdamW that are neither sent nor averaged. Ours: H, which there is 500, for
clients of some tens of images; a constant rate, where it has a cosine over the whole training; the
mean by samples, of whoever is drawn and answers. Who was not drawn goes on with the state that it
had. An all-reduce (gloo) is refused: v is the server's.
"""

from collections.abc import Mapping
from typing import Annotated

import msgspec
import torch
from torch import Tensor, nn

from methods import Shard, fedavg, fedavgm, fedpeft


class Config(fedavgm.Config, frozen=True, forbid_unknown_fields=True, kw_only=True):
    local_steps: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 20
    """H: batches a client and round; local_epochs does not count."""
    server_learning_rate: Annotated[float, msgspec.Meta(gt=0, le=1000)] = 0.7
    """Of the server's steps."""
    nesterov: bool = True
    """The server's momentum is Nesterov's."""


Server = fedavgm.Server


class Client(fedpeft.Client):
    def __init__(self, config: Config, model: nn.Module, shard: Shard, seed: int) -> None:
        super().__init__(config, model, shard, seed)
        self.inner = fedavg.new_optimizer(config, model)

    def optimizer(self, start: Mapping[str, Tensor]) -> torch.optim.Optimizer:
        """The same in every round."""
        return self.inner


check = fedpeft.check
stageable = fedpeft.stageable
check_samples = fedpeft.check_samples
adapt = fedpeft.adapt
traffic = fedpeft.traffic
client_flops = fedpeft.client_flops
fixed_flops = fedpeft.fixed_flops
