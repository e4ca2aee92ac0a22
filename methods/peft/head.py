"""Linear probing: the classifier alone. width * classes + classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from methods import peft

if TYPE_CHECKING:
    from methods.fedpeft import Config

KIND = "head"
LEARNING_RATE = {"sgd": 5e-3, "adamw": 3e-2}
"""sgd: the paper's. adamw: ours, for the shipped model."""


def check(config: Config, model: nn.Module) -> None:
    peft.require(model, "head", "head.classifier")


def adapt(config: Config, model: nn.Module) -> nn.Module:
    return peft.train_only(model, model.get_submodule("head.classifier").parameters())
