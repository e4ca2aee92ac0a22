"""(IA)3: a factor a feature on keys, values and the hidden layer, and the classifier.

Liu et al., arXiv 2205.05638. 2 * width and the hidden features, in every block. The factors start
at one, so the model's function is at first unchanged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from methods import peft
from methods.shared.backbone import staged

if TYPE_CHECKING:
    from methods.fedpeft import Config

KIND = "adapter"
LEARNING_RATE = {"sgd": 1e-1, "adamw": 3e-2}
"""Both ours, for the shipped model."""
OUTPUTS = ["key", "value"]
INPUTS = ["contract"]
"""The layer that reads the perceptron's hidden features."""


class ScaledOutput(nn.Module):
    """A linear layer with a factor for each feature that it gives."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.ia3 = nn.Parameter(layer.weight.new_ones(layer.out_features))

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.layer(features)
        return result * self.ia3


class ScaledInput(nn.Module):
    """A linear layer with a factor for each feature that it reads."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.ia3 = nn.Parameter(layer.weight.new_ones(layer.in_features))

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.layer(features * self.ia3)
        return result


def check(model: nn.Module) -> None:
    peft.require(model, "ia3", *OUTPUTS, *INPUTS, "head.classifier")
    peft.require_linear(model, "ia3", [*OUTPUTS, *INPUTS])


def adapt(config: Config, model: nn.Module) -> nn.Module:
    factors = [
        *(each.ia3 for each in peft.wrap(model, OUTPUTS, ScaledOutput)),
        *(each.ia3 for each in peft.wrap(model, INPUTS, ScaledInput)),
    ]
    return peft.train_only(model, [*factors, *staged(model).head.classifier.parameters()])
