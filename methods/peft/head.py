"""Linear probing: the classifier alone. width * classes + classes.

Of a language model the scores of its tokens, width * vocabulary; refused where they are its
embedding, for to train that is to change what every block is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from methods import peft
from methods.shared.backbone import STAGES, tied

if TYPE_CHECKING:
    from methods.fedpeft import Config

KIND = "head"
LEARNING_RATE = {"sgd": 5e-3, "adamw": 3e-2}
"""sgd: the paper's. adamw: ours, for the shipped model."""


def check(config: Config, model: nn.Module) -> None:
    peft.require(model, "head", "head.classifier")
    if all(hasattr(model, stage) for stage in STAGES) and tied(model):
        raise ValueError(
            "variant head trains the classifier alone, and this model's is its embedding too, on "
            "which all blocks rest: take another variant, or a model whose weights are not tied"
        )


def adapt(config: Config, model: nn.Module) -> nn.Module:
    return peft.train_only(model, model.get_submodule("head.classifier").parameters())
