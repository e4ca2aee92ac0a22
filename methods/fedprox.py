"""FedProx: Federated Optimization in Heterogeneous Networks (Li et al., MLSys 2020).

arXiv 1812.06127, algorithm 2: FedAvg, but a client's loss has the term

    mu / 2 * |w - w_t|^2

over all that it trains, which holds it near the round's first weights w_t. What is trained is a
variant of ``methods/peft/``, as for fedpeft, and with mu = 0 this is fedpeft, or with variant=full
fedavg. One way a client: 4 bytes a trainable parameter.

With straggler_share, each round and client draws whether it is a straggler, which does from 1 to
E - 1 of its E epochs, each as likely, and what it has done counts as any other's. (FedAvg in the
paper leaves stragglers out: ``fedavg`` with --deadline.)

From the paper: the term, mu from 0.001, 0.01, 0.1 and 1, stragglers' shares of 0, 0.5 and 0.9. From
its authors' code: 1 to E - 1. Ours: the default mu; any local optimizer; with dp=sample the term's
gradient, which tells nothing of a sample, joins behind the noise; each client is a straggler by
chance, where they are just that share of a round's. As for fedavg, clients weigh by their samples.
"""

import random
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import torch
from torch import Tensor, nn

from methods import Shard, fedpeft
from testbed.seeds import derive


class Config(fedpeft.Config, frozen=True, forbid_unknown_fields=True, kw_only=True):
    mu: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 0.01
    """Weight of the proximal term."""
    straggler_share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    """Chance that a client does fewer epochs in a round."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.straggler_share and (self.local_steps is not None or self.local_epochs == 1):
            given = "local_epochs = 1" if self.local_steps is None else "local_steps"
            raise ValueError(
                f"straggler_share = {self.straggler_share}: a straggler does fewer epochs, and "
                f"with {given} there are none; take local_epochs of 2 or more"
            )


Server = fedpeft.Server


class Client(fedpeft.Client):
    config: Config

    def __init__(self, config: Config, model: nn.Module, shard: Shard, seed: int) -> None:
        super().__init__(config, model, shard, seed)
        self.seed = seed

    @property
    def epochs(self) -> int:
        """All of them, or a straggler's."""
        draw = random.Random(derive(self.seed, "straggler", self.number))
        if draw.random() >= self.config.straggler_share:
            return self.config.local_epochs
        return draw.randrange(1, self.config.local_epochs)

    def optimizer(self, start: Mapping[str, Tensor]) -> torch.optim.Optimizer:
        """fedpeft's, each step of which is also drawn towards ``start``."""

        def pull(*_: Any) -> None:
            for name, parameter in self.model.named_parameters():
                if parameter.grad is not None:
                    change = parameter.detach() - start[name]
                    parameter.grad.add_(change, alpha=self.config.mu)

        optimizer = super().optimizer(start)
        optimizer.register_step_pre_hook(pull)
        return optimizer


check = fedpeft.check
stageable = fedpeft.stageable
check_samples = fedpeft.check_samples
adapt = fedpeft.adapt
traffic = fedpeft.traffic
fixed_flops = fedpeft.fixed_flops


def all_reduce(config: Config) -> None:
    """Raises ValueError with options that need the server, or a round's number."""
    fedpeft.all_reduce(config)
    if config.straggler_share:
        raise ValueError(
            f"straggler_share = {config.straggler_share}: it is drawn by the round, which an "
            "all-reduce tells nobody; leave it out, or take transport=zmq"
        )


def client_flops(config: Config, model: nn.Module, image: Tensor) -> float:
    """Operations of fedpeft's epochs that are done on average: of a straggler's half."""
    done = 1 - config.straggler_share / 2
    return done * fedpeft.client_flops(config, model, image)
