"""(IA)3: a factor a feature on keys, values and the hidden layer, and the classifier.

Liu et al., arXiv 2205.05638; the implementation is peft's. 2 * width and the hidden features, in
every block. The factors start at one, so the model's function is at first unchanged. Of a language
model the classifier stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from methods import peft
from methods.shared.backbone import learnt_classifier, roles
from methods.shared.objective import precise

if TYPE_CHECKING:
    from methods.fedpeft import Config

KIND = "adapter"
LEARNING_RATE = {"sgd": 1e-1, "adamw": 3e-2}
"""Both ours, for the shipped model."""


def check(config: Config, model: nn.Module) -> None:
    own = roles(model)
    peft.require(model, "ia3", *own.scaled_outputs, *own.scaled_inputs, "head.classifier")


def adapt(config: Config, model: nn.Module) -> nn.Module:
    # Here and not above: it takes seconds, which only the process that forks the nodes spends.
    from peft import IA3Config, inject_adapter_in_model

    outputs, inputs = list(roles(model).scaled_outputs), list(roles(model).scaled_inputs)
    ia3 = IA3Config(target_modules=outputs + inputs, feedforward_modules=inputs)
    adapted = inject_adapter_in_model(ia3, model)
    factors = [each for name, each in adapted.named_parameters() if "ia3_" in name]
    for each in factors:
        # Of a model in 16 bits peft makes them so, too coarse for steps from one.
        each.data = precise(each.data)
    return peft.train_only(adapted, [*factors, *learnt_classifier(adapted)])
