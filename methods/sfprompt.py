"""SFPrompt: split federated fine-tuning with soft prompts (arXiv 2407.17533).

The model is cut in head, body and tail. A client has head and tail and a few prompt tokens, the
server the body. Head and body are frozen; prompts and tail are trained.

Round t:
(a) self-update: the server sends prompts and tail, and once the head. The client joins its head
    directly to its tail, trains prompts and tail for U epochs (local-loss update), scores each
    sample by EL2N = ||softmax(logits) - onehot(label)||_2 (Paul et al., NeurIPS 2021) and keeps
    the ceil(gamma * n_k) hardest (data set pruning);
(b) split pass over what is kept: head and prompts, "smashed" up, body, "smashed" down, tail and
    loss at the client, so that labels stay, "gradient" up, through the body, "gradient" down,
    update of prompts and tail;
(c) the client sends prompts and tail; the server takes their mean weighted by n_k.

Of a language model prompts stand before the tokens, which see what is before them alone, and what
the last block makes of them is dropped before the classifier; EL2N of a sequence is the mean over
the tokens that count. Its tail, which is trained and sent, has the classifier: where that is the
embedding too it is untied first. It has no class token, so that there is no ``pool``, and
transfer = cls is refused.

Payload bytes a client and round, b = 4, D features, T tokens with the n_p prompts, m = S *
ceil(gamma * n_k) samples in S split epochs: 2*(n_p*D + |tail|)*b + m*4*T*D*b; with transfer = cls,
where body and tail exchange the class token alone, m*(2*T*D + 2*D)*b. Once a client: |head|*b.

From the paper: the phases, what is frozen, EL2N, gamma. Reconstructed: prompts stand after the
embedding, behind the image's own tokens; the n_k of the mean; that optimizers begin anew each
round; the class token as all that is exchanged; the learning rates' defaults. gamma 0.5, 5 prompt
tokens and Adam are a third party's defaults.

The joined path lacks the body. With no block between embedding and classifier its class token has
never met the image, and loss and EL2N depend on the label alone. pool = mean gives the tail the
mean of all tokens in its place, on this path only, which is too little to tell images apart: EL2N
still ranks labels. So the head has a block by default, which the paper's count of a client's
operations leaves no room for. See docs/methods.md for what either does.
"""

import asyncio
import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods import Fleet, Missed, Peer, Shard
from methods.shared import flops
from methods.shared.averaging import WeightedMean
from methods.shared.backbone import causal, staged
from methods.shared.beside import not_with
from methods.shared.local_training import learnt, load_trainable, trainable_state
from methods.shared.objective import EVALUATION_BATCH, IGNORED, loss, precise, scores
from methods.split_model import Part, crossing, cut, size, tokens_of, untied
from methods.split_model.exchange import Batch, batches, serve, sizes, train_on

Rate = Annotated[float, msgspec.Meta(gt=0)]


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    prompt_length: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 5
    """n_p, tokens."""
    head_blocks: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 1
    """Blocks of the model that the clients have, after the embedding. 0 gives the paper's FLOPs,
    and a pruning that ranks labels."""
    tail_blocks: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    """Blocks before the classifier that the clients have and train."""
    gamma: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.5
    """Fraction of its samples that a client keeps for the split pass."""
    local_epochs: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 2
    """U: passes over all its samples in the self-update."""
    split_epochs: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    """S: passes over the samples it keeps."""
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 16
    """Samples, in both passes."""
    local_learning_rate: Annotated[Rate, not_with("local_epochs", 0)] = 3e-3
    """Adam's in the self-update."""
    learning_rate: Rate = 2e-2
    """Adam's in the split pass."""
    pool: Literal["cls", "mean"] | None = None
    """What stands in the class token's place where head and tail are joined: itself, or the mean
    of all tokens, which has seen the image whatever the head. Absent: cls if the head has a block,
    mean if not."""
    transfer: Literal["tokens", "cls"] = "tokens"
    """What goes between body and tail, both ways; cls needs a tail without blocks."""
    send_head: bool = True
    """Whether the wire carries the head once to each client, as in the paper. Clients have it
    already, since they have the whole model's weights."""

    def __post_init__(self) -> None:
        if self.pool is None:
            msgspec.structs.force_setattr(self, "pool", "cls" if self.head_blocks else "mean")


def on_text(given: Mapping[str, Any]) -> dict[str, Any]:
    """No self-update, by which a language model's tail forgets, and a lower rate."""
    return {"local_epochs": 0, "learning_rate": 2e-3}


class Prompted(nn.Module):
    """An embedding with soft prompts behind its tokens, or before them."""

    def __init__(self, embed: nn.Module, length: int, width: int, *, first: bool) -> None:
        super().__init__()
        self.embed = embed
        self.first = first
        device = next(embed.parameters()).device
        self.prompt = nn.Parameter(0.02 * torch.randn(1, length, width, device=device))

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images)
        prompt = self.prompt.to(tokens.dtype).expand(len(tokens), -1, -1)
        return torch.cat([prompt, tokens] if self.first else [tokens, prompt], dim=1)


def without_prompts(length: int, head: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
    """Tokens that a head is given, without the prompts in front: a hook before it."""
    return (given[0][:, length:],)


class Body(nn.Module):
    """The server's part; with ``class_token`` its output is each image's first token alone."""

    def __init__(self, part: Part, class_token: bool) -> None:
        super().__init__()
        self.part = part
        self.class_token = class_token

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.part(tokens)
        return tokens[:, :1] if self.class_token else tokens


class Parts:
    """The model of this method, cut."""

    def __init__(self, config: Config, model: nn.Module) -> None:
        self.head, body, tail = cut(
            model, head_blocks=config.head_blocks, tail_blocks=config.tail_blocks, private=True
        )
        assert tail is not None
        self.tail = tail
        self.body = Body(body, config.transfer == "cls")
        self._mean = config.pool == "mean" and not causal(model)

    @property
    def trained(self) -> dict[str, Part]:
        """Tensors that go both ways each round, by kind: of the head, the prompt alone."""
        return {"prompt": self.head, "tail": self.tail}

    def frozen_head(self) -> dict[str, Tensor]:
        parameters = self.head.named_parameters()
        return {name: p.detach() for name, p in parameters if not p.requires_grad}

    def joined(self, images: Tensor) -> Tensor:
        """Logits of head and tail without the body between them."""
        tokens = self.head(images)
        if self._mean:
            tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens[:, 1:]], dim=1)
        logits: Tensor = self.tail(tokens)
        return logits


def check(config: Config, model: nn.Module) -> None:
    """Raises ValueError where the model cannot be cut so."""
    Parts(config, model)
    if config.pool == "mean" and config.head_blocks and causal(model):
        raise ValueError("pool = 'mean': a language model has no class token; leave it out")
    if config.transfer == "cls" and causal(model):
        raise ValueError(
            "transfer = 'cls': a language model has no class token, and each token's own next one "
            "is asked; take transfer=tokens"
        )
    if config.transfer == "cls" and config.tail_blocks:
        raise ValueError(
            f"tail_blocks = {config.tail_blocks}: with transfer = cls the tail gets no tokens for "
            "its blocks to attend to, so it must be 0; or transfer = tokens"
        )


def adapt(config: Config, model: nn.Module) -> nn.Module:
    """Freeze all but the tail and put prompts beside the embedding's tokens."""
    untied(model).requires_grad_(False)
    Parts(config, model).tail.requires_grad_(True)
    stages = staged(model)
    text, length = causal(model), config.prompt_length
    stages.embed = Prompted(stages.embed, length, tokens_of(model).shape[-1], first=text)
    if text:
        stages.head.register_forward_pre_hook(partial(without_prompts, length))
    return model


def el2n(logits: Tensor, targets: Tensor) -> Tensor:
    """Each sample's distance of its probabilities from the truth, 0 to sqrt(2).

    Of text the mean over the tokens that count.
    """
    truth = F.one_hot(targets.clamp(min=0), logits.shape[-1])
    distance: Tensor = (precise(logits).softmax(dim=-1) - truth).norm(dim=-1)
    if targets.dim() == 1:
        return distance
    counts = targets != IGNORED
    return (distance * counts).sum(dim=1) / counts.sum(dim=1)


def kept(samples: int, gamma: float) -> int:
    """ceil(gamma * samples), of gamma as it was written: 0.07 of 100 is 7."""
    return math.ceil(Fraction(repr(gamma)) * samples)


class Server:
    def __init__(self, config: Config, model: nn.Module, shard: Shard, seed: int) -> None:
        self.config = config
        self.model = model
        self.parts = Parts(config, model)
        self.tokens = tokens_of(model, shard.inputs, more=config.prompt_length)
        self.have_head: set[str] = set()

    async def round(self, fleet: Fleet) -> None:
        start = {kind: trainable_state(part) for kind, part in self.parts.trained.items()}
        means = {kind: WeightedMean() for kind in start}

        async def train(client: str) -> None:
            samples = fleet.samples[client]
            # 1. (a) Prompts and tail, and the head to whom it is owed.
            owed = self.config.send_head and client not in self.have_head
            await fleet.send(client, "prompt", start["prompt"], head=int(owed))
            if owed:
                await fleet.send(client, "head", self.parts.frozen_head())
            await fleet.send(client, "tail", start["tail"])
            # 2. (b) The frozen body works on each client's batches as they arrive.
            counts = sizes(
                kept(samples, self.config.gamma), self.config.split_epochs, self.config.batch_size
            )
            arriving = [self.tokens.expand(count, -1, -1) for count in counts]
            await serve(fleet, client, self.parts.body, None, arriving, labels=None)
            # 3. (c) What was learnt enters the means as it comes.
            learnt = {
                kind: (await fleet.receive(client, kind, like=state, base=state)).tensors
                for kind, state in start.items()
            }
            for kind, tensors in learnt.items():
                means[kind].add(tensors, weight=samples)
            self.have_head.add(client)

        async def take_part(client: str) -> None:
            with contextlib.suppress(Missed):
                await train(client)

        async with asyncio.TaskGroup() as group:
            for client in fleet.clients:
                group.create_task(take_part(client))
        # 4. The means are the next round's prompts and tail; where none came, nothing changes.
        for kind, part in self.parts.trained.items():
            load_trainable(part, means[kind].result())

    def evaluate(self, inputs: Tensor, targets: Tensor) -> dict[str, float]:
        return scores(self.model, inputs, targets)


class Client:
    received = ("parts",)

    def __init__(self, config: Config, model: nn.Module, shard: Shard, seed: int) -> None:
        self.config = config
        self.parts = Parts(config, model)
        self.shard = shard
        self.generator = torch.Generator().manual_seed(seed)

    def round(self, peer: Peer) -> None:
        # 1. (a) Take prompts and tail, and the head if it comes.
        start = self._take(peer)
        # 2. Train both on all samples, without the body.
        self._update_by_itself()
        # 3. Keep the hardest.
        hardest = self._hardest()
        # 4. (b) Train both on those, through the body.
        self._split_pass(peer, hardest)
        # 5. (c) Send what was learnt.
        for kind, part in self.parts.trained.items():
            peer.send(kind, trainable_state(part), base=start[kind])

    def _take(self, peer: Peer) -> dict[str, dict[str, Tensor]]:
        """Prompts and tail that it has taken, by kind."""
        prompt = peer.receive("prompt", like=learnt(self.parts.head))
        load_trainable(self.parts.head, prompt.tensors)
        if prompt.details.get("head"):
            own = self.parts.frozen_head()
            for name, tensor in peer.receive("head", like=own).tensors.items():
                # What is equal is not written to: processes go on sharing it.
                if not torch.equal(own[name], tensor):
                    own[name].copy_(tensor)
        tail = peer.receive("tail", like=learnt(self.parts.tail)).tensors
        load_trainable(self.parts.tail, tail)
        return {"prompt": prompt.tensors, "tail": tail}

    def _update_by_itself(self) -> None:
        optimizer = self._adam(self.config.local_learning_rate)
        self._training(True)
        for images, labels in self._batches(self.shard, self.config.local_epochs):
            optimizer.zero_grad(set_to_none=True)
            loss(self.parts.joined(images), labels).backward()
            optimizer.step()

    def _hardest(self) -> Shard:
        images, labels = self.shard.inputs, self.shard.targets
        count = kept(len(labels), self.config.gamma)
        if count == len(labels):
            return self.shard
        self._training(False)
        with torch.inference_mode():
            batch = EVALUATION_BATCH if labels.dim() == 1 else self.config.batch_size
            some = zip(images.split(batch), labels.split(batch), strict=True)
            scores = torch.cat([el2n(self.parts.joined(each), truth) for each, truth in some])
        chosen = scores.argsort(descending=True, stable=True)[:count]
        return self.shard._replace(inputs=images[chosen], targets=labels[chosen])

    def _split_pass(self, peer: Peer, shard: Shard) -> None:
        optimizer = self._adam(self.config.learning_rate)
        self._training(True)
        for batch in self._batches(shard, self.config.split_epochs):
            optimizer.zero_grad(set_to_none=True)
            train_on(
                *(peer, self.parts.head, self.parts.tail, batch),
                class_token=self.parts.body.class_token,
            )
            optimizer.step()

    def _batches(self, shard: Shard, epochs: int) -> Iterator[Batch]:
        return batches(shard, epochs, self.config.batch_size, self.generator)

    def _adam(self, learning_rate: float) -> torch.optim.Optimizer:
        parts = self.parts.trained.values()
        trained = [p for part in parts for p in part.parameters() if p.requires_grad]
        return torch.optim.Adam(trained, learning_rate)

    def _training(self, mode: bool) -> None:
        for part in self.parts.trained.values():
            part.train(mode)


stageable = ("up", "down")


def staged_shapes(config: Config, model: nn.Module, way: str) -> list[Sequence[int]]:
    """Tokens, before the body and behind it, or their gradients, and up what is trained."""
    count, tokens, width = crossing(model, config.batch_size, more=config.prompt_length)
    behind = 1 if config.transfer == "cls" else tokens
    parts = Parts(config, model).trained.values() if way == "up" else ()
    weights = [each.shape for part in parts for each in learnt(part).values()]
    return [(count, tokens, width), (count, behind, width), *weights]


def traffic(config: Config, model: nn.Module) -> tuple[int, int]:
    """Prompts and tail both ways, and of the one sample that is kept at least what it exchanges."""
    weights = sum(size(learnt(part)) for part in Parts(config, model).trained.values())
    tokens = tokens_of(model, more=config.prompt_length)
    back = tokens[:, :1] if config.transfer == "cls" else tokens
    least = weights + config.split_epochs * size({"there": tokens, "back": back})
    return least, least


def server_sees(config: Config) -> str:
    return "activations"


def client_flops(config: Config, model: nn.Module, image: Tensor) -> float:
    """Self-update, scores, and head and tail in the split pass over the fraction gamma."""
    parts = Parts(config, model)
    with torch.no_grad():
        tokens = parts.head(image)
    tokens = tokens[:, :1] if parts.body.class_token else tokens
    update = config.local_epochs * flops.step(parts.joined, image, parts.head, parts.tail)
    scores = flops.forward(parts.joined, image) if config.gamma < 1 else 0
    split = flops.step(parts.head, image, parts.head)
    split += flops.step(parts.tail, tokens, parts.tail, input_gradient=True)
    return update + scores + config.gamma * config.split_epochs * split
