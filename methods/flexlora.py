"""FlexLoRA: Federated Fine-tuning of LLMs under Heterogeneous Tasks and Client Resources.

Bai et al., NeurIPS 2024, arXiv 2402.11505. Clients train LoRA of different ranks r_k, which the
server sums as whole matrices, weighted by samples, and splits again. Round t, for each adapted
layer, with s_k = lora_alpha / r_k and p_k = n_k / sum n:

    W = sum_k p_k s_k B_k A_k = U S V^T,    client k gets A = V^T[:r_k], B = U[:, :r_k] S / s_k.

The sum is exact, and what a client gets is the best approximation of it that its rank has. W is a
product of all B side by side and all A below one another: where all ranks together are less than W
has rows and columns, it is split by a QR of each and an SVD as large as the ranks, without W. One
way a client: 4 r_k (inputs + outputs) bytes a layer, and 4 (width * classes + classes) of
classifier.

From the authors' code (alibaba/FederatedScope, branch FlexLoRA): the sum with its scales, the
split, lora_alpha 16. There all linear layers have adapters; here query and value have, as
everywhere in this project. Ours: in round 1, where W is zero, the first rows of one A that is drawn
for all; the server's own model, which the run's accuracy is of, has the highest of the ranks.

Payload stages work on what goes up, a client's adapters less those that it was sent, which are of
its rank. Each round's split has another basis: what an update left out is not of the next one's
values, so there is no feedback; and down nothing differs from what a client has by little.
"""

from collections.abc import Callable, Mapping
from typing import Annotated

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods import Fleet, Peer, Shard, fedavg
from methods.payload.chain import Chain
from methods.peft import lora
from methods.shared import low_rank
from methods.shared.local_training import learnt, load_trainable, train, trainable_state
from methods.shared.low_rank import Update, first
from methods.shared.objective import scores


class Config(low_rank.Options, frozen=True, forbid_unknown_fields=True, kw_only=True):
    lora_alpha: Annotated[float, msgspec.Meta(gt=0)] = 16.0
    """An adapter's output is scaled by lora_alpha / its rank."""


class Server:
    kind = lora.KIND

    def __init__(self, config: low_rank.Options, model: nn.Module, shard: Shard, seed: int) -> None:
        self.config = config
        self.model = model

    async def round(self, fleet: Fleet) -> None:
        state = trainable_state(self.model)

        async def ask(client: str) -> Update:
            return await self.asked(fleet, client, state)

        # 1. Each client gets what its rank has place for, and sends it back trained.
        updates = await low_rank.answers(fleet, ask)
        # 2. What they sent, as adapters of the highest rank; where none came, the model stays.
        if updates:
            load_trainable(self.model, self.merged(updates, fleet.samples))
            load_trainable(self.model, low_rank.mean_of_others(updates, fleet.samples))

    async def asked(self, fleet: Fleet, client: str, state: Update) -> Update:
        part = self.part(state, self.config.rank_of(client))
        await fleet.send(client, self.kind, part)
        return (await fleet.receive(client, self.kind, like=part, base=part)).tensors

    def part(self, state: Update, rank: int) -> Update:
        """A client's part of the state: its rank's, with B at its scale."""
        own = self.config.scale(self.config.highest) / self.config.scale(rank)
        return {
            name: each * own if name.endswith("lora_B") else each
            for name, each in first(state, rank).items()
        }

    def merged(
        self, updates: Mapping[str, Update], samples: Mapping[str, int]
    ) -> dict[str, Tensor]:
        """New adapters of the highest rank."""
        highest = self.config.highest
        shares = low_rank.shares(updates, samples)
        found = {}
        for path in lora.adapters(self.model):
            rows, columns = [], []
            for client, share in shares.items():
                a, b = low_rank.factors(updates[client], path)
                rows.append(a)
                columns.append(share * self.config.scale(self.config.rank_of(client)) * b)
            left, sizes, right = split(torch.cat(columns, dim=1), torch.cat(rows), highest)
            found[f"{path}.lora_A"] = right[:highest]
            found[f"{path}.lora_B"] = (left * sizes)[:, :highest] / self.config.scale(highest)
        return found

    def evaluate(self, inputs: Tensor, targets: Tensor) -> dict[str, float]:
        return scores(self.model, inputs, targets)


def split(b: Tensor, a: Tensor, least: int) -> tuple[Tensor, Tensor, Tensor]:
    """U, S and V^T of ``b`` @ ``a``, at least ``least`` of each and no more than they have.

    Where the factors have fewer columns than their product, of these and not of the product.
    """
    rank = a.shape[0]
    if rank >= min(b.shape[0], a.shape[1]):
        left, sizes, right = torch.linalg.svd(b @ a, full_matrices=False)
        return left, sizes, right
    # Of zeros QR makes columns that are orthonormal all the same, as A must be to be trained.
    missing = max(0, least - rank)
    basis_b, triangle_b = torch.linalg.qr(F.pad(b, (0, missing)))
    basis_a, triangle_a = torch.linalg.qr(F.pad(a, (0, 0, 0, missing)).T)
    left, sizes, right = torch.linalg.svd(triangle_b @ triangle_a.T)
    return basis_b @ left, sizes, right @ basis_a.T


class Client:
    kind = Server.kind
    received = ("model",)

    def __init__(self, config: low_rank.Options, model: nn.Module, shard: Shard, seed: int) -> None:
        self.config = config
        self.model = model
        self.shard = shard
        self.generator = torch.Generator().manual_seed(seed)
        self.rank = config.rank_of(shard.client)
        low_rank.resize(config, model, self.rank)
        self.number = 1
        """The present round's."""

    def round(self, peer: Peer) -> None:
        self.number = peer.round
        start = peer.receive(self.kind, like=learnt(self.model)).tensors
        load_trainable(self.model, start)
        self.train()
        peer.send(self.kind, trainable_state(self.model), base=start)

    def train(self, penalty: Callable[[], Tensor] | None = None) -> None:
        train(
            self.model,
            self.shard,
            fedavg.new_optimizer(self.config, self.model, self.number),
            epochs=self.config.local_epochs,
            batch_size=self.config.batch_size,
            generator=self.generator,
            steps=self.config.local_steps,
            penalty=penalty,
        )


stageable = ("up",)


def check_stages(up: Chain, down: Chain) -> None:
    low_rank.refuse_feedback(up, "each round splits another sum, in rows of another basis")


check = low_rank.check
adapt = low_rank.adapt
traffic = low_rank.traffic
client_flops = low_rank.client_flops
fixed_flops = low_rank.fixed_flops
