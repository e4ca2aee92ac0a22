"""The classifier alone: linear probing. width * classes + classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from methods import tuning

if TYPE_CHECKING:
    from methods.fedpeft import Config

KIND = "head"
LEARNING_RATE = {"sgd": 5e-3, "adamw": 3e-2}
"""sgd: the paper's. adamw: ours, for the shipped model."""


def check(model: nn.Module) -> None:
    tuning.require(model, "head", "head.classifier")


def adapt(config: Config, model: nn.Module) -> nn.Module:
    return tuning.train_only(model, model.get_submodule("head.classifier").parameters())
