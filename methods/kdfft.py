"""KD-FFT: Knowledge Distillation-Based Federated Fine-Tuning under Resource Constraints.

Li and Li, CAC 2024. Clients tune a pretrained model with LoRA and exchange what they know instead
of weights: logits on a public subset S of |S| images, C classes. Round t: the server sends the
labels Y; a client digests them, minimising T^2 * KL(softmax(Y / T) || softmax(f / T)) on S, trains
with cross-entropy on its own samples, and sends its logits on a new S; their mean is the next Y.

Payload bytes a client and round: up = down = |S| * C * 4 + 8, whatever LoRA's rank. In round 1
there is nothing to digest yet, and 8 go down. Of a language model, T tokens an input and a
vocabulary of C, |S| * T * C * 4 + 8, a thousand times an image's; with top_k = k
|S| * T * (4 k + 4 + i k) + 8, i = 1, 2 or 4 (see ``methods.distillation``). top_k is ours.

From the paper, by its abstract: LoRA for local training, and that knowledge distillation takes the
place of averaging, so that LoRA's size does not show in the traffic. Reconstructed: the steps of a
round, logits rather than probabilities, the plain mean over clients, T, Adam whose state lasts,
and the server's student. From FedMD's code: an S drawn anew each round, one epoch of digesting
before four of private training, averaging without weights (how many samples a client has says
little of how well it knows these images). Sharpening is DS-FL's (Itahara et al., IEEE TMC 2021).
"""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

import msgspec
import torch
from torch import Tensor, nn

from methods import Fleet, Peer, Shard, distillation
from methods.distillation import Labels, Public, adam, classes, digest, kd_loss
from methods.distillation.largest import loss_of_largest
from methods.peft import lora
from methods.shared import flops
from methods.shared.averaging import BY_OTHERS
from methods.shared.beside import only_with
from methods.shared.local_training import train
from methods.shared.objective import scores
from testbed.seeds import derive

OF_STUDENT = only_with("student", True)


class Config(distillation.PublicImages, frozen=True, forbid_unknown_fields=True, kw_only=True):
    rank: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 8
    """Rank of each LoRA adapter."""
    lora_alpha: Annotated[float, msgspec.Meta(gt=0)] = 8.0
    """The adapter's output is scaled by lora_alpha / rank."""
    temperature: Annotated[float, msgspec.Meta(gt=0, le=1000)] = BY_OTHERS
    """T; absent: 2, and with sharpen 1, since DS-FL has no T."""
    digest_epochs: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    """A client's passes over S a round."""
    digest_batch_size: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 16
    """Public images; the student's too."""
    digest_learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 5e-3
    local_epochs: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 4
    """Passes over a client's own samples a round."""
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 16
    """Samples."""
    learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 5e-3
    """Adam's, on a client's own samples."""
    sharpen: bool = False
    """Reduce the labels' entropy: the softmax of the mean probabilities / sharpen_temperature is
    what is trained towards, whatever T."""
    sharpen_temperature: Annotated[
        float, msgspec.Meta(gt=0, le=1000), only_with("sharpen", True)
    ] = 0.1
    """The lower, the sharper."""
    student: bool = True
    """Distil a model on the server, which the run's accuracy is then of."""
    student_epochs: Annotated[int, msgspec.Meta(ge=1, le=1000), OF_STUDENT] = 5
    """Its passes over S a round."""
    student_learning_rate: Annotated[float, msgspec.Meta(gt=0), OF_STUDENT] = 5e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature is None:
            own = 1.0 if self.sharpen else 2.0
            msgspec.structs.force_setattr(self, "temperature", own)


def check(config: Config, model: nn.Module) -> None:
    """Raises ValueError where the model has nothing that LoRA adapts."""
    lora.check(config, model)
    distillation.check(config, model)


def adapt(config: Config, model: nn.Module) -> nn.Module:
    """The model with LoRA; only that and its classifier are trained."""
    return lora.adapt(config, model)


def loss_of(config: Config) -> Any:
    """The loss of digesting, of a model's logits and the labels."""
    return loss_of_largest(partial(kd_loss, temperature=config.temperature), config.top_k)


class Server:
    def __init__(self, config: Config, model: nn.Module, shard: Shard, seed: int) -> None:
        self.config = config
        self.model = model if config.student else None
        self.seed = seed
        self.public = Public(config, shard.public, classes(model))
        self.labels: Labels | None = None
        self.generator = torch.Generator().manual_seed(derive(seed, "student"))
        self.optimizer = adam(model, config.student_learning_rate)
        """The student's."""

    async def round(self, fleet: Fleet) -> None:
        # 1. Everybody gets the labels; 2. to 4. are the clients'.
        await self.public.announce(fleet, self.seed, self.labels)
        # 5. The mean of what they answer is the next labels; where none came, these stay.
        logits = await self._mean(fleet)
        if logits is None:
            return
        self.labels = Labels(fleet.round, logits)
        # 6. The student learns from them too.
        if self.model is not None:
            digest(
                self.model,
                self.public.subset(self.seed, fleet.round),
                logits,
                loss_of(self.config),
                self.optimizer,
                epochs=self.config.student_epochs,
                batch_size=self.config.digest_batch_size,
                generator=self.generator,
            )

    async def _mean(self, fleet: Fleet) -> Tensor | None:
        if not self.config.sharpen:
            return await self.public.mean(fleet, self.seed)
        mean = await self.public.mean(fleet, self.seed, of=lambda logits: logits.softmax(dim=-1))
        if mean is None:
            return None
        # As logits that digesting divides by T: what is left is the sharpened distribution.
        return mean * (self.config.temperature / self.config.sharpen_temperature)

    def evaluate(self, inputs: Tensor, targets: Tensor) -> dict[str, float]:
        """The student's."""
        return {} if self.model is None else scores(self.model, inputs, targets)


class Client:
    def __init__(self, config: Config, model: nn.Module, shard: Shard, seed: int) -> None:
        self.config = config
        self.model = model
        self.shard = shard
        self.public = Public(config, shard.public, classes(model))
        self.generator = torch.Generator().manual_seed(seed)
        self.digesting = adam(model, config.digest_learning_rate)
        self.training = adam(model, config.learning_rate)

    def round(self, peer: Peer) -> None:
        # 1. Hear what the others know.
        seed, labels = self.public.receive_labels(peer)
        # 2. Digest it.
        if labels is not None:
            digest(
                self.model,
                self.public.subset(seed, labels.round),
                labels.logits,
                loss_of(self.config),
                self.digesting,
                epochs=self.config.digest_epochs,
                batch_size=self.config.digest_batch_size,
                generator=self.generator,
            )
        # 3. Train on the client's own samples.
        train(
            self.model,
            self.shard,
            self.training,
            epochs=self.config.local_epochs,
            batch_size=self.config.batch_size,
            generator=self.generator,
        )
        # 4. Send what this client knows of the round's public images.
        self.public.answer(peer, seed, self.model)

    def evaluate(self, inputs: Tensor, targets: Tensor) -> dict[str, float]:
        """The client's own model's."""
        return scores(self.model, inputs, targets)


def client_flops(config: Config, model: nn.Module, image: Tensor) -> float:
    """Training on the client's own samples."""
    return config.local_epochs * flops.step(model, image, model)


def fixed_flops(config: Config, model: nn.Module, image: Tensor) -> float:
    """Digesting S, which the first round has not, and predicting on it."""
    an_image = config.digest_epochs * flops.step(model, image, model) + flops.forward(model, image)
    return config.public_batch * an_image


def on_text(given: Mapping[str, Any]) -> dict[str, Any]:
    """Few logits of each token, and lower rates, since no classifier is new."""
    rates = {"learning_rate": 2e-3, "digest_learning_rate": 1e-3, "student_learning_rate": 1e-3}
    return rates | distillation.on_text(given)


stageable = distillation.stageable
staged_shapes = distillation.staged_shapes
check_stages = distillation.check_stages
public_samples = distillation.public_samples
public_source = distillation.public_source
traffic = distillation.traffic
