"""Adapter: one bottleneck shared by all blocks, and the classifier.

Of parameters: 2 * width * hidden + hidden + width, and the classifier's.

m is what a block's perceptron gives, before it is added to the tokens: the block adds
m + up(gelu(down(m))). That place, and one module for all blocks, is how the authors of FedPEFT do
it in the code of their next paper (FedPerfix, ICCV 2023); its size is what FedPEFT's counts give.
The place is Pfeiffer et al.'s (arXiv 2005.00247). Reconstructed: GELU, as in the visual prompt
tuning code that theirs follows; FedPerfix has tanh. Of a language model the classifier stays.
That code starts with both projections at zero, from where no gradient reaches either weight; here
the first is random and the second zero, so that the model's function is at first unchanged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods import peft
from methods.shared.backbone import learnt_classifier, roles, staged

if TYPE_CHECKING:
    from methods.fedpeft import Config

KIND = "adapter"
LEARNING_RATE = {"sgd": 5e-3, "adamw": 1e-2}
"""sgd: the paper's. adamw: ours, for the shipped model."""


class Adapter(nn.Module):
    """The bottleneck, whose output is added to tokens (..., width)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, hidden)
        self.up = nn.Linear(hidden, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        change: Tensor = self.up(F.gelu(self.down(tokens.to(self.down.weight.dtype))))
        return change.to(tokens.dtype)


class Adapted(nn.Module):
    """A layer and the adapter of what it gives."""

    def __init__(self, layer: nn.Module, adapter: Adapter) -> None:
        super().__init__()
        self.layer = layer
        self.adapter = adapter

    def forward(self, tokens: Tensor) -> Tensor:
        result: Tensor = self.layer(tokens)
        change: Tensor = self.adapter(result)
        return result + change


def check(config: Config, model: nn.Module) -> None:
    peft.require(model, "adapter", "blocks", roles(model).perceptron_output, "head.classifier")


def adapt(config: Config, model: nn.Module) -> nn.Module:
    stages = staged(model)
    width = stages.spec.width
    with torch.device(next(model.parameters()).device):
        adapter = Adapter(width, config.adapter_width or width // 8)
    for path, layer in list(peft.named(stages.blocks, roles(model).perceptron_output)):
        owner, _, name = path.rpartition(".")
        setattr(stages.blocks.get_submodule(owner), name, Adapted(layer, adapter))
    return peft.train_only(model, [*adapter.parameters(), *learnt_classifier(model)])
