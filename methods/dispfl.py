"""DisPFL: Personalized FL via Decentralized Sparse Training (Dai et al., ICML 2022, 2206.00187).

There is no global model: client k has weights w_k and a mask m_k of its own, and trains what its
mask keeps. In round t it

1. draws its neighbours N_k, of those that are in the round;
2. takes w_j m_j and m_j of each as the last round left them: w = sum_j w_j m_j / sum_j m_j over N_k
   and itself, 0 where none of their masks keeps a weight;
3. trains w m'_k, m'_k its present mask, which is applied again after each step: E epochs of SGD
   without momentum, of rate lr decay^(t - 1), gradients clipped by their norm;
4. makes its next mask: of each tensor with nnz kept weights the ceil(r nnz) smallest are dropped,
   r = drop / 2 (1 + cos(pi (t - 1) / T)), and as many of those not kept grow back, as 0, by chance
   or by the size of their gradient on a batch. What it sends next are the weights of 3. with m'_k.

Densities are Erdos-Renyi kernels' (ERK): eps sum(dims) / prod(dims) of a tensor is kept, eps such
that ``density`` of all weights is; where it is above 1 the tensor is kept whole, and eps is solved
again for the others. So all clients keep equally many of a tensor, and mostly all of a vector.

Payload bytes a neighbour: 4 nnz + n / 8, rounded up, of n weights of which nnz are kept: 645,262
for the shipped model at 0.5. A client gets |N_k| of these, and sends one to each that drew it. The
server says who is in the round, a bit a client, and hears when each is done, without payload.

The paper's claim: the busiest node's bytes, against those of FedAvg's server. It counts values
alone, 4 bytes each, one way, a round: 10 neighbours of 100 with ResNet-18 at 0.5 are 10 times 22.35
MB, and the 10 clients of FedAvg's server 10 times 44.70 MB (calculated). Over the wire go n / 8 a
neighbour more, and what the busiest node sends; ``busiest`` in summary.json is of both ways.

Of the authors' code (rong-dai/DisPFL, with what its script sets): the steps and their order; ERK
over all trainable tensors; neighbours drawn without the client itself, 10 of them; first masks that
differ; density 0.5, drop 0.5, growth by chance; 5 epochs, decay 0.998, weight decay 5e-4, clip 10.
As there, all start from one model, so that the first exchange changes nothing. Ours: lr and a batch
of 16, for the shipped model and small shards (0.1 and 128 there); T as an option, drop_rounds
(there the run's rounds); that a client that is not in a round does nothing in it, where theirs
trains alone. A neighbour that does not come is in neither sum.

Both ends draw an edge alike, from (the run's common seed, round, client), so that no list travels.
A tensor that is kept in part is multiplied whole: operations are FedAvg's, and what growth by
gradient takes. The paper counts kept weights alone.
"""

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
import torch
from torch import Tensor, nn

from methods import Fleet, Missed, Peer, Shard
from methods.payload import bits
from methods.shared import flops, masked_training
from methods.shared.common_seed import common_seed, planted
from methods.shared.local_training import learnt
from methods.shared.masked_training import train_masked
from methods.shared.objective import loss, scores
from testbed.seeds import derive

peer_to_peer = True
BEGIN, SPARSE, DONE = "begin", "sparse", "done"
MOST_NEIGHBOURS = 10
"""Where no number is given."""


class Config(masked_training.Options, frozen=True, forbid_unknown_fields=True, kw_only=True):
    topology: Literal["random", "ring", "full"] = "random"
    """Whom a client hears: some that it draws anew each round, the two beside it, or everyone."""
    neighbours: Annotated[int, msgspec.Meta(ge=1, le=100_000)] | None = None
    """random: how many; absent: 10, or all others where they are fewer."""
    density: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.5
    """Share of all weights that a mask keeps."""
    first_masks: Literal["random", "largest"] = "random"
    """What a client's first mask keeps: weights by chance, or a tensor's largest ones."""
    drop: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5
    """r of round 1: share of the kept weights of a tensor that are exchanged for others."""
    drop_rounds: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 20
    """T: rounds until no weight is exchanged any more."""
    regrow: Literal["random", "gradient"] = "random"
    """Which weights are kept in place of those dropped."""
    learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 0.03
    """Of SGD without momentum in the first round."""

    def __post_init__(self) -> None:
        if self.neighbours is not None and self.topology != "random":
            have = "two each" if self.topology == "ring" else "everyone"
            raise ValueError(
                f"neighbours = {self.neighbours}: with topology = {self.topology!r} clients hear "
                f"{have}; leave it out, or take topology=random"
            )


def check(config: Config, model: nn.Module) -> None:
    """Raises ValueError where the model learns what no mask is for."""
    if others := learnt(model).keys() - trainable(model).keys():
        raise ValueError(
            f"{sorted(others)[0]} is learnt and no weight: the mean of such over models of "
            "different masks is right for none; take group or layer norms"
        )


def check_samples(config: Config, samples: Sequence[int]) -> None:
    """Raises ValueError where the clients are fewer than a client is to hear."""
    others = len(samples) - 1
    if others < 1:
        raise ValueError("clients = 1: a client hears others; take at least 2")
    if config.neighbours is not None and config.neighbours > others:
        raise ValueError(
            f"neighbours = {config.neighbours}: must be at most {others}, the other clients of the "
            "run"
        )


def adapt(config: Config, model: nn.Module) -> nn.Module:
    """The model with the seed of the graph."""
    return planted(model)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: each for name, each in model.named_parameters() if each.requires_grad}


def densities(shapes: Sequence[Sequence[int]], density: float) -> list[float]:
    """ERK's share of each tensor that is kept, ``density`` of all weights together."""
    sizes = [math.prod(shape) for shape in shapes]
    raw = [(sum(shape) or 1) / size for shape, size in zip(shapes, sizes, strict=True)]
    whole: set[int] = set()
    while len(whole) < len(sizes):
        left = [place for place in range(len(sizes)) if place not in whole]
        budget = density * sum(sizes) - sum(sizes[place] for place in whole)
        epsilon = budget / sum(raw[place] * sizes[place] for place in left)
        beyond = {place for place in left if epsilon * raw[place] > 1}
        if not beyond:
            return [1.0 if place in whole else epsilon * raw[place] for place in range(len(sizes))]
        whole |= beyond
    return [1.0] * len(sizes)


def neighbours(
    config: Config, seed: int, number: int, client: int, there: Sequence[int]
) -> set[int]:
    """The ones whom ``client`` hears in round ``number``, of those in it: alike at any node."""
    order = sorted(there)
    others = [each for each in order if each != client]
    if config.topology == "full":
        return set(others)
    if config.topology == "ring":
        place = order.index(client)
        return {order[place - 1], order[(place + 1) % len(order)]} - {client}
    most = min(config.neighbours or MOST_NEIGHBOURS, len(others))
    return set(random.Random(derive(seed, "neighbours", number, client)).sample(others, most))


class Layout:
    """The layout of a model's weights, one after the other, and how many of each a mask keeps."""

    def __init__(self, config: Config, model: nn.Module) -> None:
        tensors = list(trainable(model).values())
        shares = densities([each.shape for each in tensors], config.density)
        self.sizes = [each.numel() for each in tensors]
        self.kept = [
            max(1, int(share * size)) for share, size in zip(shares, self.sizes, strict=True)
        ]
        self.dtype = tensors[0].dtype
        self.device = tensors[0].device

    @property
    def like(self) -> dict[str, Tensor]:
        """The like of a message of masked weights."""
        return {
            "values": torch.empty(sum(self.kept), dtype=self.dtype, device="meta"),
            "mask": torch.empty(
                bits.packed_bytes(sum(self.sizes), 1), dtype=torch.uint8, device="meta"
            ),
        }

    def parts(self, *flat: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Parts of each of ``flat``, (n,), tensor by tensor."""
        return zip(*(each.split(self.sizes) for each in flat), strict=True)

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises ValueError where a mask does not keep as many weights as have come."""
        if tensors["values"].is_meta:
            return
        mask = bits.unpack(tensors["mask"], 1, 8 * len(tensors["mask"])).bool()
        found, beyond = int(mask.sum()), int(mask[sum(self.sizes) :].sum())
        if beyond or found != sum(self.kept):
            raise ValueError(f"a mask of {found - beyond} weights, expected {sum(self.kept)}")


def drawn(layout: Layout, generator: torch.Generator) -> Tensor:
    """A mask that is drawn by chance: bool (n,)."""
    like = torch.empty(sum(layout.sizes), device=layout.device)
    return highest(layout, _scores(like, generator))


def highest(layout: Layout, scores: Tensor) -> Tensor:
    """A mask of each tensor's weights whose ``scores``, (n,), are the highest: bool (n,)."""
    none = torch.zeros_like(scores, dtype=torch.bool)
    return torch.cat(
        [
            part.index_fill(0, score.topk(kept).indices, True)
            for kept, (part, score) in zip(layout.kept, layout.parts(none, scores), strict=True)
        ]
    )


def moved(layout: Layout, mask: Tensor, weights: Tensor, share: float, growth: Tensor) -> Tensor:
    """The next mask: of each tensor ``share`` of the kept weights, rounded up, are dropped.

    The smallest go, and as many others come, those whose ``growth`` (>= 0) is the largest.
    """
    found = []
    parts = layout.parts(mask, weights, growth)
    for kept, (own, weight, grown) in zip(layout.kept, parts, strict=True):
        count = math.ceil(share * kept)
        smallest = torch.where(own, weight.abs(), math.inf).topk(count, largest=False).indices
        left = own.index_fill(0, smallest, False)
        largest = torch.where(left, -1.0, grown).topk(count).indices
        found.append(left.index_fill(0, largest, True))
    return torch.cat(found)


def _scores(like: Tensor, generator: torch.Generator) -> Tensor:
    if like.is_meta:
        return torch.empty(like.shape, device="meta")
    return torch.rand(like.shape, generator=generator)


def packed(weights: Tensor, mask: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A message of the weights that a mask keeps, in their order, and a bit a weight."""
    if mask.is_meta:
        return dict(like)
    return {"values": weights[mask], "mask": bits.pack(mask, 1)}


def masked_mean(models: Iterable[tuple[Tensor, Tensor]], size: int) -> Tensor:
    """sum_j w_j m_j / sum_j m_j, 0 where nobody keeps a weight: (size,).

    ``models``: of each the values that are kept, in their order, and the mask, bool (size,).
    """
    total = count = torch.zeros(())
    for values, mask in models:
        none = torch.zeros(size, dtype=values.dtype, device=values.device)
        total = total + none.masked_scatter(mask, values)
        count = count + mask
    return total / count.clamp(min=1)


def on_text(given: Mapping[str, Any]) -> dict[str, Any]:
    """Masks of the largest weights, and most: by chance they would take what the model knows."""
    return {"first_masks": "largest", "density": 0.9, "drop": 0.05, "learning_rate": 0.1}


class Server:
    """It says who is in a round, and learns nothing."""

    def __init__(self, config: Config, model: nn.Module, shard: Shard, seed: int) -> None:
        self.model = None

    async def round(self, fleet: Fleet) -> None:
        there = [int(name.rpartition("-")[2]) for name in fleet.clients]
        marks = torch.zeros(max(there, default=0), dtype=torch.uint8)
        marks[[number - 1 for number in there]] = 1
        await fleet.broadcast(BEGIN, {"there": bits.pack(marks, 1)})
        async for _ in fleet.gather(DONE, like={}):
            pass

    def evaluate(self, inputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Nothing: all models are the clients'."""
        return {}


class Client:
    def __init__(self, config: Config, model: nn.Module, shard: Shard, seed: int) -> None:
        self.config = config
        self.model = model
        self.shard = shard
        self.seed = common_seed(model)
        self.generator = torch.Generator().manual_seed(seed)
        self.layout = Layout(config, model)
        self.held = (
            drawn(self.layout, self.generator)
            if config.first_masks == "random"
            else highest(self.layout, self._weights().abs())
        )
        """The mask that the weights have: bool (n,)."""
        self.next = self.held.clone()
        """The mask of the next training."""
        self.before: float | None = None
        """Accuracy on its own test samples between the exchange and the training."""
        self._load(self._weights() * self.held)

    def round(self, peer: Peer) -> None:
        me, config = self.shard.client, self.config
        marks = peer.receive(BEGIN, accept=self._accept).tensors["there"]
        there = _marked(marks)
        # 1. The weights and their mask go to whoever has drawn this client; nobody is the first of
        # all others', whose lines would be idle until its own were through.
        mine = packed(self._weights(), self.held, self.layout.like)
        for each in sorted(there, key=lambda number: (number <= me, number)):
            if me in neighbours(config, self.seed, peer.round, each, there):
                peer.send(SPARSE, mine, to=f"client-{each}")
        # 2. The mean over the neighbours that came, as far as the present mask keeps it.
        size = sum(self.layout.sizes)
        mean = masked_mean(self._models(peer, mine["values"], there), size)
        self._load(mean * self.next)
        self.held = self.next
        if self.shard.test is not None:
            self.before = scores(self.model, *self.shard.test)["accuracy"]
        # 3. Local training under the mask.
        weights = trainable(self.model).values()
        parts = zip(weights, self.held.split(self.layout.sizes), strict=True)
        masks = [(weight, part.view_as(weight)) for weight, part in parts]
        train_masked(
            *(config, self.model, self.shard, masks), number=peer.round, generator=self.generator
        )
        # 4. The mask of the next.
        done = min(1.0, (peer.round - 1) / config.drop_rounds)
        share = config.drop / 2 * (1 + math.cos(math.pi * done))
        self.next = moved(self.layout, self.held, self._weights(), share, self._growth())
        peer.send(DONE, {})

    def _accept(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises ValueError where the server does not say who is in the round, this one too."""
        marks = tensors.get("there")
        if marks is None or marks.dtype != torch.uint8 or marks.dim() != 1:
            raise ValueError("it does not say who is in the round")
        if self.shard.client not in _marked(marks):
            raise ValueError("it begins a round that this client is not in")

    def _models(
        self, peer: Peer, values: Tensor, there: Sequence[int]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Values and mask of the client's own model, and of each neighbour's that comes."""
        yield values, self.held
        own = neighbours(self.config, self.seed, peer.round, self.shard.client, there)
        for each in sorted(own):
            try:
                found = peer.receive(
                    SPARSE, self.layout.like, accept=self.layout.check, sender=f"client-{each}"
                ).tensors
            except Missed:
                continue
            yield found["values"], bits.unpack(found["mask"], 1, len(self.held)).bool()

    def _growth(self) -> Tensor:
        """How soon each weight is to grow back, at least 0: (n,)."""
        if self.config.regrow == "random":
            return _scores(self.held, self.generator)
        order = torch.randperm(len(self.shard.targets), generator=self.generator)
        batch = order[: self.config.batch_size]
        self.model.eval()
        found = loss(self.model(self.shard.inputs[batch]), self.shard.targets[batch])
        slopes = torch.autograd.grad(found, list(trainable(self.model).values()))
        return torch.cat([each.flatten() for each in slopes]).abs()

    def _weights(self) -> Tensor:
        """A copy of them, one after the other: (n,)."""
        return torch.cat([each.detach().flatten() for each in trainable(self.model).values()])

    def _load(self, weights: Tensor) -> None:
        own = trainable(self.model).values()
        with torch.no_grad():
            for each, part in zip(own, weights.split(self.layout.sizes), strict=True):
                each.copy_(part.view_as(each))

    def evaluate(self, inputs: Tensor, targets: Tensor) -> dict[str, float]:
        """The client's own model's; on its own samples that before the training too."""
        found = scores(self.model, inputs, targets)
        if self.before is not None and self.shard.test and inputs is self.shard.test[0]:
            found["accuracy_before_training"] = self.before
        return found


def _marked(marks: Tensor) -> list[int]:
    """Numbers of the clients whose bit is set, from 1 on."""
    flags = bits.unpack(marks, 1, 8 * len(marks))
    return [place + 1 for place, flag in enumerate(flags.tolist()) if flag]


def other_metrics(config: Config) -> tuple[str, ...]:
    return ("accuracy_before_training",)


def traffic(config: Config, model: nn.Module) -> tuple[int, int]:
    """One neighbour's model, which not all who draw have to send."""
    like = Layout(config, model).like.values()
    size = sum(each.numel() * each.element_size() for each in like)
    return (0 if config.topology == "random" else size), size


def client_flops(config: Config, model: nn.Module, image: Tensor) -> float:
    """Each epoch: the model forward and backward, with all of its weights."""
    return config.local_epochs * flops.step(model, image, model)


def fixed_flops(config: Config, model: nn.Module, image: Tensor) -> float:
    """Growth by gradient: the same of a batch."""
    return config.batch_size * flops.step(model, image, model) * (config.regrow == "gradient")
