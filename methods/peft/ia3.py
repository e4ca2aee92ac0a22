"""(IA)3: a factor a feature on keys, values and the hidden layer, and the classifier.

Liu et al., arXiv 2205.05638; the implementation is peft's. 2 * width and the hidden features, in
every block. The factors start at one, so the model's function is at first unchanged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

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


def check(config: Config, model: nn.Module) -> None:
    peft.require(model, "ia3", *OUTPUTS, *INPUTS, "head.classifier")


def adapt(config: Config, model: nn.Module) -> nn.Module:
    # Here and not above: it takes seconds, which only the process that forks the nodes spends.
    from peft import IA3Config, inject_adapter_in_model

    ia3 = IA3Config(target_modules=[*OUTPUTS, *INPUTS], feedforward_modules=INPUTS)
    adapted = inject_adapter_in_model(ia3, model)
    factors = [each for name, each in adapted.named_parameters() if "ia3_" in name]
    return peft.train_only(adapted, [*factors, *staged(adapted).head.classifier.parameters()])
