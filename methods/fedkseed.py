"""FedKSeed: Federated Full-Parameter Tuning of Billion-Sized Language Models (arXiv 2312.06353).

Qin et al., ICML 2024. All weights are tuned, and scalars travel: w = w_0 - lr * sum_s G_s z_s,
where z_s ~ N(0, I), s = 0 to K - 1, are directions that every node draws alike from (run's seed,
s). In a round the server sends G. A client goes where G says and takes tau steps, for each of which
it draws s and a batch: with g = (L(w + eps z_s) - L(w - eps z_s)) / (2 eps), w -= lr * g * z_s. It
sends the tau pairs (s, g), and the server adds p_k * g to G_s, p_k the client's share of samples.
Losses are of the model in evaluation: no dropout, and no statistics learnt.

Payload bytes a client and round, whatever the model: 4 K down, 8 tau up; at K = 4,096 and
tau = 200 17,984. With sampling=importance (FedKSeed-Pro) 8 K down.

From the paper and its authors' code: the round, K, tau = 200 of batches of 1, eps, a constant
rate, p_k, that a step whose loss is no number is left out, and Pro's chance of s,
softmax(minmax(mean |clip(g)|)), the mean over all g of s so far and a 0 before them. Ours: the
default rate, for the shipped model (theirs is 3e-7, for billions of weights); that a step left out
is sent as g = 0; that Pro's server sends those means; and that a node goes on from where it is,
along what G has changed by since: at most K passes over the weights, where the authors' nodes go
from w_0 each round.

Entry i of z_s is QUANTILES[u], u the 16-bit word i, low ones first, of Philox4x64-10 with the key
(run's seed, s). A counter's words are the same on any machine and accelerator, in whatever order
they are drawn, and what a table has for them too.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from methods import Fleet, Peer, Shard
from methods.shared import flops
from methods.shared.beside import only_with
from methods.shared.common_seed import common_seed, planted
from methods.shared.objective import loss, scores

KIND = "scalars"
CHUNK = 1 << 16
"""Weights that are moved at once: a multiple of the 16 words of 16 bits that a counter has."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    candidates: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] = 4096
    """K, directions."""
    steps: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 200
    """tau, of a client a round."""
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 1
    """Samples a step."""
    epsilon: Annotated[float, msgspec.Meta(gt=0, le=1)] = 5e-4
    """eps: how far the weights go along a direction, and back, to compare losses."""
    learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 1e-4
    """lr, the same in all rounds; the more weights a model has, the smaller."""
    sampling: Literal["uniform", "importance"] = "uniform"
    """Of a step's direction; importance, FedKSeed-Pro: those that moved losses more, more often."""
    clip: Annotated[float, msgspec.Meta(gt=0), only_with("sampling", "importance")] = 1000.0
    """importance: the most that a |g| counts."""


def check(config: Config, model: nn.Module) -> None:
    """Raises ValueError where nothing of the model can go along a direction."""
    trained = [each for each in model.parameters() if each.requires_grad]
    if not trained or not all(each.is_floating_point() for each in trained):
        raise ValueError("it needs trainable parameters, all of them real numbers")


def adapt(config: Config, model: nn.Module) -> nn.Module:
    """The model with the seed of its directions, which all nodes have from here."""
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()
    return planted(model)


def _quantiles() -> np.ndarray:
    """The normal's at the middles of 65,536 equal shares, of variance 1: float32 (65536,)."""
    found = torch.special.ndtri((torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16))
    return np.asarray(found / found.square().mean().sqrt(), dtype=np.float32)


QUANTILES = _quantiles()


def entries(seed: int, number: int, start: int, count: int) -> Tensor:
    """Entries ``start``, a multiple of 16, and on of direction ``number``: float32 (count,)."""
    key = np.array([seed, number], dtype=np.uint64)
    words = np.random.Philox(key=key, counter=start // 16).random_raw(math.ceil(count / 4))
    # To clip what cannot be outside takes a fifth less time than to raise.
    return torch.as_tensor(QUANTILES.take(words.view(np.uint16)[:count], mode="clip"))


class Directions:
    """Directions of an adapted model's trainable weights, and its ways along them."""

    def __init__(self, config: Config, model: nn.Module) -> None:
        self.config = config
        self.model = model
        self.seed = common_seed(model)
        """The first half of Philox' key."""
        self.chunks = _chunks([each.detach() for each in model.parameters() if each.requires_grad])

    def add(self, numbers: Sequence[int], lengths: Sequence[float]) -> None:
        """Add sum_i lengths_i * z_i to the weights, i in ``numbers``."""
        for place, pieces in enumerate(self.chunks):
            sizes = [len(piece) for piece in pieces]
            if pieces[0].is_meta:
                # Without values, its operations are to be counted all the same.
                torch.mm(
                    torch.empty(1, len(numbers), device="meta"),
                    torch.empty(len(numbers), sum(sizes), device="meta"),
                )
                continue
            total = torch.zeros(sum(sizes))
            for number, length in zip(numbers, lengths, strict=True):
                part = entries(self.seed, number, place * CHUNK, len(total))
                total.add_(part, alpha=length)
            for piece, part in zip(pieces, total.split(sizes), strict=True):
                piece.add_(part)

    def move(self, change: Tensor) -> None:
        """Take the weights to where G is ``change`` more: float64 (K,)."""
        if change.is_meta:
            everything = range(len(change))
            self.add(everything, everything)
            return
        numbers = change.nonzero().flatten()
        lengths = -self.config.learning_rate * change[numbers]
        self.add(numbers.tolist(), lengths.tolist())

    def step(self, number: int, inputs: Tensor, targets: Tensor) -> float:
        """A step along one direction: its g, and 0 where that is no number."""
        epsilon = self.config.epsilon
        self.add([number], [epsilon])
        above = self._loss(inputs, targets)
        self.add([number], [-2 * epsilon])
        # As it is sent: what the client's weights go along is what the server hears.
        gradient = float((above - self._loss(inputs, targets)) / (2 * epsilon))
        if not math.isfinite(gradient):
            gradient = 0.0
        self.add([number], [epsilon - self.config.learning_rate * gradient])
        return gradient

    def _loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            return loss(self.model(inputs), targets).float()


def _chunks(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """The values of all, CHUNK in each list but the last, as views."""
    chunks: list[list[Tensor]] = [[]]
    room = CHUNK
    for tensor in tensors:
        rest = tensor.view(-1)
        while len(rest):
            if not room:
                chunks.append([])
                room = CHUNK
            chunks[-1].append(rest[:room])
            rest, room = rest[room:], room - len(chunks[-1][-1])
    return chunks


class Server:
    def __init__(self, config: Config, model: nn.Module, shard: Shard, seed: int) -> None:
        self.config = config
        self.model = model
        self.sums = torch.zeros(config.candidates)
        """G, float32 (K,)."""
        self.sizes = torch.zeros(config.candidates, dtype=torch.float64)
        """Sum of the |clip(g)| of each direction so far."""
        self.counts = torch.ones(config.candidates, dtype=torch.int64)
        """How many they are; the first is a 0."""

    async def round(self, fleet: Fleet) -> None:
        # 1. Everybody hears where the weights are; 2. to 4. are the clients'.
        told = {"sums": self.sums}
        if self.config.sampling == "importance":
            told["means"] = (self.sizes / self.counts).float()
        await fleet.broadcast(KIND, told)
        # 5. What they found along directions is added, weighted by samples.
        none = torch.zeros(self.config.candidates, dtype=torch.float64)
        change, samples = none, 0
        async for update in fleet.gather(KIND, like=_answer(self.config)):
            numbers, gradients = update.tensors["numbers"], update.tensors["gradients"]
            if not 0 <= int(numbers.min()) <= int(numbers.max()) < self.config.candidates:
                last = self.config.candidates - 1
                fleet.refuse(update.sender, f"a direction outside 0 to {last}")
                continue
            own = none.index_add(0, numbers, gradients.double())
            if not bool((self.sums + own).float().isfinite().all()):
                fleet.refuse(update.sender, "its steps lead further than a float32 can tell")
                continue
            change = change + fleet.samples[update.sender] * own
            samples += fleet.samples[update.sender]
            self._remember(numbers, gradients)
        # 6. The weights go there; where nothing came, they stay.
        if samples:
            moved = (self.sums + change / samples).float()
            Directions(self.config, self.model).move(moved.double() - self.sums.double())
            self.sums = moved

    def _remember(self, numbers: Tensor, gradients: Tensor) -> None:
        """Take in how much losses changed along directions; a step left out says nothing."""
        size = gradients.abs().clamp(max=self.config.clip).double()
        self.sizes = self.sizes.index_add(0, numbers, size)
        self.counts = self.counts.index_add(0, numbers, (gradients != 0).long())

    def evaluate(self, inputs: Tensor, targets: Tensor) -> dict[str, float]:
        return scores(self.model, inputs, targets)


class Client:
    def __init__(self, config: Config, model: nn.Module, shard: Shard, seed: int) -> None:
        self.config = config
        self.model = model
        self.shard = shard
        self.generator = torch.Generator().manual_seed(seed)
        self.sums = torch.zeros(config.candidates)
        """G where its weights are, its own steps included."""

    def round(self, peer: Peer) -> None:
        # 2. Go where the server is, from wherever the last round left this client.
        told = peer.receive(KIND, like=_question(self.config)).tensors
        directions = Directions(self.config, self.model)
        directions.move(told["sums"].double() - self.sums.double())
        self.sums = told["sums"].clone()
        # 3. Steps along drawn directions.
        numbers, batches = self._drawn(told.get("means"))
        gradients = torch.zeros(self.config.steps)
        self.model.eval()
        some = flops.each_size(batches) if self.shard.inputs.is_meta else batches
        for place, batch in enumerate(some):
            number = int(numbers[place])
            gradient = directions.step(number, self.shard.inputs[batch], self.shard.targets[batch])
            self.sums[number] += gradient
            gradients[place] = gradient
        # 4. Say what came of each.
        peer.send(KIND, {"numbers": numbers, "gradients": gradients})

    def _drawn(self, means: Tensor | None) -> tuple[Tensor, Sequence[Tensor]]:
        """Directions of the steps, int32 (tau,), and of each the samples of its batch.

        Samples are shuffled anew once each had its turn.
        """
        steps, batch_size, count = (
            self.config.steps,
            self.config.batch_size,
            len(self.shard.targets),
        )
        if means is None:
            numbers = torch.randint(self.config.candidates, (steps,), generator=self.generator)
        else:
            # Not multinomial, which allows 2^24 and has no form without values.
            edges = chances(means).cumsum(0)
            drawn = torch.rand(steps, dtype=torch.float64, generator=self.generator) * edges[-1]
            numbers = torch.searchsorted(edges, drawn, right=True).clamp(max=len(edges) - 1)
        passes = math.ceil(steps * batch_size / count)
        order = [torch.randperm(count, generator=self.generator) for _ in range(passes)]
        return numbers.int(), torch.cat(order)[: steps * batch_size].split(batch_size)


def chances(means: Tensor) -> Tensor:
    """Each direction's chance by the mean |g| along it, at most e times another's: float64 (K,)."""
    spread = means.double() - means.min()
    return (spread / (spread.max() + 1e-10)).softmax(dim=0)


def _question(config: Config) -> dict[str, Tensor]:
    """The like of what the server sends."""
    names = ("sums", "means") if config.sampling == "importance" else ("sums",)
    return {name: torch.empty(config.candidates, device="meta") for name in names}


def _answer(config: Config) -> dict[str, Tensor]:
    """The like of what a client sends."""
    return {
        "numbers": torch.empty(config.steps, dtype=torch.int32, device="meta"),
        "gradients": torch.empty(config.steps, device="meta"),
    }


def traffic(config: Config, model: nn.Module) -> tuple[int, int]:
    """A number and a g a step up, and down what all steps so far come to along each direction."""
    down = sum(each.numel() * each.element_size() for each in _question(config).values())
    return 8 * config.steps, down


def client_flops(config: Config, model: nn.Module, image: Tensor) -> float:
    """None for each sample: its steps are as many however many it has."""
    return 0.0


def fixed_flops(config: Config, model: nn.Module, image: Tensor) -> float:
    """Steps of two losses and three moves each, and going where the server is, along all K.

    A move along one direction multiplies and adds each weight's entry. To make the entries takes
    longer and is no floating-point operation.
    """
    weights = sum(each.numel() for each in model.parameters() if each.requires_grad)
    losses = 2 * config.batch_size * flops.forward(model, image)
    return config.steps * (losses + 3 * 2 * weights) + config.candidates * 2 * weights
