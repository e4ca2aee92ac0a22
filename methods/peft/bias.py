"""BitFit: every bias and the classifier (Ben-Zaken et al., arXiv 2106.10199).

Biases are those of the linear layers, of the norms and of the patch embedding: 11 widths a block
where the perceptron has 4 widths, one for the patches and one for the last norm. Most language
models have none, and are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from methods import peft
from methods.shared.backbone import learnt_classifier

if TYPE_CHECKING:
    from methods.fedpeft import Config

KIND = "bias"
LEARNING_RATE = {"sgd": 1e-2, "adamw": 1e-2}
"""sgd: the paper's. adamw: ours, for the shipped model."""


def check(config: Config, model: nn.Module) -> None:
    peft.require(model, "bias", "head.classifier")
    if not biases(model):
        raise ValueError("variant bias needs biases, and this model has none: take another variant")


def adapt(config: Config, model: nn.Module) -> nn.Module:
    return peft.train_only(model, [*biases(model), *learnt_classifier(model)])


def biases(model: nn.Module) -> list[nn.Parameter]:
    return [each for name, each in model.named_parameters() if name.endswith("bias")]
