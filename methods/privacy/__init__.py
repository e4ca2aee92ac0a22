"""Differential privacy of averaged training: one file a level, named as the option's value.

A level's file holds

``ServerSide(config, seed)``
    ``mean(start, fleet)``: what takes a round's updates, or None where no budget is left for the
    round; ``take(update, fleet)``: whether an update may enter it; ``metrics()``.
``ClientSide(config, samples)``
    ``train(model, shard, optimizer, generator)``; ``outgoing(start, end)``: what is sent of the
    weights that it began and ended with; ``details``: what its message says beside them.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from importlib.util import find_spec
from types import ModuleType
from typing import Annotated, Literal, cast

import msgspec
import torch
from torch import nn

from methods.shared.averaging import LocalTraining
from methods.shared.backbone import Backbone, causal
from methods.shared.beside import only_with
from methods.shared.local_training import learnt

PRIVATE = only_with("dp", "sample", "client")


class Options(LocalTraining, frozen=True, forbid_unknown_fields=True, kw_only=True):
    dp: Literal["none", "sample", "client"] = "none"
    """What (epsilon, delta)-differential privacy holds for: a sample of a client, or a client."""
    dp_clip: Annotated[float, msgspec.Meta(gt=0), PRIVATE] = 1.0
    """Greatest L2 norm, over all tensors together, of a sample's gradient or a client's update."""
    dp_noise: Annotated[float, msgspec.Meta(ge=0.1, le=1e4)] | None = None
    """Noise multiplier: standard deviation of the noise in units of dp_clip."""
    dp_epsilon: Annotated[float, msgspec.Meta(ge=0.1, le=1000)] | None = None
    """In place of dp_noise: what dp_rounds may cost at most. Training ends where it is spent."""
    dp_rounds: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    """With dp_epsilon: rounds that each client trains in (sample), or of the run (client)."""
    dp_delta: Annotated[float, msgspec.Meta(ge=1e-9, lt=1), PRIVATE] = 1e-3
    """Less than one in the samples of any client (sample), or in the clients (client)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        options = ("dp_noise", "dp_epsilon", "dp_rounds")
        given = [name for name in options if getattr(self, name) is not None]
        if self.dp == "none":
            if given:
                raise ValueError(f"dp = 'none' with {given[0]}: take dp=sample or dp=client")
            return
        if given not in (["dp_noise"], ["dp_epsilon", "dp_rounds"]):
            raise ValueError(
                f"dp = {self.dp!r} takes either dp_noise, or dp_epsilon and dp_rounds; given: "
                f"{', '.join(given) or 'none of them'}"
            )
        if find_spec("opacus") is None:
            raise ValueError(f"dp = {self.dp!r} needs opacus: pip install 'wiretune[privacy]'")


def load(level: str) -> ModuleType:
    """The module of a level."""
    return importlib.import_module(f"{__name__}.{level}")


def check(config: Options, model: nn.Module) -> None:
    """Raises ValueError where a model would send what has no noise, or samples share gradients.

    Weights that two layers share, such as a tied embedding's, are no such case: a sample's gradient
    of them is the sum over their places.
    """
    if config.dp == "none":
        return
    parameters = dict(model.named_parameters())
    for name, module in model.named_modules():
        if config.dp == "sample" and isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ValueError(
                f"dp = 'sample': {name} normalises over a batch, so that samples share their "
                "gradients; take a model with layer or group norms"
            )
    for name in learnt(model):
        if name not in parameters:
            raise ValueError(
                f"dp = {config.dp!r}: buffer {name} is no weight that noise can be added to; take "
                "a model with layer or group norms, or register it with persistent=False where "
                "clients do not change it"
            )


def check_samples(config: Options, samples: Sequence[int]) -> None:
    """Raises ValueError where delta lets one of those protected be given away whole."""
    if config.dp == "none":
        return
    whole, whose = max(samples), "samples of the client with most"
    if config.dp == "client":
        whole, whose = len(samples), "clients of the run"
    if config.dp_delta * whole >= 1:
        raise ValueError(
            f"dp_delta = {config.dp_delta:g}: must be less than 1 / {whole}, one in the {whose}; "
            "with more, publishing one of them as it is would count as private"
        )


def prepare(config: Options, model: nn.Module) -> nn.Module:
    """The same model; what its nodes will need is imported, and has been used once.

    ``model``: as it will be trained, with a ``spec``. Raises ValueError where torch cannot take
    its gradients by sample.
    """
    level = load(config.dp)
    # What adapted it may have brought layers of its own.
    check(config, model)
    if config.dp == "sample":
        spec = cast(Backbone, model).spec
        with torch.device(next(model.parameters()).device):
            if causal(model):
                inputs = targets = torch.zeros(1, 2, dtype=torch.int64)
            else:
                inputs = torch.zeros(1, spec.channels, spec.side, spec.side)
                targets = torch.zeros(1, dtype=torch.int64)
        try:
            level.gradients(model, inputs, targets)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"dp = 'sample': this model's gradients cannot be taken by sample ({reason}); "
                "take another model, or dp=client"
            ) from error
    return model
