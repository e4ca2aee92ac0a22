"""FedAvgM: Measuring the Effects of Non-Identical Data Distribution (Hsu et al., arXiv 1909.06335).

FedAvg whose server steps with momentum. With D the mean of the clients' weights, by samples, less
the w_t that they began with:

    v <- beta * v + D,    w_{t+1} = w_t + eta * v,

and with nesterov w_{t+1} = w_t + eta * (D + beta * v), by the new v. Before the first round v = 0;
beta = 0 and eta = 1 is FedAvg. A round without updates changes neither w nor v. What is trained is
a variant of ``methods/peft/``, as for fedpeft. One way a client: 4 bytes a trainable parameter.

From the paper: the step, beta 0.9, eta 1. From Flower's baseline of it: nesterov. Ours: buffers,
such as those of batch normalisation, are the mean's. An all-reduce (gloo) is refused: v is the
server's.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from torch import Tensor, nn

from methods import Shard, fedpeft
from methods.shared.server_step import stepped


class Config(fedpeft.Config, frozen=True, forbid_unknown_fields=True, kw_only=True):
    server_learning_rate: Annotated[float, msgspec.Meta(gt=0, le=1000)] = 1.0
    """eta: of the server's steps."""
    server_momentum: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.9
    """beta."""
    nesterov: bool = False
    """Step by what the momentum will be after the next round, were its D this one's."""


class Server(fedpeft.Server):
    def __init__(self, config: Config, model: nn.Module, shard: Shard, seed: int) -> None:
        super().__init__(config, model, shard, seed)
        self.config = config
        self.velocity: dict[str, Tensor] = {}
        """v, float32, by parameter."""

    def step(self, start: Mapping[str, Tensor], mean: dict[str, Tensor]) -> dict[str, Tensor]:
        return stepped(self.model, start, mean, self.movement)

    def movement(self, name: str, change: Tensor) -> Tensor:
        """The movement of one parameter, where D is ``change``."""
        beta = self.config.server_momentum
        velocity = beta * self.velocity.get(name, 0.0) + change
        self.velocity[name] = velocity.float()
        ahead = change + beta * velocity if self.config.nesterov else velocity
        return self.config.server_learning_rate * ahead


Client = fedpeft.Client


def on_text(given: Mapping[str, Any]) -> dict[str, Any]:
    """Smaller steps of the server's than a new classifier bears."""
    return {"server_learning_rate": 0.2}


check = fedpeft.check
stageable = fedpeft.stageable
check_samples = fedpeft.check_samples
adapt = fedpeft.adapt
traffic = fedpeft.traffic
client_flops = fedpeft.client_flops
fixed_flops = fedpeft.fixed_flops
