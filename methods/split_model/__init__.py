"""Models cut between their blocks; each part is a view on the model's own parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from methods.shared.backbone import causal, staged, tied

LONGEST = 1 << 16
"""Tokens of a text, where its length is not known and more of them would be allowed more."""


class Part(nn.Module):
    """Stages that follow one another. A parameter has the name that it has in the whole model."""

    def __init__(
        self, embed: nn.Module | None, blocks: Mapping[int, nn.Module], head: nn.Module | None
    ) -> None:
        super().__init__()
        self.embed = embed
        self.blocks = nn.ModuleDict({str(number): block for number, block in blocks.items()})
        self.head = head

    def forward(self, values: Tensor) -> Tensor:
        if self.embed is not None:
            values = self.embed(values)
        for block in self.blocks.values():
            values = block(values)
        return values if self.head is None else self.head(values)


class Cut(NamedTuple):
    """The parts of a model: head and tail are a client's, the rest is the server's."""

    head: Part
    """Images to tokens: the embedding and the first blocks."""
    server: Part
    """Tokens to tokens, or to logits where there is no tail."""
    tail: Part | None
    """Tokens to logits: the last blocks and the classifier. None: the server has them."""

    @property
    def client_side(self) -> dict[str, Part]:
        """The client's parts, by the kind of message that carries each."""
        return {"head": self.head} | ({} if self.tail is None else {"tail": self.tail})


def cut(model: nn.Module, *, head_blocks: int, tail_blocks: int, private: bool) -> Cut:
    """Cut ``model``, which has stages embed, blocks and head, into the parts of split training.

    ``private``: labels stay with the client, who therefore has the classifier and ``tail_blocks``
    before it. Otherwise the server has all that follows the head.

    Raises:
        ValueError: the model has no such stages, or too few blocks for this cut.
    """
    stages = staged(model)
    blocks = dict(enumerate(stages.blocks))
    depth = len(blocks)
    _check(depth, head_blocks, tail_blocks, private)
    second = depth - tail_blocks if private else depth
    head = {number: block for number, block in blocks.items() if number < head_blocks}
    middle = {number: block for number, block in blocks.items() if head_blocks <= number < second}
    last = {number: block for number, block in blocks.items() if number >= second}
    if not private:
        return Cut(Part(stages.embed, head, None), Part(None, middle, stages.head), None)
    return Cut(
        Part(stages.embed, head, None), Part(None, middle, None), Part(None, last, stages.head)
    )


def _check(depth: int, head_blocks: int, tail_blocks: int, private: bool) -> None:
    if not private:
        if tail_blocks:
            raise ValueError(
                f"tail_blocks = {tail_blocks}: with labels = shared the server has all that "
                "follows the head, so it must be 0; labels = private gives clients a tail"
            )
        if not 0 <= head_blocks <= depth:
            raise ValueError(f"head_blocks = {head_blocks}: must be 0 to {depth}, the model's all")
        return
    if not 0 <= head_blocks < depth:
        raise ValueError(
            f"head_blocks = {head_blocks}: must be 0 to {depth - 1}, since of the model's {depth} "
            "blocks the server needs one"
        )
    if not 0 <= tail_blocks < depth - head_blocks:
        raise ValueError(
            f"tail_blocks = {tail_blocks}: must be 0 to {depth - 1 - head_blocks}, since of the "
            f"model's {depth} blocks the head has {head_blocks} and the server needs one"
        )


def untied(model: nn.Module) -> nn.Module:
    """The same model; a classifier whose weights are the embedding's has a copy of its own.

    Embedding and classifier are in different parts, each of which is sent and trained by itself.
    """
    if tied(model):
        classifier = staged(model).head.classifier
        classifier.weight = nn.Parameter(
            classifier.weight.detach().clone(), classifier.weight.requires_grad
        )
    return model


def tokens_of(model: nn.Module, inputs: Tensor | None = None, more: int = 0) -> Tensor:
    """Tokens of a sample between two blocks: (1, tokens + more, width), on the meta device.

    ``inputs``: samples, (n, ...), which tell how long texts are; without them these have one token.
    """
    stages = staged(model)
    spec, dtype = stages.spec, stages.head.classifier.weight.dtype
    length = 1 if inputs is None else inputs.shape[1]
    shape = (1, (length if causal(model) else spec.tokens) + more, spec.width)
    return torch.empty(shape, dtype=dtype, device="meta")


def crossing(model: nn.Module, batch_size: int, more: int = 0) -> tuple[int, int, int]:
    """The shape of a batch's tokens between two blocks; of text, of ``LONGEST`` tokens."""
    _, tokens, width = tokens_of(model).shape
    return batch_size, (LONGEST if causal(model) else tokens) + more, width


def size(tensors: Mapping[str, Tensor]) -> int:
    """Bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
