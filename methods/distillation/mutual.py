"""Mutual distillation: a teacher and a student on one frozen embedding, learning from one another.

Wu et al., Nature Communications 13, 2032 (2022): see ``methods.fedkd``, which has the loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.shared import objective
from methods.shared.backbone import staged
from methods.shared.local_training import copy_of
from methods.split_model import Part

Blocks = Annotated[int, msgspec.Meta(ge=1, le=1000)] | Literal["all"]
"""How many of a model's blocks a student has, the first ones."""
LEAST_DIVISOR = 1e-6
"""Of D, so that a batch that both know by heart has a loss."""


class View(NamedTuple):
    """Outputs of a model for a batch, and of its blocks."""

    logits: Tensor
    """float (batch, classes)."""
    hidden: list[Tensor]
    """Tokens behind each block that is compared: float (batch, tokens, width)."""
    attention: list[Tensor]
    """Its attention maps: float (batch, heads, tokens, tokens); empty: they are not asked for."""


class Pair(nn.Module):
    """A teacher and a student on one frozen embedding."""

    def __init__(self, model: nn.Module, student_blocks: Blocks, *, attention: bool) -> None:
        """``model``: the teacher. ``attention``: compare attention maps too."""
        super().__init__()
        self.teacher = staged(model)
        self.student = student_of(model, student_blocks)
        self.attention = attention
        depth, blocks = len(self.teacher.blocks), len(self.student.blocks)
        ratio = depth // blocks
        self.compared = tuple(depth - 1 - ratio * each for each in range(blocks))
        """Blocks of the teacher that the student's are compared with, the last first."""

    def forward(self, images: Tensor) -> tuple[View, View]:
        tokens = self.teacher.embed(images)
        teacher, student = self.teacher, self.student
        return (
            self._view(tokens, teacher.blocks, teacher.head, self.compared),
            self._view(tokens, student.blocks.values(), student.head, range(len(student.blocks))),
        )

    def _view(
        self, tokens: Tensor, blocks: Iterable[nn.Module], head: nn.Module | None, of: Iterable[int]
    ) -> View:
        hidden: list[Tensor] = []
        attention: list[Tensor] = []
        compared = set(of)
        for number, block in enumerate(blocks):
            if number not in compared:
                tokens = block(tokens)
                continue
            if self.attention:
                tokens, found = with_attention_maps(block, tokens)
                attention.append(found)
            else:
                tokens = block(tokens)
            hidden.append(tokens)
        assert head is not None
        return View(head(tokens), hidden, attention)


def student_of(model: nn.Module, blocks: Blocks) -> Part:
    """A copy of the model's first blocks and of its head, on the model's own frozen embedding."""
    stages = staged(model)
    kept = dict(enumerate(stages.blocks[: None if blocks == "all" else blocks]))
    return copy_of(Part(stages.embed, kept, stages.head))


def with_attention_maps(block: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The block's output, and what its attention weighs tokens by, as it says or as here.

    A fused kernel tells no weights: they are worked out once more, from queries and keys as the
    block made them, by one matrix product.
    """
    attention: Any = block.attention
    made: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for name in ("query", "key"):

            def keep(module: object, inputs: object, output: Tensor, name: str = name) -> None:
                made[name] = output

            hook = attention.get_submodule(name).register_forward_hook(keep)
            hooks.callback(hook.remove)
        tokens = block(tokens)
    if hasattr(attention, "maps"):
        return tokens, attention.maps(made["query"], made["key"])
    query, key = (
        made[name].unflatten(-1, (attention.heads, -1)).transpose(1, 2) for name in ("query", "key")
    )
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    return tokens, scores.softmax(dim=-1)


def tells_attention(block: nn.Module) -> bool:
    """Whether ``with_attention_maps`` takes such a block."""
    attention = getattr(block, "attention", None)
    says = hasattr(attention, "maps") or hasattr(attention, "heads")
    return says and all(hasattr(attention, name) for name in ("query", "key"))


def loss(views: tuple[View, View], targets: Tensor, *, as_published: bool) -> Tensor:
    """Both models' cross-entropy and what they learn of one another, 0-dim.

    Of text predictions count where their targets do, and tokens and attention maps everywhere.
    """
    teacher, student = views
    task = objective.loss(teacher.logits, targets) + objective.loss(student.logits, targets)
    logits = (objective.precise(view.logits) for view in (student, teacher))
    ours, theirs = (F.log_softmax(each, dim=-1) for each in logits)
    # The sum of both divergences, one of which is sum p_s (log p_s - log p_t).
    divergences = (ours.exp() - theirs.exp()) * (ours - theirs)
    if targets.dim() == 1:
        mutual = divergences.mean()
    else:
        counts = targets != objective.IGNORED
        mutual = (divergences.mean(dim=-1) * counts).sum() / counts.sum()
    pairs = zip(teacher.hidden + teacher.attention, student.hidden + student.attention, strict=True)
    inner = sum((F.mse_loss(one, other) for one, other in pairs), start=torch.zeros_like(task))
    divisor = (task if as_published else task.detach()).clamp(min=LEAST_DIVISOR)
    return task + (mutual + 2 * inner) / divisor
