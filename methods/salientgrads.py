"""SalientGrads: one mask of salient weights for all, then values only (Ohib et al., 2023).

Sparse Models for Communication Efficient and Data Aware Distributed Federated Training, arXiv
2304.07488.

Set-up, in the first round, of everyone who is there, whether that round takes them or not: a client
takes batches of its samples and sends s = |dL/dm|, the mean over the batches, for a mask m of ones
on the P weights of its linear and convolutional layers; that is |w dL/dw|. The server takes the
clients' mean and keeps the k = int(density P) weights with the largest s of all layers together.

Round t from then on is FedAvg: weights that are not kept are 0, as the server sends them, after
every step of a client's and therefore in the mean. A client gets the mask with its first model.

Payload bytes a client, with D for all that is learnt beside the P weights:

    set-up   up 4 P; down, with its first model, P / 8, rounded up in each layer
    round    up and down 4 (k + D): the kept weights of a layer in the order in which they stand

The set-up is paid back after 4 P / (8 (n - k - D)) rounds of all clients, n = P + D; where c of N
take part after N / c times as many. Calculated, for ResNet-18 at density 0.05: 2.27 MB each way a
round, where all weights are 44.70 MB, after a set-up of 44.66 MB up and 1.40 MB down, which the
authors' code does not count. The abstract claims less wall-clock time of communication, and gives
no figure.

Of the authors' code (riohib/SalientGrads): one batch of 16, the magnitude before the mean over
batches, the plain mean over clients, 5 epochs of SGD without momentum at 0.1 * 0.998^(t - 1),
weight decay 5e-4, gradients cut to norm 10 with those of masked weights in it. Different on
purpose: L is cross-entropy, where that code has the negative log-likelihood of outputs that are no
logarithms (saliency_loss=as_published); of weights alike at the threshold the first are kept, where
it keeps all, so that lengths are known beforehand; weights are masked before they are first sent;
and each output of a layer keeps its most salient weight, where that code may leave a layer with
none, which keep_rows=false refuses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods import Fleet, Peer, Shard
from methods.payload import bits
from methods.shared import flops, masked_training
from methods.shared.averaging import WeightedMean, with_unsaid
from methods.shared.local_training import learnt, load_trainable, trainable_state
from methods.shared.masked_training import train_masked
from methods.shared.objective import IGNORED, loss, scores
from testbed.seeds import derive

stageable = ("up", "down")


class Config(masked_training.Options, frozen=True, forbid_unknown_fields=True, kw_only=True):
    density: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.3
    """Share of the P weights that is kept."""
    keep_rows: bool = True
    """Whether each output of each layer keeps its most salient weight, within k."""
    saliency_batches: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 1
    """Batches, each drawn anew, of a client's set-up."""
    saliency_loss: Literal["cross_entropy", "as_published"] = "cross_entropy"
    weighted: bool = False
    """Whether the clients' saliency is averaged by samples."""


LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Those whose weights may be masked."""


def prunable(model: nn.Module) -> dict[str, Tensor]:
    """Weights of linear and convolutional layers that are trained, by name."""
    own = {id(module.weight) for module in model.modules() if isinstance(module, LAYERS)}
    # A tied embedding is read a row a token, and stays whole.
    own -= {id(each.weight) for each in model.modules() if isinstance(each, nn.Embedding)}
    return {
        name: each
        for name, each in model.named_parameters()
        if id(each) in own and each.requires_grad
    }


def kept_of(config: Config, model: nn.Module) -> int:
    """k, how many of the weights are kept."""
    return int(config.density * sum(each.numel() for each in prunable(model).values()))


def on_text(given: Mapping[str, Any]) -> dict[str, Any]:
    """Most weights, since of a model that is trained already each has its part."""
    return {"density": 0.8}


def check(config: Config, model: nn.Module) -> None:
    """Raises ValueError where so few are kept that a layer must be left with none."""
    weights = prunable(model)
    if not weights:
        raise ValueError("the model has no linear or convolutional layer to keep weights of")
    least = sum(len(each) for each in weights.values()) if config.keep_rows else len(weights)
    if kept_of(config, model) < least:
        total = sum(each.numel() for each in weights.values())
        whose = "outputs" if config.keep_rows else "layers"
        raise ValueError(
            f"density = {config.density:g}: keeps {kept_of(config, model)} of {total} weights, and "
            f"there are {least} {whose}; take at least {math.ceil(1e4 * least / total) / 1e4:g}"
        )


def masks_of(config: Config, saliency: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Which weights of each layer are kept, packed: uint8, a bit a weight.

    Of equal ones the first are, in the order of layers and within them.

    Raises:
        ValueError: a layer would be left with none.
    """
    scores = torch.cat([_scores(config, each) for each in saliency.values()]).numpy()
    count = int(config.density * len(scores))
    least = np.partition(scores, len(scores) - count)[len(scores) - count]
    chosen = scores > least
    chosen[np.flatnonzero(scores == least)[: count - int(chosen.sum())]] = True
    sizes = [each.numel() for each in saliency.values()]
    found = dict(zip(saliency, torch.as_tensor(chosen).split(sizes), strict=True))
    if empty := [name for name, own in found.items() if not own.any()]:
        others = f" and {len(empty) - 1} more" if empty[1:] else ""
        raise ValueError(
            f"density = {config.density:g}: no weight of {empty[0]}{others} is among the "
            f"{count} most salient; take more, or keep_rows=true"
        )
    return {name: bits.pack(own.to(torch.uint8), 1) for name, own in found.items()}


def _scores(config: Config, saliency: Tensor) -> Tensor:
    """float32 (n,), of which the highest are kept."""
    if saliency.is_meta:
        # Without values as good as any: of each layer the same share.
        saliency = torch.linspace(1, 0, saliency.numel() + 1)[:-1].view(saliency.shape)
    rows = saliency.flatten(1).to(torch.float32, copy=True)
    if config.keep_rows:
        rows.scatter_(1, rows.argmax(dim=1, keepdim=True), math.inf)
    return rows.view(-1)


def _count(packed: Tensor, size: int) -> int:
    """How many of a layer's weights are kept."""
    return int(bits.unpack(packed, 1, size).sum())


class Masks:
    """Masks of a model's layers, which turn weights into values that are sent and back."""

    def __init__(self, packed: Mapping[str, Tensor]) -> None:
        """``packed``: of each layer, as ``masks_of`` has it; empty where there are none yet."""
        self.packed = dict(packed)

    def of(self, name: str, shape: torch.Size) -> Tensor:
        """bool, of a layer's shape: which weights are kept."""
        return bits.unpack(self.packed[name], 1, shape.numel()).bool().view(shape)

    def values(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state without what is masked: kept weights (any,), and all else as it is."""
        return {name: self._taken(name, each) for name, each in state.items()}

    def _taken(self, name: str, tensor: Tensor) -> Tensor:
        if name not in self.packed:
            return tensor
        if tensor.is_meta:
            return tensor.new_empty(_count(self.packed[name], tensor.numel()))
        return tensor.detach()[self.of(name, tensor.shape)]

    def whole(self, values: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state that ``values`` were of, with zeros for what is masked."""
        return {name: self._put(name, values[name], each) for name, each in like.items()}

    def _put(self, name: str, values: Tensor, like: Tensor) -> Tensor:
        if name not in self.packed:
            return values
        if like.is_meta:
            return torch.empty_like(like)
        return torch.zeros_like(like).masked_scatter_(self.of(name, like.shape), values)


class Server:
    def __init__(self, config: Config, model: nn.Module, shard: Shard, seed: int) -> None:
        self.config = config
        self.model = model
        self.masks = Masks({})
        self.holders: list[str] = []
        """Clients that have answered since they were sent the mask."""

    async def round(self, fleet: Fleet) -> None:
        # 1. Once: all say which weights matter to them, and the mask is made of that.
        if not self.masks.packed and not await self.set_up(fleet):
            return
        # 2. Clients that may not have the mask get it, and all the present weights.
        lacking = [client for client in fleet.clients if client not in self.holders]
        await fleet.broadcast("mask", self.masks.packed, clients=lacking)
        state = self.masks.values(trainable_state(self.model))
        sent = await fleet.broadcast("model", state, base="held")
        # 3. Updates enter the mean as they come.
        mean = WeightedMean()
        async for update in fleet.gather("model", like=state, base=sent):
            mean.add(update.tensors, weight=fleet.samples[update.sender])
            self.holders = sorted({*self.holders, update.sender})
        # 4. Their mean is the new model; where none came, the model stays.
        if found := mean.result():
            self.load(with_unsaid(found, state, sent))

    async def set_up(self, fleet: Fleet) -> bool:
        """Make the mask, and mask the model; False: no client answered."""
        asked, taken = fleet.everyone, fleet.clients
        for of_round in (True, False):
            some = [client for client in asked if (client in taken) == of_round]
            await fleet.broadcast("mask", {}, clients=some, model_follows=int(of_round))
        mean = WeightedMean()
        like = prunable(self.model)
        async for answer in fleet.gather("saliency", like=like, clients=asked, accept=_magnitudes):
            weight = fleet.samples[answer.sender] if self.config.weighted else 1
            mean.add(answer.tensors, weight=weight)
        if found := mean.result():
            self.masks = Masks(masks_of(self.config, found))
            self.load(self.masks.values(trainable_state(self.model)))
        return bool(found)

    def load(self, values: Mapping[str, Tensor]) -> None:
        load_trainable(self.model, self.masks.whole(values, learnt(self.model)))

    def evaluate(self, inputs: Tensor, targets: Tensor) -> dict[str, float]:
        return scores(self.model, inputs, targets)


class Client:
    received = ("model",)

    def __init__(self, config: Config, model: nn.Module, shard: Shard, seed: int) -> None:
        self.config = config
        self.model = model
        self.shard = shard
        self.generator = torch.Generator().manual_seed(seed)
        self.choice = torch.Generator().manual_seed(derive(seed, "saliency"))
        self.masks = Masks({})

    def round(self, peer: Peer) -> None:
        # 1. In its first round it is sent the mask, or asked what is to be in it.
        if not self.masks.packed:
            told = peer.receive("mask", accept=self.check)
            if not told.tensors:
                peer.send("saliency", self.saliency())
                if not told.details.get("model_follows"):
                    return
                told = peer.receive("mask", like=self.bitmaps(), accept=self.check)
            self.masks = Masks(told.tensors)
        # 2. Train the server's weights, of which only the kept ones are there.
        like = self.masks.values(learnt(self.model))
        start = peer.receive("model", like=like, base="held").tensors
        load_trainable(self.model, self.masks.whole(start, learnt(self.model)))
        masks = [
            (each, self.masks.of(name, each.shape))
            for name, each in prunable(self.model).items()
            if not each.is_meta
        ]
        train_masked(
            *(self.config, self.model, self.shard, masks),
            number=peer.round,
            generator=self.generator,
        )
        # 3. What became of them.
        peer.send("model", self.masks.values(trainable_state(self.model)), base=start)

    def bitmaps(self) -> dict[str, Tensor]:
        """Tensors of a mask's sizes, without values."""
        return {
            name: torch.empty(bits.packed_bytes(each.numel(), 1), dtype=torch.uint8, device="meta")
            for name, each in prunable(self.model).items()
        }

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises ValueError unless there is no mask, or one of as many weights as are kept."""
        if not tensors:
            return
        like = self.bitmaps()
        own = {name: (each.shape, each.dtype) for name, each in tensors.items()}
        if own != {name: (each.shape, each.dtype) for name, each in like.items()}:
            raise ValueError("a mask has a bit for each weight of each layer")
        sizes = {name: each.numel() for name, each in prunable(self.model).items()}
        kept = sum(_count(tensors[name], size) for name, size in sizes.items())
        if kept != (expected := kept_of(self.config, self.model)):
            raise ValueError(f"a mask that keeps {kept} weights, expected {expected}")

    def saliency(self) -> dict[str, Tensor]:
        """Magnitudes |dL/dm| of each layer, the mean over batches; float32."""
        weights = prunable(self.model)
        mean = WeightedMean()
        self.model.train()
        for _ in range(self.config.saliency_batches):
            batch = torch.randperm(len(self.shard.targets), generator=self.choice)
            batch = batch[: self.config.batch_size]
            logits = self.model(self.shard.inputs[batch])
            of = as_published if self.config.saliency_loss == "as_published" else loss
            found = of(logits, self.shard.targets[batch])
            slopes = torch.autograd.grad(found, list(weights.values()))
            products = [
                (slope * own.detach()).abs()
                for slope, own in zip(slopes, weights.values(), strict=True)
            ]
            mean.add(dict(zip(weights, products, strict=True)), weight=1)
        return mean.result()


def as_published(logits: Tensor, targets: Tensor) -> Tensor:
    """The likelihood's loss of what are no log-probabilities, as the authors' code has it."""
    return F.nll_loss(logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORED)


def _magnitudes(tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError where one is below 0."""
    for name, each in tensors.items():
        if not bool((each >= 0).all()):
            raise ValueError(f"{name} holds values below 0, and saliency has none")


def staged_shapes(config: Config, model: nn.Module, way: str) -> list[Sequence[int]]:
    """Kept weights as vectors, of which each layer may have any share, and all else as it is."""
    masked = prunable(model).keys()
    return [
        (each.numel(),) if name in masked else each.shape for name, each in learnt(model).items()
    ]


def server_sees(config: Config) -> str:
    return f"magnitudes of a gradient of {config.saliency_batches * config.batch_size} samples"


def traffic(config: Config, model: nn.Module) -> tuple[int, int]:
    """Both ways, what is kept and what is learnt beside it."""
    own = prunable(model)
    rest = [each for name, each in learnt(model).items() if name not in own]
    size = 4 * kept_of(config, model) + sum(each.numel() * each.element_size() for each in rest)
    return size, size


def client_flops(config: Config, model: nn.Module, image: Tensor) -> float:
    """Each epoch: the model forward and backward; masked weights are multiplied like others."""
    return config.local_epochs * flops.step(model, image, model)


def fixed_flops(config: Config, model: nn.Module, image: Tensor) -> list[float]:
    """The set-up's batches, in the first round."""
    count = config.saliency_batches * config.batch_size
    return [count * flops.step(model, image, model), 0.0]
