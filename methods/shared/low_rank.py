"""LoRA of a rank for each client: what methods that average such adapters have in common.

Client k trains adapters of its rank r_k, A (r_k, inputs) and B (outputs, r_k), and the classifier.
A tensor is told to be an A or a B by its name, never by its shape: where a layer is as wide as its
rank they look alike.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated

import msgspec
from torch import Tensor, nn
from torch.nn import functional as F

from methods import Fleet, Missed
from methods.payload.chain import Chain
from methods.peft import lora
from methods.shared import flops
from methods.shared.averaging import BY_OTHERS, LocalTraining, WeightedMean
from methods.shared.local_training import copy_of, learnt
from methods.shared.numbers import whole_numbers

MOST = 1024
"""Highest rank."""
Update = Mapping[str, Tensor]
"""What one client learns, by name."""


class Options(LocalTraining, frozen=True, forbid_unknown_fields=True, kw_only=True):
    learning_rate: Annotated[float, msgspec.Meta(gt=0)] = BY_OTHERS
    """A client's; absent: LoRA's own for the optimizer."""
    ranks: int | float | str = "16,8,4"
    """Ranks of the clients' adapters, dealt out in turn: with 16,8,4 client-4 has 16 again."""
    lora_alpha: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """An adapter's output is scaled by lora_alpha / its rank; absent: by 2, whatever the rank."""

    def __post_init__(self) -> None:
        super().__post_init__()
        numbers = whole_numbers(self.ranks)
        if not numbers or not 1 <= min(numbers) <= max(numbers) <= MOST:
            raise ValueError(
                f"ranks = {self.ranks!r}: must be whole numbers from 1 to {MOST}, such as 16,8,4"
            )
        if self.learning_rate is None:
            own = lora.LEARNING_RATE[self.optimizer]
            msgspec.structs.force_setattr(self, "learning_rate", own)

    @property
    def highest(self) -> int:
        """The highest rank, the global adapters'."""
        return max(whole_numbers(self.ranks))

    def rank_of(self, client: int | str) -> int:
        """The rank of a client, by its number or its name."""
        number = client if isinstance(client, int) else number_of(client)
        ranks = whole_numbers(self.ranks)
        return ranks[(number - 1) % len(ranks)]

    def scale(self, rank: int) -> float:
        """The factor of the output of an adapter of this rank."""
        return 2.0 if self.lora_alpha is None else self.lora_alpha / rank


def number_of(client: str) -> int:
    """A client's number, which its name ends with."""
    return int(client.rpartition("-")[2])


def check(config: Options, model: nn.Module) -> None:
    """Raises ValueError where there is nothing to adapt, or too little for the highest rank."""
    lora.check_targets(model)
    lora.check_rank(config.highest, model, f"ranks = {config.ranks!r}")


def adapt(config: Options, model: nn.Module) -> nn.Module:
    """The model with adapters of the highest rank; only they and the classifier are trained."""
    return lora.insert(model, config.highest, config.scale(config.highest))


def refuse_feedback(up: Chain, why: str) -> None:
    """Raises ValueError where what an update left out is to join the next one."""
    if up.feedback:
        raise ValueError(
            f"a stage with feedback: {why}, which what the last update left out says nothing of; "
            "give the stage feedback=false"
        )


def resize(config: Options, model: nn.Module, rank: int) -> None:
    """Keep of each adapter of the model what this rank has place for."""
    for each in lora.adapters(model).values():
        each.resize(rank, config.scale(rank))


def first(state: Update, rank: int) -> dict[str, Tensor]:
    """The first ``rank`` rows of every A and columns of every B, and all else as it is."""

    def cut(name: str, tensor: Tensor) -> Tensor:
        if name.endswith("lora_A"):
            return tensor[:rank]
        return tensor[:, :rank] if name.endswith("lora_B") else tensor

    return {name: cut(name, tensor) for name, tensor in state.items()}


def padded(state: Update, rank: int) -> dict[str, Tensor]:
    """The same with zeros behind, so that every A has ``rank`` rows and every B as many columns."""

    def extended(name: str, tensor: Tensor) -> Tensor:
        if name.endswith("lora_A"):
            return F.pad(tensor, (0, 0, 0, rank - tensor.shape[0]))
        if name.endswith("lora_B"):
            return F.pad(tensor, (0, rank - tensor.shape[1]))
        return tensor

    return {name: extended(name, tensor) for name, tensor in state.items()}


def factors(state: Update, path: str) -> tuple[Tensor, Tensor]:
    """A and B of one adapter, float64."""
    return state[f"{path}.lora_A"].double(), state[f"{path}.lora_B"].double()


def rank_of(state: Update) -> int:
    """How many rows an A has; 0 where there is none."""
    return next((len(each) for name, each in state.items() if name.endswith("lora_A")), 0)


def of_adapters(state: Update) -> dict[str, Tensor]:
    return {name: each for name, each in state.items() if _is_adapter(name)}


def of_others(state: Update) -> dict[str, Tensor]:
    """Tensors that are learnt beside the adapters: the classifier, and buffers if there are any."""
    return {name: each for name, each in state.items() if not _is_adapter(name)}


def _is_adapter(name: str) -> bool:
    return name.endswith(("lora_A", "lora_B"))


async def answers(fleet: Fleet, ask: Callable[[str], Awaitable[Update]]) -> dict[str, Update]:
    """Answers to ``ask`` of each of the round's clients at once; missed ones are left out.

    By name, in the order of their numbers, so that sums do not depend on who came first.
    """
    came: dict[str, Update] = {}

    async def wait_for(client: str) -> None:
        with contextlib.suppress(Missed):
            came[client] = await ask(client)

    async with asyncio.TaskGroup() as group:
        for client in fleet.clients:
            group.create_task(wait_for(client))
    return {client: came[client] for client in sorted(came, key=number_of)}


def mean_of_others(updates: Mapping[str, Update], samples: Mapping[str, int]) -> dict[str, Tensor]:
    """The mean by samples of what is learnt beside the adapters."""
    mean = WeightedMean()
    for client, update in updates.items():
        mean.add(of_others(update), weight=samples[client])
    return mean.result()


def shares(updates: Mapping[str, Update], samples: Mapping[str, int]) -> dict[str, float]:
    """Each client's share in the samples of those that answered."""
    total = sum(samples[client] for client in updates)
    return {client: samples[client] / total for client in updates}


def traffic(config: Options, model: nn.Module) -> tuple[int, int]:
    """Both ways, what a client of the lowest rank learns."""
    size = payload(first(learnt(model), min(whole_numbers(config.ranks))))
    return size, size


def payload(state: Update) -> int:
    """Bytes of the tensors."""
    return sum(each.numel() * each.element_size() for each in state.values())


def client_flops(config: Options, model: nn.Module, image: Tensor) -> float:
    """Each epoch: the model forward and backward; the mean over the ranks that are dealt out."""
    return 0.0 if config.local_steps else config.local_epochs * a_sample(config, model, image)


def fixed_flops(config: Options, model: nn.Module, image: Tensor) -> float:
    """The same of the samples of local_steps."""
    samples = (config.local_steps or 0) * config.batch_size
    return samples * a_sample(config, model, image) if samples else 0.0


def a_sample(config: Options, model: nn.Module, image: Tensor) -> float:
    """Operations of a training step on one sample, the mean over the ranks that are dealt out."""
    ranks = whole_numbers(config.ranks)

    def step(rank: int) -> int:
        own = copy_of(model)
        resize(config, own, rank)
        return flops.step(own, image, own)

    counts = {rank: step(rank) for rank in set(ranks)}
    return sum(counts[rank] for rank in ranks) / len(ranks)
