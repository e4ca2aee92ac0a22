"""FedMD: Heterogenous Federated Learning via Model Distillation (Li and Wang, arXiv 1910.03581).

Every client has a model of its own kind, here the pretrained backbone cut after depths[k mod n]
blocks under a classifier of its own, all of it trained. What they agree on is the consensus: the
mean of their class scores on a public subset S of |S| images, C classes. Round t: the server sends
the consensus Y on round t-1's S (distribute); a client trains its scores f towards it, minimising
mean |f - Y| (digest), then on its own samples (revisit), and sends its scores on a new S
(communicate); their mean is the next consensus (aggregate). In its first round a client trains on
its own samples alone (transfer learning).

Payload bytes a client and round: up = down = |S| * C * 4 + 8; in round 1, 8 down. Of a language
model, and with top_k, see ``methods.distillation``. Its clients' classifiers are those of its
tokens, and an embedding that is one is trained as both.

From the paper and its authors' code (diogenes0319/FedMD_clean): these steps in this order; scores
before the softmax; their plain mean; the mean absolute error; an S drawn anew each round; Adam with
1e-3, two of them, whose states last; 1 epoch of digesting, 4 of revisiting, at most 25 of first
training. There a round begins with communicate, here with distribute, which gives the same sequence
and has a round's training inside the round. Not as there: public images have no labels here, so
that the transfer learning on them is the backbone's own pretraining; S is not stratified by class;
the batch sizes (256 and 5) are for fewer images; no early stopping.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods import Fleet, Peer, Shard, distillation
from methods.distillation import Labels, Public, adam, classes, digest
from methods.distillation.largest import loss_of_largest
from methods.shared.backbone import staged
from methods.shared.local_training import train
from methods.shared.numbers import whole_numbers
from methods.shared.objective import scores
from methods.split_model import Part

ALL = "all"


class Config(distillation.PublicImages, frozen=True, forbid_unknown_fields=True, kw_only=True):
    depths: int | str = "2,3,4"
    """Blocks of the clients' models: client k has the (k mod n)th of these n; all: the model's."""
    digest_epochs: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    """A client's passes over S a round."""
    digest_batch_size: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 16
    """Public images."""
    digest_learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 1e-3
    first_epochs: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 25
    """Passes over a client's own samples in its first round."""
    local_epochs: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 4
    """The same in any other round."""
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 16
    """Samples."""
    learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 1e-3
    """Adam's, on a client's own samples."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depths != ALL and min(depths_of(self), default=0) < 1:
            raise ValueError(
                f"depths = {self.depths!r}: must be numbers of blocks, at least 1, such as 2,3,4, "
                f"or {ALL}"
            )


def depths_of(config: Config) -> list[int]:
    """Empty where they are no numbers, as all of the model's are."""
    return whole_numbers(config.depths)


def check(config: Config, model: nn.Module) -> None:
    """Raises ValueError where the model has fewer blocks than a client's is to have."""
    if max(depths_of(config), default=0) > len(staged(model).blocks):
        raise ValueError(
            f"depths = {config.depths}: the model has {len(staged(model).blocks)} blocks"
        )
    distillation.check(config, model)


class Server:
    def __init__(self, config: Config, model: nn.Module, shard: Shard, seed: int) -> None:
        self.model = None
        self.seed = seed
        self.public = Public(config, shard.public, classes(model))
        self.consensus: Labels | None = None

    async def round(self, fleet: Fleet) -> None:
        # 1. Distribute.
        await self.public.announce(fleet, self.seed, self.consensus)
        # 2. Aggregate; where nobody communicates, the consensus stays.
        scores = await self.public.mean(fleet, self.seed)
        if scores is not None:
            self.consensus = Labels(fleet.round, scores)

    def evaluate(self, inputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Nothing: all models are the clients'."""
        return {}


class Client:
    def __init__(self, config: Config, model: nn.Module, shard: Shard, seed: int) -> None:
        stages = staged(model)
        depths = depths_of(config) or [len(stages.blocks)]
        kept = dict(enumerate(stages.blocks[: depths[shard.client % len(depths)]]))
        self.config = config
        self.model = Part(stages.embed, kept, stages.head)
        self.shard = shard
        self.public = Public(config, shard.public, classes(model))
        self.generator = torch.Generator().manual_seed(seed)
        self.digesting = adam(self.model, config.digest_learning_rate)
        self.training = adam(self.model, config.learning_rate)
        self.is_new = True

    def round(self, peer: Peer) -> None:
        seed, consensus = self.public.receive_labels(peer)
        # 1. Transfer learning.
        if self.is_new:
            self._train(self.config.first_epochs)
            self.is_new = False
        if consensus is not None:
            # 2. Digest.
            digest(
                self.model,
                self.public.subset(seed, consensus.round),
                consensus.logits,
                loss_of_largest(F.l1_loss, self.config.top_k),
                self.digesting,
                epochs=self.config.digest_epochs,
                batch_size=self.config.digest_batch_size,
                generator=self.generator,
            )
            # 3. Revisit.
            self._train(self.config.local_epochs)
        # 4. Communicate.
        self.public.answer(peer, seed, self.model)

    def _train(self, epochs: int) -> None:
        train(
            self.model,
            self.shard,
            self.training,
            epochs=epochs,
            batch_size=self.config.batch_size,
            generator=self.generator,
        )

    def evaluate(self, inputs: Tensor, targets: Tensor) -> dict[str, float]:
        """The client's own model's."""
        return scores(self.model, inputs, targets)


def on_text(given: Mapping[str, Any]) -> dict[str, Any]:
    """Whole models, of which the first blocks alone know little, and no long training apart."""
    rates = {"learning_rate": 3e-4, "digest_learning_rate": 3e-4}
    epochs = {"first_epochs": 2, "local_epochs": 2}
    return {"depths": ALL, **rates, **epochs, **distillation.on_text(given)}


stageable = distillation.stageable
staged_shapes = distillation.staged_shapes
check_stages = distillation.check_stages
public_samples = distillation.public_samples
public_source = distillation.public_source
traffic = distillation.traffic
