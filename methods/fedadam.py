"""FedAdam, FedYogi and FedAdagrad: Adaptive Federated Optimization (Reddi et al., ICLR 2021).

arXiv 2003.00295, algorithm 2: FedAvg whose server steps adaptively. With D the mean of the
clients' weights, by samples, less the w_t that they began with, and all by element:

    m <- beta1 * m + (1 - beta1) * D
    v <- beta2 * v + (1 - beta2) * D^2                  adam
    v <- v - (1 - beta2) * D^2 * sign(v - D^2)          yogi
    v <- v + D^2                                        adagrad
    w_{t+1} = w_t + eta * m / (sqrt(v) + tau)

Before the first round m = 0 and v = tau^2. A round without updates changes none of them. What is
trained is a variant of ``methods/peft/``, as for fedpeft. One way a client: 4 bytes a trainable
parameter.

From the paper: the steps, without a correction of bias and with v from D^2, both of which public
codes have otherwise; tau 1e-3; beta1 0.9 and beta2 0.99, with adagrad beta1 0. Ours: the default
eta, which the paper tunes for each task; buffers, such as those of batch normalisation, are the
mean's. An all-reduce (gloo) is refused: m and v are the server's.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from torch import Tensor, nn

from methods import Shard, fedpeft
from methods.shared.averaging import BY_OTHERS
from methods.shared.beside import not_with
from methods.shared.server_step import stepped


class Config(fedpeft.Config, frozen=True, forbid_unknown_fields=True, kw_only=True):
    rule: Literal["adam", "yogi", "adagrad"] = "adam"
    """How v follows D^2: FedAdam, FedYogi or FedAdagrad."""
    server_learning_rate: Annotated[float, msgspec.Meta(gt=0, le=1000)] = 0.03
    """eta: of the server's steps."""
    beta1: Annotated[float, msgspec.Meta(ge=0, lt=1)] = BY_OTHERS
    """Of m; absent: 0.9, and 0 with adagrad."""
    beta2: Annotated[float, msgspec.Meta(ge=0, lt=1), not_with("rule", "adagrad")] = 0.99
    """Of v; adagrad has none."""
    tau: Annotated[float, msgspec.Meta(gt=0, le=1000)] = 1e-3
    """The larger, the less adaptive."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta1 is None:
            own = 0.0 if self.rule == "adagrad" else 0.9
            msgspec.structs.force_setattr(self, "beta1", own)


class Server(fedpeft.Server):
    def __init__(self, config: Config, model: nn.Module, shard: Shard, seed: int) -> None:
        super().__init__(config, model, shard, seed)
        self.config = config
        self.first: dict[str, Tensor] = {}
        """m, float32, by parameter."""
        self.second: dict[str, Tensor] = {}
        """v, likewise."""

    def step(self, start: Mapping[str, Tensor], mean: dict[str, Tensor]) -> dict[str, Tensor]:
        return stepped(self.model, start, mean, self.movement)

    def movement(self, name: str, change: Tensor) -> Tensor:
        """The movement of one parameter, where D is ``change``."""
        config, square = self.config, change.square()
        first = config.beta1 * self.first.get(name, 0.0) + (1 - config.beta1) * change
        second = self.second.get(name, square.new_full((), config.tau**2))
        if config.rule == "adam":
            second = config.beta2 * second + (1 - config.beta2) * square
        elif config.rule == "yogi":
            second = second - (1 - config.beta2) * square * (second - square).sign()
        else:
            second = second + square
        self.first[name], self.second[name] = first.float(), second.float()
        return config.server_learning_rate * first / (second.sqrt() + config.tau)


def on_text(given: Mapping[str, Any]) -> dict[str, Any]:
    """Smaller steps of the server's than a new classifier bears."""
    return {"server_learning_rate": 3e-3}


Client = fedpeft.Client
check = fedpeft.check
stageable = fedpeft.stageable
check_samples = fedpeft.check_samples
adapt = fedpeft.adapt
traffic = fedpeft.traffic
client_flops = fedpeft.client_flops
fixed_flops = fedpeft.fixed_flops
