"""FedDF: Ensemble Distillation for Robust Model Fusion in Federated Learning (Lin et al., 2020).

arXiv 2006.07242, algorithm 1, clients of one architecture. FedAvg, and then the server distils:
the student begins as the mean of the clients' weights, by samples; the teacher is the plain mean
of the logits of all clients' models on unlabelled public images; and the student descends on

    KL(softmax(teacher) || softmax(student)), the mean over a batch of the images,

of a language model over all tokens of public texts.

With drop_worst, clients whose models are no better than chance are left out of both means: those
whose label is the one of all clients' mean logits for at most 1/C of the images. With
distill_patience the last fifth of the images is not distilled on: after so many passes in a row
without a lower KL on it the distilling ends, with the student that had the lowest.

What is trained is a variant of ``methods/peft/``, as for fedpeft. One way a client: 4 bytes a
trainable parameter, and nothing of the public images, which the server alone looks at. Its work is
a forward pass over them for each client, and the distilling.

From the paper and its authors' code: the student's beginning, logits before the softmax, their
plain mean, temperature 1, Adam at 1e-3 that begins anew each round, with a cosine down to 0, that
the worst may be dropped. Ours: how both options tell without labels, which this server has not;
the paper drops models, and stops, by accuracy on a validation set, and distils for as many steps as
that takes, here for distill_epochs passes at most; images from the training set or drawn, where
they take another data set. dp=client is refused: its noise is on a mean, and this learns from each
update. An all-reduce (gloo) is too: no client has the images' logits of all. Modelled compute,
which has no values, drops nobody and takes all passes.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from methods import Fleet, Shard, fedpeft
from methods.distillation import adam, digest, kd_loss, predict
from methods.shared.averaging import WeightedMean, with_unsaid
from methods.shared.local_training import load_trainable, trainable_state
from testbed.seeds import derive


class Config(fedpeft.Config, frozen=True, forbid_unknown_fields=True, kw_only=True):
    public_source: Literal["held-out", "glyphs"] = "held-out"
    """held-out: training images that no client then has. glyphs: drawn, as that data set's are."""
    public_samples: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] = 400
    """Public images, all of which each round distils on."""
    distill_epochs: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 5
    """The student's passes over them a round."""
    distill_batch_size: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 16
    """Public images."""
    distill_learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 1e-3
    """Adam's at a round's first step."""
    distill_patience: Annotated[int, msgspec.Meta(ge=1, le=10_000)] | None = None
    """Passes without gain on a fifth of the images, after which it ends; absent: it takes all."""
    drop_worst: bool = False
    """Leave out clients no better than chance; the server then holds all updates at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distill_patience is not None and self.public_samples < 5:
            raise ValueError(
                f"public_samples = {self.public_samples}: with distill_patience a fifth of them is "
                "held out, so there must be 5 or more"
            )


def check(config: Config, model: nn.Module) -> None:
    """Raises ValueError where the model lacks what the variant or the privacy needs."""
    if config.dp == "client":
        raise ValueError(
            "dp = 'client': its noise is on the mean of all updates, and feddf learns from each "
            "one's predictions; take dp=sample, or method fedavg or fedpeft"
        )
    fedpeft.check(config, model)


class Server(fedpeft.Server):
    def __init__(self, config: Config, model: nn.Module, shard: Shard, seed: int) -> None:
        super().__init__(config, model, shard, seed)
        self.config = config
        self.images = shard.public
        self.generator = torch.Generator().manual_seed(derive(seed, "distillation"))

    async def round(self, fleet: Fleet) -> None:
        # 1. Everybody gets the present weights.
        state = trainable_state(self.model)
        sent = await fleet.broadcast(self.kind, state, base="held")
        # 2. Updates enter the mean as they come, and what they predict the teacher.
        mean, teacher = WeightedMean(), WeightedMean()
        held: list[Update] = []
        async for message in fleet.gather(self.kind, like=state, base=sent):
            if self.take(message, fleet):
                load_trainable(self.model, message.tensors)
                logits = predict(self.model, self.images)
                update = Update(message.tensors, fleet.samples[message.sender], logits)
                if self.config.drop_worst:
                    held.append(update)
                else:
                    update.enter(mean, teacher)
        for update in better_than_chance(held):
            update.enter(mean, teacher)
        # 3. The mean learns from the teacher; where none came, the model stays.
        load_trainable(self.model, with_unsaid(mean.result(), state, sent) or state)
        if found := teacher.result():
            self.distil(found["logits"])

    def distil(self, logits: Tensor) -> None:
        """Train the model towards these, float32 (images, classes)."""
        config = self.config
        patience = config.distill_patience
        count = len(self.images) - (0 if patience is None else len(self.images) // 5)
        images, aside = self.images[:count], self.images[count:]
        batches = math.ceil(len(images) / config.distill_batch_size)
        optimizer = adam(self.model, config.distill_learning_rate)
        schedule = CosineAnnealingLR(optimizer, config.distill_epochs * batches)

        def anneal(*_: Any) -> None:
            schedule.step()

        optimizer.register_step_post_hook(anneal)
        loss = partial(kd_loss, temperature=1.0)

        def passes(epochs: int) -> None:
            digest(
                *(self.model, images, logits, loss, optimizer),
                epochs=epochs,
                batch_size=config.distill_batch_size,
                generator=self.generator,
            )

        if patience is None:
            passes(config.distill_epochs)
            return
        best, without_gain = trainable_state(self.model), 0
        lowest = loss(predict(self.model, aside), logits[count:])
        for _ in range(config.distill_epochs):
            passes(1)
            found = loss(predict(self.model, aside), logits[count:])
            # Where there are no values, each is the lowest.
            if bool(found < lowest):
                best, lowest, without_gain = trainable_state(self.model), found, 0
            elif (without_gain := without_gain + 1) == patience:
                break
        load_trainable(self.model, best)


class Update(NamedTuple):
    tensors: Mapping[str, Tensor]
    samples: int
    logits: Tensor
    """What its model predicts for the public images, float32 (images, classes)."""

    def enter(self, mean: WeightedMean, teacher: WeightedMean) -> None:
        mean.add(self.tensors, weight=self.samples)
        teacher.add({"logits": self.logits}, weight=1)


def better_than_chance(updates: list[Update]) -> list[Update]:
    """Those whose labels are all together's for more than 1/C of the images; all where none is."""
    if not updates:
        return []
    labels = torch.stack([update.logits for update in updates]).mean(dim=0).argmax(dim=-1)
    chance = 1 / updates[0].logits.shape[-1]
    found = [
        update
        for update in updates
        if bool((update.logits.argmax(dim=-1) == labels).double().mean() > chance)
    ]
    return found or updates


Client = fedpeft.Client
stageable = fedpeft.stageable
check_samples = fedpeft.check_samples
adapt = fedpeft.adapt
traffic = fedpeft.traffic
client_flops = fedpeft.client_flops
fixed_flops = fedpeft.fixed_flops


def public_samples(config: Config) -> int:
    return config.public_samples


def public_source(config: Config) -> str:
    return config.public_source
