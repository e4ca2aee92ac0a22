"""Causal language models of `transformers`, in stages that any method can cut between blocks.

The model's own modules do the work: the embedding, each decoder layer, and the last norm with the
classifier. What a layer is given beside the tokens, such as the angles of rotary embeddings, is
worked out anew for each length, since nothing but tokens passes between stages. Whether that gives
what the model itself gives is checked once, when it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Layout(NamedTuple):
    """Paths of a family's parts in the model."""

    embedding: str
    layers: str
    norm: str
    rotary: str | None
    """Makes a layer's ``position_embeddings``; None: places are learnt, at ``places``."""
    places: str | None = None


_LLAMA = Layout("model.embed_tokens", "model.layers", "model.norm", "model.rotary_emb")
LAYOUTS: Mapping[str, Layout] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "phi": _LLAMA._replace(norm="model.final_layernorm"),
    "phi3": _LLAMA,
    "smollm3": _LLAMA,
    "olmo2": _LLAMA,
    "gpt2": Layout("transformer.wte", "transformer.h", "transformer.ln_f", None, "transformer.wpe"),
}
"""By ``model_type`` of config.json."""


class Embed(nn.Module):
    """Ids (batch, tokens) to tokens (batch, tokens, width)."""

    def __init__(self, tokens: nn.Module, places: nn.Embedding | None) -> None:
        super().__init__()
        self.tokens = tokens
        self.places = places

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.tokens(ids)
        if self.places is None:
            return found
        placed: Tensor = self.places(torch.arange(ids.shape[1], device=ids.device))
        return found + placed


class Block(nn.Module):
    """A decoder layer, tokens (batch, tokens, width) to the same shape."""

    def __init__(self, layer: nn.Module, angles: Callable[[Tensor, Tensor], Any] | None) -> None:
        super().__init__()
        self.layer = layer
        self._angles = (angles,)
        """In a tuple, so that the module which all layers share is none of this one's."""

    def forward(self, tokens: Tensor) -> Tensor:
        (angles,) = self._angles
        given: dict[str, Any] = {}
        if angles is not None:
            places = torch.arange(tokens.shape[1], device=tokens.device)[None]
            given = {"position_embeddings": angles(tokens, places), "position_ids": places}
        found = self.layer(tokens, attention_mask=None, **given)
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
