"""FedProx: Federated Optimization in Heterogeneous Networks (Li et al., MLSys 2020).

arXiv 1812.06127, algorithm 2: FedAvg, but a client's loss has the term

    mu / 2 * |w - w_t|^2

over all that it trains, which holds it near the round's first weights w_t. What is trained is a
variant of ``methods/peft/``, as for fedpeft, and with mu = 0 this is fedpeft, or with variant=full
fedavg. One way a client: 4 bytes a trainable parameter.

From the paper: the term, and mu from 0.001, 0.01, 0.1 and 1. Ours: the default mu; any local
optimizer; with dp=sample the term's gradient, which tells nothing of a sample, joins behind the
noise. As for fedavg, clients weigh by their samples, and each does all its epochs: the paper's
stragglers, who do fewer, are not imitated.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import torch
from torch import Tensor

from methods import fedpeft


class Config(fedpeft.Config, frozen=True, forbid_unknown_fields=True, kw_only=True):
    mu: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 0.01
    """Weight of the proximal term."""


Server = fedpeft.Server


class Client(fedpeft.Client):
    config: Config

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
all_reduce = fedpeft.all_reduce
traffic = fedpeft.traffic
client_flops = fedpeft.client_flops
fixed_flops = fedpeft.fixed_flops
