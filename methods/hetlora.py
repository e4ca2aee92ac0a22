"""HetLoRA: Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models.

Cho et al., EMNLP 2024, arXiv 2401.06432. The global adapters have the highest of the clients'
ranks. Round t: client k takes their first r_k rows of A and columns of B and trains them; the
server pads what comes back with zeros, and takes the mean of the As and of the Bs by

    ||B_k A_k||_F / sum_i ||B_i A_i||_F.

One way a client: 4 r_k (inputs + outputs) bytes a layer, and 4 (width * classes + classes) of
classifier. The mean of the As times that of the Bs is not the mean of the products.

With self_prune, clients also minimise prune_lambda ||A[c:]||_F ||B[:, c:]||_F over all layers,
where c = prune_gamma r_k, rounded down; who ends with less of that than it began with leaves those
rows and columns out, and has rank c from then on. Ranks go both ways then, in messages of kind
"rank" without a payload.

Recalled from the paper: truncation, padding, weights, the penalty, when a rank is pruned; its
lambda and gamma were read in third parties' code. Ours: a norm over all layers together, one rank
for all layers, the classifier's mean by samples, one scale for all ranks where no lora_alpha is
given, since ranks share their rows.

Payload stages work on what goes up, a client's adapters less those that it was sent, which are of
its rank; once it is pruned, less the rows and columns that it has left. Down, clients are sent
parts of different ranks, and what each of them has is known of one message for all alone.
"""

from collections.abc import Mapping
from typing import Annotated

import msgspec
from torch import Tensor, nn

from methods import Fleet, Peer, Shard, flexlora
from methods.peft import lora
from methods.shared import low_rank
from methods.shared.averaging import WeightedMean
from methods.shared.beside import only_with
from methods.shared.local_training import learnt, load_trainable, trainable_state
from methods.shared.low_rank import Update, first, padded

PRUNING = only_with("self_prune", True)


class Config(low_rank.Options, frozen=True, forbid_unknown_fields=True, kw_only=True):
    self_prune: bool = False
    """Clients lower their ranks by themselves."""
    prune_lambda: Annotated[float, msgspec.Meta(ge=0), PRUNING] = 1e-3
    """Weight of the norm of what could be pruned, beside the cross-entropy."""
    prune_gamma: Annotated[float, msgspec.Meta(gt=0, lt=1), PRUNING] = 0.99
    """The share of a rank that a pruning leaves, rounded down, and at least rank 1."""

    def pruned(self, rank: int) -> int:
        return max(1, int(self.prune_gamma * rank))


class Server(flexlora.Server):
    config: Config

    def __init__(self, config: Config, model: nn.Module, shard: Shard, seed: int) -> None:
        super().__init__(config, model, shard, seed)
        self.ranks: dict[str, int] = {}
        """As each client last sent it."""

    async def asked(self, fleet: Fleet, client: str, state: Update) -> Update:
        if not self.config.self_prune:
            return await super().asked(fleet, client, state)
        rank = self.ranks.get(client, self.config.rank_of(client))
        await fleet.send(client, "rank", {}, rank=rank)
        start = self.part(state, rank)
        await fleet.send(client, self.kind, start)
        told = (await fleet.receive(client, "rank", like={})).details.get("rank")
        fewer = self.config.pruned(rank)
        if told not in (rank, fewer):
            raise fleet.refuse(client, f"rank = {told!r}: must be {rank}, or {fewer} if pruned")
        left = rank if told == rank else fewer
        part = first(start, left)
        return (await fleet.receive(client, self.kind, like=part, base=part)).tensors

    def part(self, state: Update, rank: int) -> Update:
        return first(state, rank)

    def merged(
        self, updates: Mapping[str, Update], samples: Mapping[str, int]
    ) -> dict[str, Tensor]:
        self.ranks |= {client: low_rank.rank_of(update) for client, update in updates.items()}
        sizes = {client: self.size(update) for client, update in updates.items()}
        if not any(sizes.values()):
            # Nobody has changed anything, or nothing has a value.
            sizes = low_rank.shares(updates, samples)
        mean = WeightedMean()
        for client, update in updates.items():
            whole = padded(low_rank.of_adapters(update), self.config.highest)
            mean.add(whole, weight=sizes[client])
        return mean.result()

    def size(self, update: Update) -> float:
        """||B A||_F over all layers, without a product as large as a layer."""
        square = 0.0
        for path in lora.adapters(self.model):
            a, b = low_rank.factors(update, path)
            square += float(((b.T @ b) * (a @ a.T)).sum())
        # Rounding can leave it below zero.
        return float(max(0.0, square) ** 0.5)


class Client(flexlora.Client):
    config: Config

    def round(self, peer: Peer) -> None:
        if not self.config.self_prune:
            super().round(peer)
            return
        self.number = peer.round
        # 1. What the server has of its rank; beyond that all is zero, and gets no gradient.
        told = peer.receive("rank", like={}).details.get("rank")
        rank = min(told, self.rank) if isinstance(told, int) and told >= 1 else self.rank
        start = peer.receive(self.kind, like=first(learnt(self.model), rank)).tensors
        load_trainable(self.model, padded(start, self.rank))
        # 2. Train, and prune what has become less.
        fewer = self.config.pruned(rank)
        before = float(self.tail(fewer, rank).detach())
        self.train(penalty=lambda: self.config.prune_lambda * self.tail(fewer, rank))
        if float(self.tail(fewer, rank).detach()) < before:
            rank = fewer
        # 3. What is left.
        peer.send("rank", {}, rank=rank)
        left = first(trainable_state(self.model), rank)
        peer.send(self.kind, left, base=first(start, rank))

    def tail(self, fewer: int, rank: int) -> Tensor:
        """||A[fewer:rank]||_F ||B[:, fewer:rank]||_F, summed over the layers; 0-dim."""
        total = next(self.model.parameters()).new_zeros(())
        for each in lora.adapters(self.model).values():
            total = total + each.lora_A[fewer:rank].norm() * each.lora_B[:, fewer:rank].norm()
        return total


stageable = ("up",)
check = low_rank.check
adapt = low_rank.adapt
traffic = low_rank.traffic
client_flops = low_rank.client_flops
fixed_flops = low_rank.fixed_flops
