"""Masked training: SGD under which weights that a mask does not keep stay 0."""

from collections.abc import Sequence
from typing import Annotated

import msgspec
import torch
from torch import Tensor, nn

from methods import Shard
from methods.shared.local_training import train


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    local_epochs: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 5
    """E: passes over a client's samples a round."""
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 16
    """Samples."""
    learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 0.1
    """Of SGD without momentum in the first round."""
    rate_decay: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.998
    """Factor of the learning rate from one round to the next."""
    weight_decay: Annotated[float, msgspec.Meta(ge=0)] = 5e-4
    clip: Annotated[float, msgspec.Meta(gt=0)] = 10.0
    """Greatest L2 norm of a step's gradient, that of masked weights in it."""


def train_masked(
    config: Options,
    model: nn.Module,
    shard: Shard,
    masks: Sequence[tuple[Tensor, Tensor]],
    *,
    number: int,
    generator: torch.Generator,
) -> None:
    """Train all epochs of round ``number``.

    ``masks``: some of the model's weights, each with its mask, bool of the weight's shape, which is
    applied again after each step.
    """
    parameters = [each for each in model.parameters() if each.requires_grad]
    rate = config.learning_rate * config.rate_decay ** (number - 1)
    optimizer = torch.optim.SGD(parameters, lr=rate, weight_decay=config.weight_decay)

    def clip(*_: object) -> None:
        nn.utils.clip_grad_norm_(parameters, config.clip)

    def mask(*_: object) -> None:
        with torch.no_grad():
            for weight, own in masks:
                weight.mul_(own)

    optimizer.register_step_pre_hook(clip)
    optimizer.register_step_post_hook(mask)
    train(
        model,
        shard,
        optimizer,
        epochs=config.local_epochs,
        batch_size=config.batch_size,
        generator=generator,
    )
