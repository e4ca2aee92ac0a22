"""DiLoCo: Distributed Low-Communication Training of Language Models (Douillard et al., 2023).

arXiv 2311.08105, algorithm 1. A client takes H steps of AdamW, whose state is its own and lasts
from round to round; the server steps along what came of them, by SGD with Nesterov momentum, as
fedavgm with nesterov does:

    v <- 0.9 * v + D,    w_{t+1} = w_t + 0.7 * (D + 0.9 * v),

with D the mean of the clients' weights less the w_t that they began with. What is trained is a
variant of ``methods/peft/``, as for fedpeft. One way a client: 4 bytes a trainable parameter,
whatever H.

With cosine_rounds = T the inner rate follows one cosine over all T * H steps, from learning_rate to
final_learning_rate, 0 by default, where it stays; before it warmup_steps of them rise to it in a
line. Which of them a step is the round says, so that a client that was not drawn meanwhile has the
others' rate.

From the paper: steps instead of epochs, AdamW inside, Nesterov's momentum outside with these two
numbers, states of AdamW that are neither sent nor averaged; the cosine and the warm-up, of 1,000
steps, as options. Ours: H, which there is 500, for clients of some tens of images; a constant rate
by default, and a cosine that ends at 0; the mean by samples, of whoever is drawn and answers. Who
was not drawn goes on with the state that it had. An all-reduce (gloo) is refused: v is the
server's.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import torch
from torch import Tensor, nn

from methods import Peer, Shard, fedavg, fedavgm, fedpeft


class Config(fedavgm.Config, frozen=True, forbid_unknown_fields=True, kw_only=True):
    local_steps: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 20
    """H: batches a client and round; local_epochs does not count."""
    server_learning_rate: Annotated[float, msgspec.Meta(gt=0, le=1000)] = 0.7
    """Of the server's steps."""
    nesterov: bool = True
    """The server's momentum is Nesterov's."""
    cosine_rounds: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    """T: rounds of the whole run, over which the inner rate falls, step by step, to
    final_learning_rate; absent: it does not."""
    warmup_steps: Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)] = 0
    """Inner steps, of the first rounds, over which the inner rate rises."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cosine_rounds and self.warmup_steps >= (steps := self._steps):
            raise ValueError(
                f"warmup_steps = {self.warmup_steps}: must be fewer than the {steps} steps of "
                f"cosine_rounds = {self.cosine_rounds}"
            )

    @property
    def _steps(self) -> int:
        return (self.cosine_rounds or 0) * self.local_steps

    def rate(self, step: int) -> float:
        """The inner rate of this step of the run, from 1."""
        if step <= self.warmup_steps:
            return self.learning_rate * step / self.warmup_steps
        if self.cosine_rounds is None:
            return self.learning_rate
        done = (step - 1 - self.warmup_steps) / (self._steps - self.warmup_steps)
        above = self.learning_rate - self.final_learning_rate
        return self.final_learning_rate + above * (1 + math.cos(math.pi * min(1.0, done))) / 2


Server = fedavgm.Server


class Client(fedpeft.Client):
    config: Config

    def __init__(self, config: Config, model: nn.Module, shard: Shard, seed: int) -> None:
        super().__init__(config, model, shard, seed)
        self.inner = fedavg.new_optimizer(config, model, 1)
        self.inner.register_step_pre_hook(self._pace)
        self.step = 0
        """The run's last inner step, had it taken part in each round."""

    def round(self, peer: Peer) -> None:
        self.step = (peer.round - 1) * self.config.local_steps
        super().round(peer)

    def _pace(self, *_: Any) -> None:
        self.step += 1
        for group in self.inner.param_groups:
            group["lr"] = self.config.rate(self.step)

    def optimizer(self, start: Mapping[str, Tensor]) -> torch.optim.Optimizer:
        """The same in every round."""
        return self.inner


def on_text(given: Mapping[str, Any]) -> dict[str, Any]:
    """Lower rates: the server's momentum carries a pretrained model beyond what clients learnt."""
    return {"learning_rate": 3e-3, "server_learning_rate": 0.1}


check = fedpeft.check
stageable = fedpeft.stageable
check_samples = fedpeft.check_samples
adapt = fedpeft.adapt
traffic = fedpeft.traffic
client_flops = fedpeft.client_flops
fixed_flops = fedpeft.fixed_flops
