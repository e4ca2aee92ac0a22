"""Federated Pruning: Improving Neural Network Efficiency with Federated Learning.

Lin et al., Interspeech 2022, arXiv 2209.06359. The server has the whole model w and a mask of
structures; clients train the model that the mask leaves, which is really smaller. A round:

1.  down: the weights that are kept; the mask, to whom has not got it yet
2.  client: local_epochs on cross-entropy
3.  up: the weights that are kept
4.  server: their mean by samples; what is pruned keeps the value that it had

A structure is a hidden unit of a block's perceptron (a row of ``expand`` with its bias, a column of
``contract``) or a head of its attention (rows of query, key and value with their biases, columns of
``output``). Its score is the L2 norm of its weights: of all, or with pattern=row or column of its
rows or columns alone. layers=adaptive keeps those of the highest scores in all blocks together, and
the best one of each block in any case; uniform keeps as many in each. Phases:

    prune        prune_rounds; what is pruned stays so. schedule=steps: the share pruned grows with
                 each mask until it is ``sparsity``; constant: it is that from the first round
    refine       refine_rounds; masks are drawn up anew, and what was pruned can come back
    fine-tune    all rounds after these; the mask stays

In the first two the mask is looked at every mask_rounds.

Payload bytes a client and round, each way: 4 for each parameter that is kept. A hidden unit has
2 width + 1, a gated one without biases 3 width, a head of h features h (4 width + 3), without
biases 4 h width. Down also ceil(structures / 8) of each kind that
is pruned, to clients that have not the mask. The shipped model, less half of its hidden units:
918,184 of 1,214,632, and 96 for a mask.

The paper's claim is of a Conformer of 130 M parameters, in word errors against sparsity, which it
counts by the masked share of the masked layers' weights; no figure of it was verified. ``kept``
among the metrics is the share of all parameters.

From the paper, by a digest of it: structured masks, phases, schedules, sparsity by layer or alike,
weight magnitude as the best score, columns as the best pattern. Reconstructed: that only
refining brings structures back; everything else. Ours: pairs of matrices whose rows and columns go
together, since a mask of one of them alone makes nothing smaller, and no halves of rows or columns
for the same reason; heads.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, cast

import msgspec
import torch
from torch import Tensor, nn

from methods import Fleet, Peer, Shard
from methods.fedavg import new_optimizer
from methods.payload import bits
from methods.shared import flops, layout
from methods.shared.averaging import Training, WeightedMean
from methods.shared.backbone import staged
from methods.shared.local_training import learnt, load_trainable, train, trainable_state
from methods.shared.objective import scores

KIND = "model"
MASK = "mask."
"""Begins the names of masks in a message; what is pruned follows."""
Masks = dict[str, Tensor]
"""Structures that are kept, by kind, bool (blocks, structures of a block), never without values."""


class Config(Training, frozen=True, forbid_unknown_fields=True, kw_only=True):
    structures: Literal["hidden", "heads", "both"] = "hidden"
    """Parts of a block that are pruned: hidden units of its perceptron, its heads, or both."""
    sparsity: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.5
    """The share that is pruned of either in the end; one a block is left at least."""
    pattern: Literal["all", "row", "column"] = "all"
    """Weights whose norm a structure's score is: all that it has, or its rows or columns."""
    layers: Literal["adaptive", "uniform"] = "adaptive"
    """Whether blocks may be pruned more and less, by the scores, or all alike."""
    schedule: Literal["steps", "constant"] = "steps"
    """Whether sparsity grows in the first phase, or is what it is from the first round."""
    prune_rounds: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 5
    refine_rounds: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 5
    mask_rounds: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1
    """Rounds from one mask to the next in these two phases."""

    @property
    def kinds(self) -> list[str]:
        return ["hidden", "heads"] if self.structures == "both" else [self.structures]

    def sparsity_of(self, number: int) -> float | None:
        """The sparsity of a mask for that round; None: the mask stays."""
        if number > self.prune_rounds + self.refine_rounds or (number - 1) % self.mask_rounds:
            return None
        if self.schedule == "constant" or number > self.prune_rounds:
            return self.sparsity
        masks = -(-self.prune_rounds // self.mask_rounds)
        return self.sparsity * ((number - 1) // self.mask_rounds + 1) / masks


def on_text(given: Mapping[str, Any]) -> dict[str, Any]:
    """A few units of each block: by scores of all, most would be the first block's."""
    return {"sparsity": 0.05, "pattern": "column", "layers": "uniform"}


def check(config: Config, model: nn.Module) -> None:
    """Raises ValueError where the model's blocks have not what is to be pruned."""
    for number, block in enumerate(staged(model).blocks):
        wanted = {"hidden": ["expand", "contract"], "heads": ["attention"]}
        parts = [part for kind in config.kinds for part in wanted[kind]]
        if missing := [part for part in parts if not hasattr(block, part)]:
            raise ValueError(
                f"structures = {config.structures!r}: block {number} of this model has no "
                f"{', '.join(missing)}; take one that ships, or a vision transformer"
            )
        attention = cast(Any, block).attention if "heads" in config.kinds else None
        if attention and attention.key.out_features != attention.query.out_features:
            raise ValueError(
                f"structures = {config.structures!r}: heads of block {number} share keys and "
                "values, which all of them need; take structures=hidden"
            )


# Structures


class Group(NamedTuple):
    """Structures of one kind in one block."""

    size: int
    """How many there are."""
    width: int
    """Rows that each has in every tensor of ``rows``, and columns in that of ``columns``."""
    rows: tuple[str, ...]
    columns: str


def groups(model: nn.Module, kind: str) -> list[Group]:
    """Structures of that kind, "hidden" or "heads", by block.

    Of a gated perceptron a hidden unit has a row of the gate too.
    """
    into, out = {
        "hidden": (["expand", "gate"], "contract"),
        "heads": (["attention.query", "attention.key", "attention.value"], "attention.output"),
    }[kind]
    found = []
    for number, block in enumerate(staged(model).blocks):
        long = cast(nn.Linear, block.get_submodule(out)).weight.shape[1]
        count = long if kind == "hidden" else _heads(cast(Any, block).attention, long)
        path = f"blocks.{number}."
        own = dict(block.named_parameters())
        names = (f"{each}.{what}" for each in into for what in ("weight", "bias"))
        rows = tuple(f"{path}{name}" for name in names if name in own)
        found.append(Group(count, long // count, rows, f"{path}{out}.weight"))
    return found


def _heads(attention: Any, features: int) -> int:
    """Heads of a layer whose heads have so many features together."""
    own = getattr(attention, "heads", None)
    return int(features // attention.head_width if own is None else own)


def whole(model: nn.Module, kinds: list[str]) -> Masks:
    """Masks that keep everything."""
    counts = {kind: [own.size for own in groups(model, kind)] for kind in kinds}
    return {kind: torch.ones(len(own), own[0], dtype=torch.bool) for kind, own in counts.items()}


def norms(group: Group, state: Mapping[str, Tensor], pattern: str) -> Tensor:
    """Each structure's score, float64 (count,)."""
    rows = [state[name].reshape(group.size, -1) for name in group.rows]
    columns = state[group.columns].T.reshape(group.size, -1)
    parts = {"all": [*rows, columns], "row": rows, "column": [columns]}[pattern]
    found: Tensor = torch.linalg.vector_norm(torch.cat(parts, dim=1).double(), dim=1)
    return found


def best(scores: Tensor, sparsity: float, *, uniform: bool) -> Tensor:
    """The places of the highest of scores (blocks, count), at least one a block: bool."""
    blocks, count = scores.shape
    order = scores.argsort(dim=1, descending=True, stable=True)
    if uniform:
        kept = torch.zeros(scores.shape, dtype=torch.bool)
        return kept.scatter(1, order[:, : max(1, round(count * (1 - sparsity)))], True)
    first = scores.scatter(1, order[:, :1], torch.inf).flatten()
    most = max(blocks, round(blocks * count * (1 - sparsity)))
    chosen = first.argsort(descending=True, stable=True)[:most]
    return torch.zeros(len(first), dtype=torch.bool).scatter(0, chosen, True).view(scores.shape)


def drawn_up(
    config: Config, model: nn.Module, sparsity: float, within: Masks | None = None
) -> Masks:
    """Masks by the model's weights.

    Where these have no values all scores are alike, which changes neither bytes nor operations:
    a structure of one block is as large as that of another. ``within``: what may be kept at most.
    """
    state = learnt(model)
    found = {}
    for kind in config.kinds:
        scores = torch.stack([norms(own, state, config.pattern) for own in groups(model, kind)])
        scores = torch.zeros(scores.shape) if scores.is_meta else scores.detach()
        if within is not None:
            scores = scores.masked_fill(~within[kind], -1)
        found[kind] = best(scores, sparsity, uniform=config.layers == "uniform")
    return found


def places(model: nn.Module, masks: Masks) -> Iterator[tuple[str, int, Tensor]]:
    """Names of the tensors that lose something, along which dimension, and the places kept."""
    for kind, mask in masks.items():
        for group, kept in zip(groups(model, kind), mask, strict=True):
            rows = kept.repeat_interleave(group.width).nonzero().squeeze(1)
            yield from ((name, 0, rows) for name in group.rows)
            yield group.columns, 1, rows


def cut(model: nn.Module, state: Mapping[str, Tensor], masks: Masks) -> dict[str, Tensor]:
    """The part of the model's tensors that the masks keep."""
    found = dict(state)
    for name, along, kept in places(model, masks):
        found[name] = found[name][kept] if along == 0 else found[name][:, kept]
    return found


def like(model: nn.Module, masks: Masks) -> dict[str, Tensor]:
    """The same without values."""
    shapes = {name: (list(each.shape), each.dtype) for name, each in learnt(model).items()}
    for name, along, kept in places(model, masks):
        shapes[name][0][along] = len(kept)
    return {n: torch.empty(shape, dtype=own, device="meta") for n, (shape, own) in shapes.items()}


def shrunk(model: nn.Module, part: Mapping[str, Tensor], masks: Masks) -> nn.Module:
    """A model of what is kept alone, of copies of these tensors; the model stays as it is."""
    small = copy.deepcopy(model, memo={id(each): each for each in model.parameters()})
    parameters = dict(model.named_parameters())
    made = {
        id(parameters[name]): nn.Parameter(tensor.detach().clone())
        for name, tensor in part.items()
        if name in parameters
    }
    # Weights that layers share are theirs together in the small model too.
    for module in small.modules():
        for leaf, each in list(module._parameters.items()):
            if id(each) in made:
                setattr(module, leaf, made[id(each)])
    load_trainable(small, {name: part[name] for name in part.keys() - parameters.keys()})
    for block, kept in zip(staged(small).blocks, masks.get("heads", ()), strict=False):
        if hasattr(cast(Any, block).attention, "heads"):
            cast(Any, block).attention.heads = int(kept.sum())
    return small


def packed(masks: Masks) -> dict[str, Tensor]:
    """The masks as they are sent, a bit a structure."""
    flat = {kind: mask.flatten().to(torch.uint8) for kind, mask in masks.items()}
    return {f"{MASK}{kind}": bits.pack(each, 1) for kind, each in flat.items()}


def unpacked(sent: Mapping[str, Tensor], most: Masks) -> Masks:
    """Masks that were sent, of the shapes of ``most``; ValueError where they are none."""
    layout.check(sent, packed(most))
    found = {}
    for kind, mask in most.items():
        own = bits.unpack(sent[f"{MASK}{kind}"], 1, mask.numel()).view(mask.shape).bool()
        if not own.any(dim=1).all():
            raise ValueError(f"{MASK}{kind} leaves a block without any")
        found[kind] = own
    return found


# A round


class Server:
    def __init__(self, config: Config, model: nn.Module, shard: Shard, seed: int) -> None:
        self.config = config
        self.model = model
        self.masks = whole(model, config.kinds)
        self.holders: set[str] = set()
        """Clients that have them."""

    async def round(self, fleet: Fleet) -> None:
        # 1. What is kept goes to everybody, with the masks where they are not known.
        self.renew(fleet.round)
        state = trainable_state(self.model)
        part = cut(self.model, state, self.masks)
        asked = fleet.clients
        for tensors, clients in (
            (part, [client for client in asked if client in self.holders]),
            (packed(self.masks) | part, [each for each in asked if each not in self.holders]),
        ):
            if clients:
                await fleet.broadcast(KIND, tensors, clients=clients)
        # 3. Updates enter the mean as they come, and who sent one has the masks.
        self.holders -= set(asked)
        mean = WeightedMean()
        async for update in fleet.gather(KIND, like=part):
            mean.add(update.tensors, weight=fleet.samples[update.sender])
            self.holders.add(update.sender)
        # 4. What is pruned keeps its value; where none came, everything does.
        if found := mean.result():
            for name, along, kept in places(self.model, self.masks):
                found[name] = state[name].index_copy(along, kept, found[name])
            load_trainable(self.model, found)

    def renew(self, number: int) -> None:
        """Draw up the masks of that round, where it is one that does."""
        sparsity = self.config.sparsity_of(number)
        if sparsity is None:
            return
        within = self.masks if number <= self.config.prune_rounds else None
        masks = drawn_up(self.config, self.model, sparsity, within)
        if any(not torch.equal(masks[kind], self.masks[kind]) for kind in masks):
            self.masks, self.holders = masks, set()

    def evaluate(self, inputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Metrics of the model that is left, and the share of parameters that it has."""
        state = learnt(self.model)
        part = cut(self.model, state, self.masks)
        small = shrunk(self.model, part, self.masks)
        kept, all_of_it = (sum(each.numel() for each in own.values()) for own in (part, state))
        return scores(small, inputs, targets) | {"kept": kept / all_of_it}


class Client:
    received = ("model",)

    def __init__(self, config: Config, model: nn.Module, shard: Shard, seed: int) -> None:
        self.config = config
        self.model = model
        """The whole one, of which only the shapes matter."""
        self.shard = shard
        self.generator = torch.Generator().manual_seed(seed)
        self.most = whole(model, config.kinds)
        self.masks: Masks | None = None
        """The last that were sent."""

    def round(self, peer: Peer) -> None:
        # 1. The masks, and what they keep.
        sent = peer.receive(KIND, accept=self.read).tensors
        self.masks, part = self.read(sent)
        # 2. Train a model of that alone.
        small = shrunk(self.model, part, self.masks)
        train(
            small,
            self.shard,
            new_optimizer(self.config, small, peer.round),
            epochs=self.config.local_epochs,
            batch_size=self.config.batch_size,
            generator=self.generator,
        )
        # 3. Send it back.
        peer.send(KIND, trainable_state(small))

    def read(self, sent: Mapping[str, Tensor]) -> tuple[Masks, dict[str, Tensor]]:
        """The masks and weights of a message; ValueError where it has not what it should."""
        masks, bitmaps = self.masks, {n: each for n, each in sent.items() if n.startswith(MASK)}
        if bitmaps:
            masks = unpacked(bitmaps, self.most)
        if masks is None:
            raise ValueError("no mask was ever sent")
        part = {name: each for name, each in sent.items() if name not in bitmaps}
        layout.check(part, like(self.model, masks))
        return masks, part


def other_metrics(config: Config) -> tuple[str, ...]:
    return ("kept",)


def traffic(config: Config, model: nn.Module) -> tuple[int, int]:
    """Both ways, what is kept in the end."""
    part = like(model, drawn_up(config, model, config.sparsity))
    size = sum(each.numel() * each.element_size() for each in part.values())
    return size, size


def client_flops(config: Config, model: nn.Module, image: Tensor) -> list[float]:
    """Each epoch: what is kept, forward and backward; of each round until sparsity stays."""
    found: list[float] = []
    counted: dict[float, int] = {}
    sparsity = 0.0
    for number in range(1, config.prune_rounds + 1):
        told = config.sparsity_of(number)
        sparsity = sparsity if told is None else told
        if sparsity not in counted:
            masks = drawn_up(config, model, sparsity)
            small = shrunk(model, cut(model, learnt(model), masks), masks)
            counted[sparsity] = flops.step(small, image, small)
        found.append(config.local_epochs * counted[sparsity])
    return found
