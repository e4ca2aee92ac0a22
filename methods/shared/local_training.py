"""Local training and evaluation, and reading and writing of trainable weights."""

import copy
import math
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from methods import Shard
from methods.shared import flops
from methods.shared.averaging import rounded
from methods.shared.objective import loss, scores

Model = TypeVar("Model", bound=nn.Module)


def learnt(model: nn.Module) -> dict[str, Tensor]:
    """Tensors of a model that training changes, by name: what a message of weights is to be like.

    The trainable parameters, and the buffers of signed numbers that a state dict has, such as the
    means and variances of batch normalisation, which a frozen layer learns too.
    """
    found: dict[str, Tensor] = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    for path, module in model.named_modules():
        for name, buffer in module._buffers.items():
            lasts = buffer is not None and name not in module._non_persistent_buffers_set
            if lasts and buffer.dtype.is_signed:
                found[f"{path}.{name}" if path else name] = buffer
    return found


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of what training changes, safe to send while the model trains on."""
    return {name: tensor.detach().clone() for name, tensor in learnt(model).items()}


def load_trainable(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Write ``state`` into the model's parameters and buffers of the same names."""
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(rounded(tensor, own[name].dtype))


def without_values(model: nn.Module) -> bool:
    """Whether it is modelled: its weights are on the meta device, whatever its inputs are."""
    return next(model.parameters()).is_meta


def copy_of(model: Model) -> Model:
    """A model with trainable parameters of its own; what is frozen stays common."""
    frozen = {id(p): p for p in model.parameters() if not p.requires_grad}
    return copy.deepcopy(model, memo=frozen)


def train(
    model: nn.Module,
    shard: Shard,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    batch_size: int,
    generator: torch.Generator,
    steps: int | None = None,
    penalty: Callable[[], Tensor] | None = None,
) -> None:
    """Cross-entropy over batches of the shard, shuffled anew each epoch.

    ``steps``: so many batches, all full, across the epochs' bounds, in place of ``epochs``.
    ``penalty``: what is added to each batch's loss, 0-dim.
    """
    model.train()
    count = len(shard.targets)
    if steps is not None:
        epochs = math.ceil(steps * batch_size / count)
    orders = [torch.randperm(count, generator=generator) for _ in range(epochs)]
    if steps is None:
        batches = [batch for order in orders for batch in order.split(batch_size)]
    else:
        batches = list(torch.cat(orders)[: steps * batch_size].split(batch_size))
    for batch in flops.each_size(batches) if without_values(model) else batches:
        optimizer.zero_grad(set_to_none=True)
        found = loss(model(shard.inputs[batch]), shard.targets[batch])
        (found if penalty is None else found + penalty()).backward()
        optimizer.step()


def warm_up(model: nn.Module, shard: Shard) -> None:
    """Train ``model`` for a step, so that what torch loads and allocates at first use is there.

    A process forked afterwards shares it. The model is changed.
    """
    optimizer = torch.optim.AdamW(model.parameters())
    count = len(shard.targets)
    train(model, shard, optimizer, epochs=1, batch_size=count, generator=torch.Generator())
    if not shard.inputs.is_meta:
        scores(model, shard.inputs, shard.targets)
