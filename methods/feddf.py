"""FedDF: Ensemble Distillation for Robust Model Fusion in Federated Learning (Lin et al., 2020).

arXiv 2006.07242, algorithm 1, clients of one architecture. FedAvg, and then the server distils:
the student begins as the mean of the clients' weights, by samples; the teacher is the plain mean
of the logits of all clients' models on unlabelled public images; and the student descends on

    KL(softmax(teacher) || softmax(student)), the mean over a batch of the images.

What is trained is a variant of ``methods/peft/``, as for fedpeft. One way a client: 4 bytes a
trainable parameter, and nothing of the public images, which the server alone looks at. Its work is
a forward pass over them for each client, and the distilling.

From the paper and its authors' code: the student's beginning, logits before the softmax, their
plain mean, temperature 1, Adam at 1e-3 that begins anew each round, with a cosine down to 0. Ours:
as many passes as distill_epochs says, where they stop by accuracy on a validation set, which a
server without labels has not; no dropping of the worst clients; images from the training set or
drawn, where they take another data set. dp=client is refused: its noise is on a mean, and this
learns from each update. An all-reduce (gloo) is too: no client has the images' logits of all.
"""

import math
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from methods import Fleet, Shard, fedpeft
from methods.distillation import adam, digest, kd_loss, predict
from methods.shared.averaging import WeightedMean
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
        async for update in fleet.gather(self.kind, like=state, base=sent):
            if self.take(update, fleet):
                mean.add(update.tensors, weight=fleet.samples[update.sender])
                load_trainable(self.model, update.tensors)
                teacher.add({"logits": predict(self.model, self.images)}, weight=1)
        # 3. The mean learns from the teacher; where none came, the model stays.
        load_trainable(self.model, mean.result() or state)
        if found := teacher.result():
            self.distil(found["logits"])

    def distil(self, logits: Tensor) -> None:
        """Train the model towards these, float32 (images, classes)."""
        config = self.config
        batches = math.ceil(len(self.images) / config.distill_batch_size)
        optimizer = adam(self.model, config.distill_learning_rate)
        schedule = CosineAnnealingLR(optimizer, config.distill_epochs * batches)

        def anneal(*_: Any) -> None:
            schedule.step()

        optimizer.register_step_post_hook(anneal)
        digest(
            self.model,
            self.images,
            logits,
            partial(kd_loss, temperature=1.0),
            optimizer,
            epochs=config.distill_epochs,
            batch_size=config.distill_batch_size,
            generator=self.generator,
        )


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
