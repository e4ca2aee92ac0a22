"""VPT-deep: soft prompts in every block, and the classifier: blocks * length * width.

VPT-deep (Jia et al., arXiv 2203.12119): each block reads its own prompts beside the tokens, and
what it makes of them is dropped behind it. They stand after the patches, as in the authors' code,
so that the class token stays first; attention does not know of places, so this changes nothing.
Their first values are uniform within sqrt(6 / (values of a patch + width)), as in both codes.

In a language model they stand before the tokens, which see what is before them alone, and its
classifier stays. Ours there: first values within sqrt(3 / width), the same for tokens as wide as
the patches are.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from methods import peft
from methods.shared.backbone import causal, learnt_classifier, staged

if TYPE_CHECKING:
    from methods.fedpeft import Config

KIND = "prompt"
LEARNING_RATE = {"sgd": 1e-2, "adamw": 3e-2}
"""sgd: the paper's. adamw: ours, for the shipped model."""


class Prompted(nn.Module):
    """A block, tokens (batch, tokens, width) to the same shape, that reads prompts beside them."""

    def __init__(self, block: nn.Module, prompt: Tensor, *, first: bool) -> None:
        """``first``: they stand before the tokens, and not behind them."""
        super().__init__()
        self.block = block
        self.prompt = nn.Parameter(prompt)
        self.first = first

    def forward(self, tokens: Tensor) -> Tensor:
        prompt = self.prompt.to(tokens.dtype).expand(len(tokens), -1, -1)
        if self.first:
            whole: Tensor = self.block(torch.cat([prompt, tokens], dim=1))
            return whole[:, prompt.shape[1] :]
        result: Tensor = self.block(torch.cat([tokens, prompt], dim=1))
        return result[:, : tokens.shape[1]]


def check(config: Config, model: nn.Module) -> None:
    peft.require(model, "prompt", "blocks", "head.classifier")


def adapt(config: Config, model: nn.Module) -> nn.Module:
    stages = staged(model)
    spec, text = stages.spec, causal(model)
    read = spec.width if text else spec.channels * spec.patch**2
    bound = math.sqrt(6 / (read + spec.width))
    device = next(model.parameters()).device
    prompts = []
    for number, block in enumerate(stages.blocks):
        first = torch.empty(1, config.prompt_length, spec.width, device=device)
        prompted = Prompted(block, first.uniform_(-bound, bound), first=text)
        stages.blocks[number] = prompted
        prompts.append(prompted.prompt)
    return peft.train_only(model, [*prompts, *learnt_classifier(model)])
