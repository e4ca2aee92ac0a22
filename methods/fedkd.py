"""FedKD: Communication-efficient federated learning via knowledge distillation.

Wu et al., Nature Communications 13, 2032 (2022), arXiv 2108.13323. Each client has a teacher t of
its own, the whole pretrained model, which never leaves it, and a student s, the model's first
blocks and a head, which all share. On its samples both learn, and from one another: on a batch
with cross-entropies CE_t and CE_s, and D = CE_t + CE_s, one Adam descends on

    CE_t + CE_s + [KL(s || t) + KL(t || s)] / D + 2 sum_l [MSE(H_s, H_t) + MSE(A_s, A_t)] / D,

H the tokens behind a block and A its attention maps: the student's l-th block from the last, from
0, against the teacher's (l * r)-th, of r blocks for each of the student's. KL and MSE are means
over elements. Of T rounds, in round t:

1. The server sends what a client lacks of the student ("start"): nothing, the last round's mean
   ("update"), or all of it ("student").
2. The client trains both, and sends the student's change ("update"). Of each matrix (P, Q) of it
   go U, S and V of its K largest singular values: the fewest whose squares sum to more than
   tau(t) of all squares, tau(t) = energy_start + t / T * (energy_end - energy_start).
3. The plain mean of these is cut by the same rule, is added to the student, and is what the next
   round sends.

Bytes of an update: 4 K (P + Q + 1) a matrix, or 4 P Q where that is not more; 4 a value of the
rest; embeddings are frozen and are not sent, nor is a language model's classifier that is one. Up
each round; down from round 2 to whom the server heard in the round before, and to others the dense
student; nothing in round 1. U, S and V go as one vector, from whose length K follows.

The paper's claim, from its abstract: up to 94.89 % less communication than FedAvg of the whole
model, 2.05 GB a client with UniLM over all rounds. It does not say there of which direction or
precision. To recompute it: an update's bytes each way, as above, to 4 n, student_blocks=4 of 12.

Read in the authors' code (wuch15/FedKD): the loss and which blocks it pairs, one Adam over both
whose state lasts, 12 and 4 blocks, frozen embeddings, tau and its 0.95 and 0.98, the mean without
weights, 1-D dense. Derived: when factors are more than the matrix. Reconstructed: attention maps
behind the softmax; T an option, energy_rounds, since a method does not know how many rounds a run
has. Different on purpose: D has no gradient (as_published: it has one, and a larger CE is paid
for), and is at least 1e-6; a matrix that takes all its values is sent dense, where the code drops
it; factors multiply as matrices, where the code has (U S) V with S a vector; the student has a head
that is sent, where the code has a local one common to both; the mean goes down when the next round
begins, so that who missed it can get the student instead.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

import msgspec
import torch
from torch import Tensor, nn

from methods import Fleet, Peer, Shard
from methods.distillation import adam, digest
from methods.distillation.mutual import Blocks, Pair, loss, student_of, tells_attention
from methods.shared import flops
from methods.shared.averaging import WeightedMean
from methods.shared.backbone import causal, staged
from methods.shared.beside import only_with
from methods.shared.local_training import learnt, load_trainable, trainable_state
from methods.shared.objective import scores
from methods.shared.singular import fewest, is_cut, most_values, sides, svd, svd_flops
from methods.split_model import size

State = Mapping[str, Tensor]
BY_ENERGY = only_with("rank", None)


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    student_blocks: Blocks = 2
    """How many of the model's blocks the student has, the first ones; all: as the teacher."""
    local_epochs: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 2
    """Passes over a client's samples a round."""
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 16
    """Samples."""
    learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 1e-3
    """Adam's, of teacher and student; its state lasts."""
    energy_start: Annotated[float, msgspec.Meta(gt=0, le=1), BY_ENERGY] = 0.95
    """tau before the first round; with 1 as energy_end too nothing is cut."""
    energy_end: Annotated[float, msgspec.Meta(gt=0, le=1), BY_ENERGY] = 0.98
    """tau from round energy_rounds on."""
    energy_rounds: Annotated[int, msgspec.Meta(ge=1, le=100_000), BY_ENERGY] = 20
    """T: rounds in which tau goes from its start to its end."""
    rank: Annotated[int, msgspec.Meta(ge=1, le=65536)] | None = None
    """K of every matrix that has as many singular values, in place of tau's."""
    attention_loss: bool = True
    """Have attention maps in the loss; false for models whose blocks do not tell them."""
    as_published: bool = False
    """Leave the divisor D in the gradient, as the authors' code does."""
    ranks: bool = False
    """Tell K of each matrix beside the accuracy: of the mean, and the clients' mean."""


def check(config: Config, model: nn.Module) -> None:
    """Raises ValueError where the model has too few blocks, or none that tell attention maps."""
    blocks = staged(model).blocks
    if config.student_blocks != "all" and config.student_blocks > len(blocks):
        raise ValueError(
            f"student_blocks = {config.student_blocks}: must be at most {len(blocks)}, the model's"
        )
    count = None if config.student_blocks == "all" else config.student_blocks
    parts = nn.ModuleList([*blocks[:count], staged(model).head])
    frozen = {id(each) for each in staged(model).embed.parameters()}
    sent = [each for each in parts.parameters() if id(each) not in frozen and each.dim() >= 2]
    if config.rank is not None and not any(is_cut(each, config.rank) for each in sent):
        raise ValueError(
            f"rank = {config.rank}: no matrix of the student is more numbers than its U, S and V; "
            f"take at most {max(map(most_values, sent), default=0)}"
        )
    if config.attention_loss and not all(map(tells_attention, blocks)):
        raise ValueError(
            "attention_loss = true: its blocks have no attention with query, key and heads; take "
            "attention_loss=false"
        )


def adapt(config: Config, model: nn.Module) -> nn.Module:
    """The model with its embedding frozen."""
    if config.rank is None and any(each.is_meta for each in model.parameters()):
        raise ValueError(
            "rank: must be given with compute = modelled, where there are no values to choose K by"
        )
    staged(model).embed.requires_grad_(False)
    return model


# Truncation


def energy(config: Config, number: int) -> float:
    """tau of a round."""
    passed = min(number / config.energy_rounds, 1.0)
    return config.energy_start + passed * (config.energy_end - config.energy_start)


def truncated(config: Config, number: int, update: State) -> dict[str, Tensor]:
    """The update as round ``number`` sends it: of matrices U, S and V, where they are less."""
    tau = energy(config, number)
    return {name: _factors(each, tau, config.rank) for name, each in update.items()}


def _factors(tensor: Tensor, tau: float, rank: int | None) -> Tensor:
    if not is_cut(tensor, rank) or not bool(tensor.isfinite().all()):
        # LAPACK is given finite numbers alone; others go as they are, and are refused.
        return tensor
    left, values, right = svd(tensor.reshape(sides(tensor)).double())
    count = fewest(values, tau) if rank is None else min(rank, len(values))
    if count > most_values(tensor):
        return tensor
    parts = left[:, :count].flatten(), values[:count], right[:count].flatten()
    packed = torch.cat(parts).to(tensor.dtype)
    return packed if bool(packed.isfinite().all()) else tensor


def check_update(tensors: State, like: State) -> None:
    """Raises ValueError where these are no update of ``like``, dense or in factors."""
    if tensors.keys() != like.keys():
        odd = min(tensors.keys() ^ like.keys())
        raise ValueError(f"tensors differ in {odd!r}")
    for name, expected in like.items():
        found = tensors[name]
        if found.dtype != expected.dtype:
            raise ValueError(f"{name} is {found.dtype}, expected {expected.dtype}")
        if found.shape != expected.shape and not _is_packed(found, expected):
            raise ValueError(
                f"{name} is {list(found.shape)}, expected {list(expected.shape)} or its K (P + Q + "
                f"1) values of U, S and V, K at most {most_values(expected)}"
            )


def _is_packed(found: Tensor, like: Tensor) -> bool:
    if like.dim() < 2 or found.dim() != 1:
        return False
    count, rest = divmod(len(found), sum(sides(like)) + 1)
    return not rest and count <= most_values(like)


def values_of(found: Tensor, like: Tensor) -> int:
    """K, of a matrix that is dense all there are."""
    rows, columns = sides(like)
    return min(rows, columns) if found.shape == like.shape else len(found) // (rows + columns + 1)


def dense(update: State, like: State) -> dict[str, Tensor]:
    """The update with U, S and V multiplied out; the same wherever it is done."""
    return {name: _dense(update[name], expected) for name, expected in like.items()}


def _dense(found: Tensor, like: Tensor) -> Tensor:
    if found.shape == like.shape:
        return found
    rows, columns = sides(like)
    count = values_of(found, like)
    left, values, right = found.double().split([rows * count, count, count * columns])
    product: Tensor = (left.view(rows, count) * values) @ right.view(count, columns)
    return product.to(like.dtype).view(like.shape)


def moved(start: State, update: State) -> dict[str, Tensor]:
    return {name: each + update[name] for name, each in start.items()}


# Server and client


class Server:
    def __init__(self, config: Config, model: nn.Module, shard: Shard, seed: int) -> None:
        self.config = config
        self.model = student_of(model, config.student_blocks)
        self.version = 0
        """How many means the student has."""
        self.update: dict[str, Tensor] = {}
        """The last of them, as it is sent."""
        self.heard: list[str] = []
        """Whose updates it took in the round before: they have all means but the last."""
        self.told: dict[str, float] = {}
        """Metrics of what the last round sent."""

    async def round(self, fleet: Fleet) -> None:
        # 1. Everybody gets what it lacks of the student; 2. is the clients'.
        start = trainable_state(self.model)
        await self._tell(fleet, start)
        # 3. Updates enter the mean as they come.
        mean, heard = WeightedMean(), []
        sent = defaultdict(list)
        accept = partial(check_update, like=start)
        async for message in fleet.gather("update", accept=accept):
            update = dense(message.tensors, start)
            if not all(bool(each.isfinite().all()) for each in moved(start, update).values()):
                fleet.refuse(message.sender, "it leads further than its numbers can tell")
                continue
            mean.add(update, weight=1)
            heard.append(message.sender)
            for name, value in self._facts(message.tensors, start, "up").items():
                sent[name].append(value)
        # In an order of their own: which came first is no question of the state.
        self.heard = sorted(heard)
        # 4. Their mean, cut as they are, moves the student; where none came, it stays.
        if found := mean.result():
            self.update = truncated(self.config, fleet.round, found)
            load_trainable(self.model, moved(start, dense(self.update, start)))
            self.version += 1
            self.told = {name: math.fsum(each) / len(each) for name, each in sent.items()}
            self.told |= self._facts(self.update, start, "down")

    async def _tell(self, fleet: Fleet, start: State) -> None:
        heard = [client for client in fleet.clients if client in self.heard]
        others = [client for client in fleet.clients if client not in self.heard]
        if not self.version:
            await fleet.broadcast("start", {}, form="none", version=0)
            return
        for form, clients, tensors in (("update", heard, self.update), ("student", others, start)):
            if clients:
                version = self.version
                await fleet.broadcast("start", {}, clients=clients, form=form, version=version)
                await fleet.broadcast(form, tensors, clients=clients)

    def _facts(self, update: State, like: State, way: str) -> dict[str, float]:
        """Share of the dense values that are sent, and with ``ranks`` K of each matrix."""
        found = {f"share_{way}": size(update) / size(like)}
        if self.config.ranks:
            for name, each in like.items():
                if each.dim() >= 2:
                    found[f"rank_{way}.{name}"] = values_of(update[name], each)
        return found

    def evaluate(self, inputs: Tensor, targets: Tensor) -> dict[str, float]:
        """The student's, and what of it was sent."""
        return scores(self.model, inputs, targets) | self.told


class Client:
    received = ("student",)

    def __init__(self, config: Config, model: nn.Module, shard: Shard, seed: int) -> None:
        self.config = config
        self.pair = Pair(model, config.student_blocks, attention=config.attention_loss)
        self.student = self.pair.student
        self.shard = shard
        self.generator = torch.Generator().manual_seed(seed)
        self.optimizer = adam(self.pair, config.learning_rate)
        self.start = trainable_state(self.student)
        """The student that all share, as far as this client has heard."""
        self.version = 0
        """How many means it has."""

    def round(self, peer: Peer) -> None:
        # 1. The student that all share.
        self._catch_up(peer)
        load_trainable(self.student, self.start)
        # 2. It and the teacher learn from the samples, and from one another.
        digest(
            self.pair,
            self.shard.inputs,
            self.shard.targets,
            partial(loss, as_published=self.config.as_published),
            self.optimizer,
            epochs=self.config.local_epochs,
            batch_size=self.config.batch_size,
            generator=self.generator,
        )
        end = trainable_state(self.student)
        update = {name: end[name] - each for name, each in self.start.items()}
        peer.send("update", truncated(self.config, peer.round, update))

    def _catch_up(self, peer: Peer) -> None:
        told = peer.receive("start", like={}).details
        form, version = told["form"], int(told["version"])
        if form == "student":
            arrived = peer.receive(form, like=self.start).tensors
            self.start = {name: each.clone() for name, each in arrived.items()}
            self.version = version
        elif form == "update":
            update = peer.receive(form, accept=partial(check_update, like=self.start)).tensors
            if version != self.version + 1:
                raise peer.refuse(f"mean {version} of a student that has {self.version} here")
            self.start = moved(self.start, dense(update, self.start))
            self.version = version
        elif version != self.version:
            raise peer.refuse(f"no student {version}, and here it is {self.version}")

    def evaluate(self, inputs: Tensor, targets: Tensor) -> dict[str, float]:
        """The teacher's."""
        return scores(self.pair.teacher, inputs, targets)


def on_text(given: Mapping[str, Any]) -> dict[str, Any]:
    """A student of all blocks: of a language model a few of them know little, and learn slowly."""
    return {"student_blocks": "all", "attention_loss": False, "learning_rate": 5e-4}


def other_metrics(config: Config) -> tuple[str, ...]:
    return ("share_up", "share_down")


def traffic(config: Config, model: nn.Module) -> tuple[int, int]:
    """Up an update, of whose matrices without ``rank`` nothing is known; down nothing at first."""

    def least(tensor: Tensor) -> int:
        if not is_cut(tensor, config.rank):
            return tensor.numel()
        return min(config.rank or 0, *sides(tensor)) * (sum(sides(tensor)) + 1)

    student = learnt(student_of(model, config.student_blocks)).values()
    return sum(least(each) * each.element_size() for each in student), 0


def client_flops(config: Config, model: nn.Module, image: Tensor) -> float:
    """Each epoch: both models forward and backward."""
    pair = Pair(model, config.student_blocks, attention=config.attention_loss)
    each = image.shape if causal(model) else image.shape[:1]
    label = torch.zeros(each, dtype=torch.int64, device=image.device)

    def of_both(images: Tensor) -> Tensor:
        return loss(pair(images), label, as_published=config.as_published)

    return config.local_epochs * flops.step(of_both, image, pair)


def fixed_flops(config: Config, model: nn.Module, image: Tensor) -> list[float]:
    """Singular values of each matrix, and from round 2 on the mean's product, at its most."""
    student = learnt(student_of(model, config.student_blocks)).values()
    cut = [each for each in student if is_cut(each, config.rank)]
    most = [min(config.rank or each.numel(), most_values(each), *sides(each)) for each in cut]
    found = sum(svd_flops(*sides(each)) for each in cut)
    product = sum(2 * each.numel() * count for each, count in zip(cut, most, strict=True))
    return [found, found + product]
