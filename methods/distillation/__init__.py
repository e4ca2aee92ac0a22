"""Federated distillation: predictions on public images travel, weights never do.

A round of the methods that share this: the server sends the labels that it has (the mean of the
clients' logits on the round before's subset of the public images); clients digest them, train on
their own samples, and send their logits on this round's subset. The server's seed and a round's
number name its subset: whoever holds the images draws the same ones, and no index travels.

Payload bytes a client and round, each way: |S| * C * 4 + 8, the logits and the seed. Before there
are labels only the seed's 8 go down. A language model predicts at each of an input's T tokens, C
the vocabulary: |S| * T * C * 4 + 8. With ``top_k`` = k the k largest of a prediction's logits go
with their places, and one value for the rest: |S| * T * (4 k + 4 + i k) + 8, T = 1 of images, i the
bytes of a place, 1 up to C = 256, 2 up to 32,768, else 4 (``methods.distillation.largest``).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods import VALUES, Fleet, Peer
from methods.distillation import largest
from methods.payload.chain import Chain
from methods.shared import flops
from methods.shared.averaging import WeightedMean
from methods.shared.backbone import causal, staged
from methods.shared.objective import EVALUATION_BATCH, precise
from methods.split_model import LONGEST
from testbed.seeds import derive

stageable = ("up", "down")
KIND = "logits"
TEXTS_AT_ONCE = 8


class PublicImages(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of what the predictions are on."""

    public_source: Literal["held-out", "glyphs"] = "held-out"
    """held-out: training images that no client then has. glyphs: drawn, as that data set's are."""
    public_samples: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] = 400
    """Public images that the server and all clients hold."""
    public_batch: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] = 200
    """|S|: how many of them a round's predictions are on, drawn anew each round."""
    top_k: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0
    """Logits of each prediction that are sent, the largest; 0: all."""

    def __post_init__(self) -> None:
        if self.public_batch > self.public_samples:
            raise ValueError(
                f"public_batch = {self.public_batch}: must be at most the "
                f"public_samples = {self.public_samples} that it is drawn from"
            )


def on_text(given: Mapping[str, Any]) -> dict[str, Any]:
    """Few logits of each token: of a vocabulary all are more bytes than the model."""
    return {"top_k": 8}


def public_samples(config: PublicImages) -> int:
    return config.public_samples


def public_source(config: PublicImages) -> str:
    return config.public_source


def traffic(config: PublicImages, model: nn.Module) -> tuple[int, int]:
    """Both ways |S| * C logits and the seed, of a text at least one token's; at first less down."""
    size = sum(
        each.numel() * each.element_size() for each in _like(config, classes(model)).values()
    )
    return config.public_batch * size + 8, config.public_batch * size + 8


def check(config: PublicImages, model: nn.Module) -> None:
    """Raises ValueError where as many logits as are to be sent are all there are."""
    if config.top_k >= classes(model):
        raise ValueError(
            f"top_k = {config.top_k}: must be less than the {classes(model)} logits of a "
            "prediction, or 0 to send all"
        )


def check_stages(up: Chain, down: Chain) -> None:
    if up.asks_feedback:
        raise ValueError(
            "a stage with feedback: predictions are on other images each round, which what the "
            "last ones left out says nothing of; leave feedback and decay out"
        )


def staged_shapes(config: PublicImages, model: nn.Module, way: str) -> list[Sequence[int]]:
    """The logits that are sent."""
    tokens = (LONGEST,) if causal(model) else ()
    like = _like(config, config.public_batch, *tokens, classes(model)).values()
    return [each.shape for each in like if each.is_floating_point()]


def classes(model: nn.Module) -> int:
    """C."""
    return staged(model).head.classifier.out_features


class Labels(NamedTuple):
    """Labels that the server has."""

    round: int
    """They are of this round's subset."""
    logits: Tensor
    """float32 (|S|, C), of text (|S|, T, C)."""


class Public:
    """The public images, and messages on subsets of them."""

    def __init__(self, config: PublicImages, images: Tensor, classes: int) -> None:
        self.images = images
        self.count = config.public_batch
        self.top_k = config.top_k
        self.classes = classes
        self._seed = torch.empty(1, dtype=torch.int64, device="meta")
        each = () if images.is_floating_point() else images.shape[1:2]
        self._logits = _like(config, self.count, *each, self.classes)

    def subset(self, seed: int, number: int) -> Tensor:
        """The images of round ``number`` of a run with this seed."""
        generator = torch.Generator().manual_seed(derive(seed, "public subset", number))
        return self.images[torch.randperm(len(self.images), generator=generator)[: self.count]]

    async def announce(self, fleet: Fleet, seed: int, labels: Labels | None) -> None:
        """Send every client the seed, and the labels where there are any."""
        known = labels.round if labels else 0
        await fleet.broadcast(KIND, {"seed": torch.tensor([seed])}, labels_of=known)
        if labels:
            await fleet.broadcast(KIND, self._sent(labels.logits), base=VALUES)

    def receive_labels(self, peer: Peer) -> tuple[int, Labels | None]:
        """The client's end of ``announce``."""
        first = peer.receive(KIND, like={"seed": self._seed})
        seed, known = int(first.tensors["seed"]), first.details.get("labels_of")
        if not isinstance(known, int) or not 0 < known < peer.round:
            return seed, None
        told = peer.receive(KIND, like=self._logits, accept=self._accept, base=VALUES).tensors
        return seed, Labels(known, self._whole(told))

    def answer(self, peer: Peer, seed: int, model: nn.Module) -> None:
        """Send the model's logits on this round's subset."""
        logits = predict(model, self.subset(seed, peer.round))
        peer.send(KIND, {"seed": torch.tensor([seed]), **self._sent(logits)}, base=VALUES)

    async def mean(
        self, fleet: Fleet, seed: int, of: Callable[[Tensor], Tensor] = lambda logits: logits
    ) -> Tensor | None:
        """The plain mean over clients of ``of`` their logits; None where no client answered."""
        mean = WeightedMean()
        like = {"seed": self._seed, **self._logits}
        async for update in fleet.gather(KIND, like=like, accept=self._accept, base=VALUES):
            if int(update.tensors["seed"]) != seed:
                fleet.refuse(update.sender, "its logits are on another seed's images")
                continue
            mean.add({"logits": of(self._whole(update.tensors))}, weight=1)
        return mean.result().get("logits")

    def _sent(self, logits: Tensor) -> dict[str, Tensor]:
        return largest.cut(logits, self.top_k) if self.top_k else {"logits": logits}

    def _whole(self, sent: Mapping[str, Tensor]) -> Tensor:
        return largest.rebuilt(sent, self.classes) if self.top_k else sent["logits"]

    def _accept(self, sent: Mapping[str, Tensor]) -> None:
        if self.top_k:
            largest.check(sent, self.classes)


def _like(config: PublicImages, *shape: int) -> dict[str, Tensor]:
    """Tensors of a message of logits of such a shape, without values."""
    if config.top_k:
        return largest.like(shape, config.top_k)
    return {"logits": torch.empty(shape, device="meta")}


def predict(model: nn.Module, images: Tensor) -> Tensor:
    """The model's logits, float32 (n, C), of text (n, T, C)."""
    model.eval()
    batch = EVALUATION_BATCH if images.is_floating_point() else TEXTS_AT_ONCE
    with torch.inference_mode():
        found = torch.cat([precise(model(some)) for some in images.split(batch)])
    # Training may not touch a tensor that was made in inference mode.
    return found.clone()


def kd_loss(scores: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(softmax(labels / T) || softmax(scores / T)), the mean over predictions.

    Both are logits. Hinton et al., arXiv 1503.02531: with T^2 the gradient's size does not depend
    on T.
    """
    soft = F.log_softmax(labels / temperature, dim=-1)
    own = F.log_softmax(precise(scores) / temperature, dim=-1)
    return temperature**2 * (soft.exp() * (soft - own)).sum(dim=-1).mean()


def digest(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    loss: Callable[[Any, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    batch_size: int,
    generator: torch.Generator,
) -> None:
    """Train on shuffled batches of the images by ``loss``, of what the model makes and labels."""
    model.train()
    orders = [torch.randperm(len(images), generator=generator) for _ in range(epochs)]
    batches = [batch for order in orders for batch in order.split(batch_size)]
    for batch in flops.each_size(batches) if images.is_meta else batches:
        optimizer.zero_grad(set_to_none=True)
        loss(model(images[batch]), labels[batch]).backward()
        optimizer.step()


def adam(model: nn.Module, learning_rate: float) -> torch.optim.Adam:
    """Over the trainable parameters. Its state lasts, as the models that it trains do."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.Adam(trainable, lr=learning_rate)
