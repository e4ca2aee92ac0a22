"""LoRA: low-rank adapters on query and value of every block, and the classifier.

Hu et al., arXiv 2106.09685: a layer's output gets B(A x) * lora_alpha / rank. 2 * rank * width
parameters for each of the two, in every block. A's first values are uniform within
1 / sqrt(width), as in peft; B starts at zero, so the model's function is at first unchanged.

Not peft's own, which gives the same numbers: to import it takes twice as long as all else that a
run of a ViT needs, and this is the default.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

from torch import Tensor, nn
from torch.nn import functional as F

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


class LowRank(nn.Module):
    """A linear layer and what is added to its output, through ``rank`` features."""

    def __init__(self, layer: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.layer = layer
        self.scale = scale
        bound = 1 / math.sqrt(layer.in_features)
        first = layer.weight.new_empty(rank, layer.in_features).uniform_(-bound, bound)
        self.lora_A = nn.Parameter(first)
        self.lora_B = nn.Parameter(layer.weight.new_zeros(layer.out_features, rank))

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.layer(features)
        return result + F.linear(F.linear(features, self.lora_A), self.lora_B) * self.scale


def check(model: nn.Module) -> None:
    peft.require(model, "lora", *TARGETS, "head.classifier")
    for path, module in _targets(model):
        if not isinstance(module, nn.Linear):
            raise ValueError(
                f"variant lora needs {path} to be an nn.Linear, and it is a "
                f"{type(module).__name__}: take another model, or another variant"
            )


def adapt(config: Config, model: nn.Module) -> nn.Module:
    factors = []
    for path, layer in list(_targets(model)):
        assert isinstance(layer, nn.Linear)
        added = LowRank(layer, config.rank, config.lora_alpha / config.rank)
        owner, _, name = path.rpartition(".")
        setattr(model.get_submodule(owner), name, added)
        factors += [added.lora_A, added.lora_B]
    return peft.train_only(model, [*factors, *staged(model).head.classifier.parameters()])


def _targets(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules whose names' last word is a target's, with their paths."""
    for path, module in model.named_modules():
        if path.rpartition(".")[2] in TARGETS:
            yield path, module
