"""LoRA: low-rank adapters on query and value of every block, and the classifier.

Hu et al., arXiv 2106.09685; the implementation is peft's. 2 * rank * width for each of the two,
in every block. Their second factor starts at zero, so the model's function is at first unchanged.
"""

from __future__ import annotations

from typing import Protocol

from torch import nn

from methods import peft
from methods.shared.backbone import staged

KIND = "adapter"
LEARNING_RATE = {"sgd": 3e-2, "adamw": 1e-2}
"""Both ours, for the shipped model."""
TARGETS = ["query", "value"]


class Config(Protocol):
    @property
    def rank(self) -> int: ...

    @property
    def lora_alpha(self) -> float: ...


def check(model: nn.Module) -> None:
    peft.require(model, "lora", *TARGETS, "head.classifier")


def adapt(config: Config, model: nn.Module) -> nn.Module:
    # Here and not above: it takes seconds, which only the process that forks the nodes spends.
    from peft import LoraConfig, inject_adapter_in_model

    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]  # It divides it by r, no more.
        target_modules=TARGETS,
    )
    adapted = inject_adapter_in_model(lora, model)
    factors = [each for name, each in adapted.named_parameters() if "lora_" in name]
    return peft.train_only(adapted, [*factors, *staged(adapted).head.classifier.parameters()])
