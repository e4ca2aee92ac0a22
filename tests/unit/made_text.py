"""A tiny language model with random weights, and text of clients for it."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import msgspec
import torch
from copied import copied
from torch import Tensor

from methods import Shard
from methods.shared.objective import IGNORED
from nodes.workload.text.model import LanguageModel, LanguageSpec

SPEC = LanguageSpec(vocabulary=40, width=16, depth=2, heads=2, mlp_width=24, context=6)
LENGTH = 6
SAMPLES = {"client-1": 5, "client-2": 8, "client-3": 4}
TEXT_ALONE = {"fedsp"}
"""Methods that take no model of images."""


def language_model(device: str = "cpu", **spec: Any) -> LanguageModel:
    """No norm is one, so that a missing one shows; logits are small."""
    torch.manual_seed(0)
    # Made anew it takes several times as long, most of all without values.
    return copied(_made(device, msgspec.structs.replace(SPEC, **spec)))


@cache
def _made(device: str, spec: LanguageSpec) -> LanguageModel:
    with torch.device(device):
        model = LanguageModel(spec)
        with torch.no_grad():
            model.embed.weight.mul_(0.3)
            for name, each in model.named_parameters():
                if "norm" in name:
                    each.add_(0.1 * torch.randn_like(each))
    return model


def ids(count: int, seed: int = 1, length: int = LENGTH, vocabulary: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocabulary, (count, length), generator=generator)


def text_shards(
    counts: Mapping[str, int] = SAMPLES, public: int = 8, length: int = LENGTH
) -> dict[str, Shard]:
    """Sequences whose first target does not count, and of every second one the last neither."""
    common = ids(public, seed=99, length=length)
    found = {}
    for number, (name, count) in enumerate(counts.items(), start=1):
        stream = ids(count, seed=number, length=length + 1)
        targets = stream[:, 1:].clone()
        targets[:, 0] = IGNORED
        targets[::2, -1] = IGNORED
        found[name] = Shard(stream[:, :-1].contiguous(), targets, common, number)
    return found


def nobody(public: int = 8, length: int = LENGTH) -> Shard:
    """The server's data: none, but for what all have in common."""
    return next(iter(text_shards({"server": 0}, public, length).values()))._replace(client=0)
