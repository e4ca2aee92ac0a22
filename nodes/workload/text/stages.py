"""Stages of a causal language model of `transformers`, which any method can cut between blocks.

The model's own modules do the work: the embedding, each decoder layer, and the last norm with the
classifier. What a layer is given beside the tokens, such as the angles of rotary embeddings, is
worked out anew for each length, since nothing but tokens passes between stages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor, nn

from methods.shared.backbone import Roles


class CausalSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The architecture of a causal language model of `transformers`, as its config.json has it."""

    model_type: str
    width: int
    """Features of a token."""
    depth: int
    """Blocks."""
    heads: int
    """Attention heads of a block."""
    vocabulary: int
    """Tokens that there are."""
    context: int
    """Most tokens of a sequence."""
    tied: bool
    """The classifier's weights are the embedding's."""

    @property
    def causal(self) -> bool:
        return True


class Embed(nn.Module):
    """Ids (batch, tokens) to tokens (batch, tokens, width). ValueError for more than `context`."""

    def __init__(self, tokens: nn.Module, places: nn.Module | None, context: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.places = places
        self.context = context

    def forward(self, ids: Tensor) -> Tensor:
        if ids.shape[1] > self.context:
            raise ValueError(
                f"a sequence of {ids.shape[1]} tokens: the model takes at most {self.context}"
            )
        found: Tensor = self.tokens(ids)
        if self.places is None:
            return found
        placed: Tensor = self.places(torch.arange(ids.shape[1], device=ids.device))
        return found + placed


class Attended(NamedTuple):
    """Facts that a layer's attention goes by, beside the tokens."""

    angles: Callable[[Tensor, Tensor], Any] | None
    """Rotary embeddings of places (1, tokens), in the dtype of tokens."""
    window: int | None
    """How many tokens one sees, itself among them; None: all before it."""
    eager: bool
    """Whether it is causal by its mask alone."""

    def mask(self, tokens: Tensor) -> Tensor | None:
        """Summands of scores, (1, 1, tokens, tokens); None where causality is enough."""
        count = tokens.shape[1]
        if not self.eager and (self.window is None or count <= self.window):
            return None
        places = torch.arange(count, device=tokens.device)
        ago = places[:, None] - places
        hidden = (ago < 0) | (ago >= (self.window or count))
        blank = torch.zeros(1, 1, count, count, dtype=tokens.dtype, device=tokens.device)
        return blank.masked_fill(hidden, torch.finfo(tokens.dtype).min)


class Block(nn.Module):
    """A decoder layer: tokens (batch, tokens, width) to the same shape."""

    def __init__(self, layer: nn.Module, attended: Attended) -> None:
        super().__init__()
        self.layer = layer
        self.attended = attended
        """No module, so that the one of the angles, which all layers share, is none of its own."""

    def forward(self, tokens: Tensor) -> Tensor:
        given: dict[str, Any] = {}
        if self.attended.angles is not None:
            places = torch.arange(tokens.shape[1], device=tokens.device)[None]
            given["position_embeddings"] = self.attended.angles(tokens, places)
            given["position_ids"] = places
        found = self.layer(tokens, attention_mask=self.attended.mask(tokens), **given)
        result: Tensor = found[0] if isinstance(found, tuple) else found
        return result


class Head(nn.Module):
    """Tokens (batch, tokens, width) to the logits of each next one (batch, tokens, vocabulary)."""

    def __init__(self, norm: nn.Module, classifier: nn.Linear, cap: float | None) -> None:
        super().__init__()
        self.norm = norm
        self.classifier = classifier
        self.cap = cap

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.norm(tokens))
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


class CausalModel(nn.Module):
    """Ids int64 (batch, tokens) to logits (batch, tokens, vocabulary), in three stages.

    Tied, the classifier's weights are one parameter, under the embedding's name.
    """

    def __init__(
        self, spec: CausalSpec, roles: Roles, embed: Embed, blocks: Sequence[Block], head: Head
    ) -> None:
        super().__init__()
        self.spec = spec
        self.roles = roles
        self.embed = embed
        self.blocks = nn.ModuleList(blocks)
        self.head = head

    def forward(self, ids: Tensor) -> Tensor:
        tokens: Tensor = self.embed(ids)
        for block in self.blocks:
            tokens = block(tokens)
        logits: Tensor = self.head(tokens)
        return logits
