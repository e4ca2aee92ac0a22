"""FedBuff: Federated Learning with Buffered Asynchronous Aggregation (Nguyen et al., AISTATS 2022).

Clients train one after the other's heels, each on the newest weights there were when it began, and
the server steps whenever its buffer holds K changes, without waiting for anybody:

    w <- w + learning_rate * sum_i d_i * (1 + staleness_i)^-0.5 / K,

algorithm 1 with the paper's damping of stale changes; d_i is what client i's training changed,
and its staleness how many steps the server took meanwhile. A round is a step. Every change counts
alike, however many samples it stands for. Where a round's limit ends a step before K have come,
those that have not count as no change.

``--clients-per-round`` is the paper's concurrency: how many train at once, all by default. Whoever
has answered a step's weights waits for the next step's: in the paper, with its millions of
clients, nobody is asked twice for one step either. What is trained is a variant of
``methods/peft/``, as for fedpeft; one way a client: 4 bytes a trainable parameter.
"""

from typing import Annotated

import msgspec
from torch import Tensor, nn

from methods import UPDATE, Fleet, Peer, Shard, fedpeft
from methods.shared.averaging import WeightedMean
from methods.shared.local_training import learnt, load_trainable, trainable_state

asynchronous = True


adapt = fedpeft.adapt


class Config(fedpeft.Config, frozen=True, forbid_unknown_fields=True, kw_only=True):
    buffer_size: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 10
    """K: changes to a step of the server, at most as many as there are clients."""
    server_learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    """Of the server's steps."""
    staleness_exponent: Annotated[float, msgspec.Meta(ge=0, le=10)] = 0.5
    """A change of staleness s counts (1 + s) to the power of minus this; 0: all alike."""


def check(config: Config, model: nn.Module) -> None:
    """Raises ValueError where the model lacks what the variant or the privacy needs."""
    if config.dp == "client":
        raise ValueError(
            "dp = 'client': its account is of rounds that draw their clients, which fedbuff has "
            "not; take dp=sample, or method fedavg or fedpeft"
        )
    fedpeft.check(config, model)


class Server(fedpeft.Server):
    def __init__(self, config: Config, model: nn.Module, shard: Shard, seed: int) -> None:
        super().__init__(config, model, shard, seed)
        self.config = config
        self.staleness: list[int] = []

    async def round(self, fleet: Fleet) -> None:
        # 1. Who is free trains on the present weights; others are still at earlier ones.
        state = trainable_state(self.model)
        buffer = WeightedMean()
        self.staleness = []
        size = min(self.config.buffer_size, fleet.joined)
        # 2. Changes fill the buffer as they come, the stale ones damped.
        async for update in fleet.keep_busy(self.kind, state, like=state):
            if not self.privacy.take(update, fleet):
                continue
            steps = fleet.round - update.round
            damped = (1 + steps) ** -self.config.staleness_exponent
            buffer.add({name: damped * each for name, each in update.tensors.items()}, weight=1)
            self.staleness.append(steps)
            if len(self.staleness) == size:
                break
        # 3. One step by their sum over K; where none came, the model stays.
        rate = self.config.server_learning_rate * buffer.weight / size
        mean = buffer.result()
        load_trainable(self.model, {name: state[name] + rate * mean[name] for name in mean})

    def evaluate(self, inputs: Tensor, targets: Tensor) -> dict[str, float]:
        metrics = super().evaluate(inputs, targets)
        if self.staleness:
            mean = sum(self.staleness) / len(self.staleness)
            metrics |= {"staleness_mean": mean, "staleness_max": max(self.staleness)}
        return metrics


class Client(fedpeft.Client):
    def round(self, peer: Peer) -> None:
        self.number = peer.round
        start = peer.receive(self.kind, like=learnt(self.model)).tensors
        end = self.trained(start)
        change = {name: end[name] - start[name] for name in end}
        peer.send(self.kind, change, base=UPDATE, **self.privacy.details)


def other_metrics(config: Config) -> tuple[str, ...]:
    return ("staleness_mean", "staleness_max")


stageable = ("up",)
check_samples = fedpeft.check_samples
traffic = fedpeft.traffic
client_flops = fedpeft.client_flops
fixed_flops = fedpeft.fixed_flops
