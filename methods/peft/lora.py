"""LoRA: low-rank adapters on query and value of every block, and the classifier.

Hu et al., arXiv 2106.09685: a layer's output gets B(A x) * lora_alpha / rank. 2 * rank * width
parameters for each of the two, in every block. A's first values are uniform within
1 / sqrt(width), as in peft; B starts at zero, so the model's function is at first unchanged. A
language model's layers may be other ones (``roles``), and its classifier stays.

Not peft's own, which gives the same numbers: to import it takes twice as long as all else that a
run of a ViT needs, and this is the default.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods import peft
from methods.shared.backbone import learnt_classifier, roles

KIND = "adapter"
LEARNING_RATE = {"sgd": 3e-2, "adamw": 1e-2}
"""Both ours, for the shipped model."""


class Config(Protocol):
    @property
    def rank(self) -> int: ...

    @property
    def lora_alpha(self) -> float: ...


class LowRank(nn.Module):
    """A linear layer and what is added to its output, through ``rank`` features.

    A and B have at least float32's precision, whatever the layer's.
    """

    def __init__(self, layer: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.layer = layer
        self.scale = scale
        dtype = torch.promote_types(layer.weight.dtype, torch.float32)
        first = layer.weight.new_empty(rank, layer.in_features, dtype=dtype)
        self.lora_A = nn.Parameter(first)
        self.lora_B = nn.Parameter(layer.weight.new_empty(layer.out_features, rank, dtype=dtype))
        self.reset()

    def reset(self, generator: torch.Generator | None = None) -> None:
        """Draw A anew and make B zero, so that nothing is added."""
        bound = 1 / math.sqrt(self.layer.in_features)
        with torch.no_grad():
            self.lora_A.uniform_(-bound, bound, generator=generator)
            self.lora_B.zero_()

    def resize(self, rank: int, scale: float) -> None:
        """Keep the first ``rank`` rows of A and columns of B, as new parameters."""
        self.scale = scale
        self.lora_A = nn.Parameter(self.lora_A[:rank].detach().clone())
        self.lora_B = nn.Parameter(self.lora_B[:, :rank].detach().clone())

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.layer(features)
        hidden = F.linear(features.to(self.lora_A.dtype), self.lora_A)
        added = F.linear(hidden, self.lora_B)
        # A factor of 1 changes no bit, and is a pass over all features each way.
        added = added if self.scale == 1 else added * self.scale
        return result + added.to(result.dtype)


def check(config: Config, model: nn.Module) -> None:
    check_targets(model)
    check_rank(config.rank, model, f"rank = {config.rank}")


def check_targets(model: nn.Module) -> None:
    """Raises ValueError where the model lacks a layer to adapt, or it is not linear."""
    peft.require(model, "lora", *roles(model).low_rank, "head.classifier")
    for path, module in _targets(model):
        if not isinstance(module, nn.Linear):
            raise ValueError(
                f"variant lora needs {path} to be an nn.Linear, and it is a "
                f"{type(module).__name__}: take another model, or another variant"
            )


def check_rank(rank: int, model: nn.Module, given: str) -> None:
    """Raises ValueError, with the option as ``given``, where a layer has no such rank."""
    for path, layer in _targets(model):
        assert isinstance(layer, nn.Linear)
        most = min(layer.in_features, layer.out_features)
        if rank > most:
            raise ValueError(
                f"{given}: {path} is a matrix of {layer.out_features} x {layer.in_features}, "
                f"whose rank is at most {most}; take at most that"
            )


def adapt(config: Config, model: nn.Module) -> nn.Module:
    return insert(model, config.rank, config.lora_alpha / config.rank)


def insert(model: nn.Module, rank: int, scale: float) -> nn.Module:
    """The model with adapters; only they and a new classifier require a gradient."""
    for path, layer in list(_targets(model)):
        assert isinstance(layer, nn.Linear)
        owner, _, name = path.rpartition(".")
        setattr(model.get_submodule(owner), name, LowRank(layer, rank, scale))
    factors = [each for one in adapters(model).values() for each in (one.lora_A, one.lora_B)]
    return peft.train_only(model, [*factors, *learnt_classifier(model)])


def adapters(model: nn.Module) -> dict[str, LowRank]:
    """Adapters of a model, by their paths."""
    return {path: each for path, each in model.named_modules() if isinstance(each, LowRank)}


def _targets(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that get an adapter, with their paths."""
    return peft.named(model, *roles(model).low_rank)
