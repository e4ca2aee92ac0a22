"""DP-SGD inside each client: Abadi et al., Deep Learning with Differential Privacy, CCS 2016.

A step takes each of the client's n samples with probability q, independently. With g_i a sample's
own gradient over all that is trained, the optimizer gets

    (sum_i g_i * min(1, clip / |g_i|) + Normal(0, (noise * clip)^2)) / (q * n).

An epoch is ceil(n / batch) steps and q one over that, as opacus' DPDataLoader has it. Whoever sees
all that a client ever sends learns no more of a sample than the client's epsilon allows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from methods import Fleet, Shard
from methods.privacy import none
from methods.privacy.budget import Budget
from methods.shared import attention, objective

if TYPE_CHECKING:
    from methods.fedavg import Config
    from testbed.transport.wire import Message

AT_ONCE = 32
"""Samples whose gradients are held at the same time."""


class ServerSide(none.ServerSide):
    """Reports the greatest epsilon that a client says it has spent."""

    def __init__(self, config: Config, seed: int) -> None:
        super().__init__(config, seed)
        self._epsilon = 0.0

    def take(self, update: Message, fleet: Fleet) -> bool:
        spent = update.details.get("epsilon")
        if not isinstance(spent, int | float) or not 0 <= spent < math.inf:
            fleet.refuse(update.sender, f"epsilon = {spent!r}: must be a number, at least 0")
            return False
        self._epsilon = max(self._epsilon, spent)
        return True

    def metrics(self) -> dict[str, float]:
        return {"epsilon": self._epsilon}


class ClientSide(none.ClientSide):
    """Trains while its budget lasts; without one it sends back what it got."""

    def __init__(self, config: Config, samples: int) -> None:
        super().__init__(config, samples)
        batches = math.ceil(samples / config.batch_size)
        self._rate, self._batches = 1 / batches, batches
        self.budget = Budget(config, self._rate, self._steps(config.local_epochs))

    def train(
        self,
        model: nn.Module,
        shard: Shard,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        epochs: int,
    ) -> None:
        if self.budget.spend(self._rate, self._steps(epochs)):
            if shard.inputs.is_meta:
                # As many samples on average, or a few more, and only products are counted.
                super().train(model, shard, optimizer, generator, epochs)
            else:
                descend(
                    model,
                    shard,
                    optimizer,
                    steps=self._steps(epochs),
                    rate=self._rate,
                    clip=self.config.dp_clip,
                    noise=self.budget.noise,
                    generator=generator,
                )
        self.details = {"epsilon": self.budget.epsilon}

    def _steps(self, epochs: int) -> int:
        return self.config.local_steps or epochs * self._batches


def descend(
    model: nn.Module,
    shard: Shard,
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    rate: float,
    clip: float,
    noise: float,
    generator: torch.Generator,
) -> None:
    """So many steps on cross-entropy, as above; ``generator`` draws the samples and the noise."""
    model.train()
    count = len(shard.targets)
    trained = _trained(model)
    for _ in range(steps):
        chosen = torch.rand(count, generator=generator) < rate
        sums = clipped_sum(model, shard.inputs[chosen], shard.targets[chosen], clip)
        for name, parameter in trained.items():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=sums[name].dtype)
            noised = (sums[name] + clip * noise * drawn) / (rate * count)
            parameter.grad = noised.to(parameter.dtype)
        optimizer.step()


def clipped_sum(
    model: nn.Module, inputs: Tensor, targets: Tensor, clip: float
) -> dict[str, Tensor]:
    """Sums by name over samples of gradients that have at most the L2 norm ``clip``.

    With at least float32's precision, since a norm that is rounded lets more than ``clip`` through.
    """
    sums = {name: torch.zeros_like(objective.precise(e)) for name, e in _trained(model).items()}
    if not len(inputs):
        return sums
    for some, truth in zip(inputs.split(AT_ONCE), targets.split(AT_ONCE), strict=True):
        found = {n: objective.precise(e) for n, e in gradients(model, some, truth).items()}
        squares = [each.flatten(1).square().sum(dim=1) for each in found.values()]
        scales = (clip / torch.stack(squares).sum(dim=0).sqrt()).clamp(max=1)
        for name, each in found.items():
            sums[name] += torch.tensordot(scales, each, dims=1)
    return sums


def gradients(model: nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Gradients by name of each sample's cross-entropy: (batch, shape of the parameter).

    Of a parameter that layers share it is the sum over these.
    """
    places = _places(model)

    def loss(values: dict[str, Tensor], each: Tensor, target: Tensor) -> Tensor:
        everywhere = {place: values[name] for place, name in places.items()}
        # Weights are tied where blocks share a layer, which is given its values once: torch would
        # do so at each of its places, and leave the last ones there.
        logits = functional_call(model, everywhere, (each[None],), tie_weights=False)
        return objective.loss(logits, target[None])

    # The fused attention of the CPU has no rule for batches of gradients.
    with attention.ByProducts():
        each = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")
        found: dict[str, Tensor] = each(_trained(model), inputs, targets)
    return found


def _places(model: nn.Module) -> dict[str, str]:
    """Names of trained parameters by each place that has them, also where layers share one."""
    names = {id(each): name for name, each in _trained(model).items()}
    return {
        f"{path}.{leaf}" if path else leaf: names[id(each)]
        for path, module in model.named_modules()
        for leaf, each in module._parameters.items()
        if id(each) in names
    }


def _trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: each for name, each in model.named_parameters() if each.requires_grad}
