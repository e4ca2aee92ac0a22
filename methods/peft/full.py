"""Full fine-tuning: every parameter, which the other variants are measured against."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from methods import peft

if TYPE_CHECKING:
    from methods.fedpeft import Config

KIND = "model"
LEARNING_RATE = {"sgd": 1e-3, "adamw": 1e-3}
"""sgd: the paper's. adamw: ours, for the shipped model."""


def check(config: Config, model: nn.Module) -> None:
    """Any model will do."""


def adapt(config: Config, model: nn.Module) -> nn.Module:
    return peft.train_only(model, model.parameters())
