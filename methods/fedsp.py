"""FedSP: Tunable Soft Prompts are Messengers in Federated Learning (Dong et al., 2023).

Findings of EMNLP, arXiv 2311.06805. The language model stays at the server, frozen. Clients train
on an auxiliary model: its embedding, its first block applied L times with the same weights, its
last norm and classifier. What goes to and fro is a prefix: for each of the L layers keys and values
of P places that attention reads before those of the tokens.

Once: the server brings the auxiliary model's last hidden states (behind the norm, without a prefix)
near to the model's, by their mean squared error, on text of its own.
Round t:
1. the server sends the prefix, and to whom it has not heard from yet the auxiliary model;
2. client k trains the auxiliary model for ``local_steps`` with the prefix frozen, then the prefix
   for as many with the auxiliary model frozen, both by cross-entropy of the next token; the
   auxiliary model stays there as it is now, and so do both optimizers' states;
3. it sends the prefix; the server takes the mean weighted by n_k,
4. and trains that in the whole model, for as many steps, on its own text. So it goes out next.

Payload bytes, b = 4, H features of a token's keys: each round each way P*L*2*H*b; with
``projection`` J, (P*W + W*J + J + J*2*L*H + 2*L*H)*b, W features of a token. Once down to each
client the auxiliary model: b * (vocabulary * W, twice where the classifier is not tied to the
embedding, learnt positions, one block, the norm), whatever L is.

From the paper or its authors' code (FederatedScope, branch fedsp): all of the above; that places
of tokens are counted without the prefix; prefix 40, 10 steps, AdamW 5e-4 with decay 0.01, linear
warm-up over a tenth of all steps and as linear a way down, 5,000 steps of alignment. The code has
equal shares of the data at clients and server, and weighs by samples trained on in the round, which
are as many for all. Deliberately different: the prefix travels in the first round too, where their
message has the auxiliary model alone and clients begin with values of their own; rates change by
round, not by step; a prefix's first values are near 0, where theirs have deviation 1, and its rate
is higher; fewer steps are the defaults; ``epsilon`` is for float32, where 1e-4 is for their
float16. The server's text is ``server_samples`` sequences held out of the training set, of which it
learns all tokens but padding, questions as well as answers. The prefix has no dropout.

Claims: the paper has less communication and computation than sending the model, without a figure
that could be verified. By its own sizes (calculated) a prefix is 24,576,000 B one way in GPT2-XL
and 15,728,640 B in OPT-1.3B, half in float16, which its code takes; the one-off auxiliary model,
which no such count has, is as much as 9.2 and 20 rounds of prefixes both ways.
"""

from __future__ import annotations

import copy
from typing import Annotated

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods import Fleet, Peer, Shard
from methods.shared import flops
from methods.shared.averaging import WeightedMean, with_unsaid
from methods.shared.backbone import causal, staged
from methods.shared.beside import not_with
from methods.shared.local_training import (
    learnt,
    load_trainable,
    train,
    trainable_state,
    without_values,
)
from methods.shared.objective import IGNORED, scores
from methods.shared.prefix import Prefix, Prefixed, keys_of
from testbed.seeds import derive

stageable = ("up", "down")
Rate = Annotated[float, msgspec.Meta(gt=0)]


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    prefix_length: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 5
    """P: places of the prefix in each layer; 40 in the paper, which take more attention."""
    projection: Annotated[int, msgspec.Meta(ge=1, le=65536)] | None = None
    """J: hidden features through which a prefix is learnt, 512 in the paper's code; absent: its
    own values are."""
    prefix_deviation: Annotated[float, msgspec.Meta(ge=0)] = 0.02
    """Of a prefix's first values; 1 in the paper's code, which disturbs a small model for long."""
    local_steps: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 10
    """Batches a round, all full, of a client's auxiliary model, of its prefix, and of the server's
    prefix."""
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 8
    """Sequences; 16 in the paper."""
    learning_rate: Rate = 5e-4
    """AdamW's of the auxiliary model, at clients; its state lasts."""
    prefix_learning_rate: Rate = 3e-2
    """AdamW's of the prefix, at clients and server; its state lasts. 5e-4 in the paper."""
    weight_decay: Annotated[float, msgspec.Meta(ge=0)] = 0.01
    epsilon: Rate = 1e-8
    """AdamW's; 1e-4 in the paper's code."""
    rate_rounds: Annotated[int, msgspec.Meta(ge=1, le=100_000)] | None = None
    """Rounds in whose first tenth both rates go up, and then down to 0; absent: they stay."""
    align_steps: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 40
    """Batches by which the server aligns the auxiliary model; 5,000 in the paper's code."""
    align_learning_rate: Annotated[Rate, not_with("align_steps", 0)] = 5e-4
    """AdamW's at its highest."""
    server_samples: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 100
    """Sequences that the server has to train on, taken from the training set."""


def auxiliary_of(model: Prefixed) -> Prefixed:
    """Its embedding, first block and head, copied, under as many prefixes."""
    one = Prefixed(model, nn.ModuleList(model.blocks[:1]), model.prefix)
    return copy.deepcopy(one)


def train_only(model: Prefixed, *parts: nn.Module) -> None:
    """Have only the parameters of ``parts`` require a gradient."""
    model.requires_grad_(False)
    for part in parts:
        part.requires_grad_(True)


def check(config: Config, model: nn.Module) -> None:
    """Raises ValueError where it is no causal language model, or attends in a way of its own."""
    if not causal(model):
        raise ValueError(
            "a prefix is learnt by the next token of text: take a causal language model, and of "
            "images method fedpeft with variant=prompt"
        )
    if not hasattr(staged(model).head, "norm"):
        raise ValueError("its head has no norm, behind which the auxiliary model is aligned")
    keys_of(model)


def adapt(config: Config, model: nn.Module) -> nn.Module:
    stages = staged(model)
    keys, like = keys_of(model), next(model.parameters())
    size = config.prefix_length, len(stages.blocks), keys
    prefix = Prefix(
        *size,
        stages.spec.width,
        like.detach(),
        hidden=config.projection,
        deviation=config.prefix_deviation,
    )
    found = Prefixed(model, stages.blocks, prefix)
    train_only(found, prefix)
    return found


def public_samples(config: Config) -> int:
    return config.server_samples


def following(ids: Tensor) -> Tensor:
    """Targets (n, tokens) of text that has none: the id that comes next; of padding IGNORED.

    Padding is what repeats itself up to the end.
    """
    padding = (ids == ids[:, -1:]).flip(1).cumprod(dim=1).flip(1).bool()
    return ids.roll(-1, dims=1).masked_fill(padding, IGNORED)


def rate_at(done: float) -> float:
    """Share of the highest rate when so much of all is done, 0 to 1."""
    return min(10 * done, (1 - done) / 0.9) if done < 1 else 0.0


def adamw(config: Config, rate: float, *parts: nn.Module) -> torch.optim.AdamW:
    # Tied parts have the same parameter, and an optimizer takes it once.
    parameters = {id(each): each for part in parts for each in part.parameters()}
    return torch.optim.AdamW(
        parameters.values(), lr=rate, eps=config.epsilon, weight_decay=config.weight_decay
    )


def take_rate(config: Config, optimizer: torch.optim.Optimizer, rate: float, number: int) -> None:
    """Give the optimizer its rate for a round."""
    if config.rate_rounds is not None:
        rate *= rate_at((number - 0.5) / config.rate_rounds)
    for group in optimizer.param_groups:
        group["lr"] = rate


class Server:
    def __init__(self, config: Config, model: Prefixed, shard: Shard, seed: int) -> None:
        self.config = config
        self.model = model
        self.shard = shard._replace(inputs=shard.public, targets=following(shard.public))
        self.generator = torch.Generator().manual_seed(derive(seed, "server's text"))
        self.optimizer = adamw(config, config.prefix_learning_rate, model.prefix)
        self.auxiliary: dict[str, Tensor] = {}
        """As it is sent; empty before it is aligned."""
        self.heard: list[str] = []
        """Who has shown to have it."""

    async def round(self, fleet: Fleet) -> None:
        if not self.auxiliary:
            self.auxiliary = self._aligned()
        # 1. The prefix to everybody, and the auxiliary model to whom it may be new.
        for new in (False, True):
            clients = [each for each in fleet.clients if (each not in self.heard) == new]
            if clients:
                await fleet.broadcast("start", {}, clients=clients, auxiliary=int(new))
                if new:
                    await fleet.broadcast("auxiliary", self.auxiliary, clients=clients)
        state = trainable_state(self.model)
        sent = await fleet.broadcast("prefix", state, base="held")
        # 3. Prefixes enter the mean as they come; 2. is the clients'.
        mean, heard = WeightedMean(), set(self.heard)
        async for message in fleet.gather("prefix", like=state, base=sent):
            mean.add(message.tensors, weight=fleet.samples[message.sender])
            heard.add(message.sender)
        # In an order of their own: which came first is no question of the state.
        self.heard = sorted(heard)
        # 4. Their mean goes on in the whole model; where none came, the prefix stays.
        if found := mean.result():
            load_trainable(self.model, with_unsaid(found, state, sent))
            take_rate(self.config, self.optimizer, self.config.prefix_learning_rate, fleet.round)
            self._train()

    def _aligned(self) -> dict[str, Tensor]:
        """The auxiliary model's parameters, after its hidden states came near to the model's."""
        config, ids = self.config, self.shard.inputs
        teacher, student = self.model.eval(), auxiliary_of(self.model)
        train_only(student, *student.base)
        no_prefix = self.model.prefix().detach()[..., :0, :]
        optimizer = adamw(config, config.align_learning_rate, *student.base)
        drawn = torch.randint(
            len(ids), (config.align_steps, config.batch_size), generator=self.generator
        )
        batches = list(drawn)
        for step, batch in enumerate(
            flops.each_size(batches) if without_values(teacher) else batches
        ):
            for group in optimizer.param_groups:
                group["lr"] = config.align_learning_rate * rate_at((step + 0.5) / len(batches))
            with torch.no_grad():
                aim = teacher.hidden(ids[batch], no_prefix)
            optimizer.zero_grad(set_to_none=True)
            F.mse_loss(student.hidden(ids[batch], no_prefix), aim).backward()
            optimizer.step()
        return trainable_state(student)

    def _train(self) -> None:
        config = self.config
        train(
            *(self.model, self.shard, self.optimizer),
            epochs=1,
            batch_size=config.batch_size,
            generator=self.generator,
            steps=config.local_steps,
        )

    def evaluate(self, inputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Those of the whole model with the prefix."""
        return scores(self.model, inputs, targets)


class Client:
    def __init__(self, config: Config, model: Prefixed, shard: Shard, seed: int) -> None:
        self.config = config
        self.shard = shard
        self.model = auxiliary_of(model)
        self.generator = torch.Generator().manual_seed(seed)
        self.optimizer = adamw(config, config.learning_rate, *self.model.base)
        self.prefix_optimizer = adamw(config, config.prefix_learning_rate, self.model.prefix)

    def round(self, peer: Peer) -> None:
        # 1. The auxiliary model, where it is new, and the prefix.
        if peer.receive("start", like={}).details["auxiliary"]:
            train_only(self.model, *self.model.base)
            load_trainable(self.model, peer.receive("auxiliary", like=learnt(self.model)).tensors)
        train_only(self.model, self.model.prefix)
        start = peer.receive("prefix", like=learnt(self.model), base="held").tensors
        load_trainable(self.model, start)
        # 2. The auxiliary model learns under the prefix, then the prefix in that.
        rates = self.config.learning_rate, self.config.prefix_learning_rate
        self._train(self.optimizer, rates[0], peer.round, *self.model.base)
        self._train(self.prefix_optimizer, rates[1], peer.round, self.model.prefix)
        peer.send("prefix", trainable_state(self.model), base=start)

    def _train(
        self, optimizer: torch.optim.Optimizer, rate: float, number: int, *parts: nn.Module
    ) -> None:
        train_only(self.model, *parts)
        take_rate(self.config, optimizer, rate, number)
        train(
            *(self.model, self.shard, optimizer),
            epochs=1,
            batch_size=self.config.batch_size,
            generator=self.generator,
            steps=self.config.local_steps,
        )


def traffic(config: Config, model: nn.Module) -> tuple[int, int]:
    """Both ways the prefix; the auxiliary model, once, is left out."""
    size = sum(each.numel() * each.element_size() for each in learnt(model).values())
    return size, size


def client_flops(config: Config, model: nn.Module, image: Tensor) -> float:
    """Nothing: its steps are as many whatever it has."""
    return 0.0


def fixed_flops(config: Config, model: Prefixed, image: Tensor) -> float:
    """Each step: the auxiliary model forward and backward, to its weights or to the prefix."""
    own = auxiliary_of(model)
    found = 0
    for parts in (own.base, [own.prefix]):
        train_only(own, *parts)
        found += flops.step(own, image, *parts)
    return float(config.local_steps * config.batch_size * found)
