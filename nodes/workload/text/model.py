"""A causal language model in three stages, as Llama's: RMSNorm, RoPE, gated perceptrons."""

from __future__ import annotations

import math

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LanguageSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The architecture of a LanguageModel, without its values."""

    vocabulary: int = 1024
    """Tokens that there are."""
    width: int = 128
    """Features of a token."""
    depth: int = 4
    """Blocks."""
    heads: int = 4
    kv_heads: int | None = None
    """Heads of keys and values, which groups of query heads share; None: as many as those."""
    mlp_width: int = 344
    """Hidden features of a block's perceptron."""
    context: int = 256
    """Most tokens of a sequence."""
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tied: bool = True
    """The classifier's weights are the embedding's."""

    @property
    def causal(self) -> bool:
        return True

    @property
    def kv_width(self) -> int:
        """Features of a token's keys, and of its values."""
        return self.width // self.heads * (self.kv_heads or self.heads)


PAPER_SIZE = {
    "llama-2-7b": LanguageSpec(
        vocabulary=32_000,
        width=4096,
        depth=32,
        heads=32,
        mlp_width=11_008,
        context=4096,
        tied=False,
    ),
    "mistral-7b": LanguageSpec(
        vocabulary=32_768,
        width=4096,
        depth=32,
        heads=32,
        kv_heads=8,
        mlp_width=14_336,
        context=32_768,
        rope_theta=1e6,
        tied=False,
    ),
}
"""Touvron et al., arXiv 2307.09288; version 0.3 of Jiang et al., arXiv 2310.06825."""


class Attention(nn.Module):
    """Causal multi-head attention: tokens (batch, tokens, width) to the same shape."""

    def __init__(self, spec: LanguageSpec) -> None:
        super().__init__()
        self.head_width, self.theta = spec.width // spec.heads, spec.rope_theta
        self.query = nn.Linear(spec.width, spec.width, bias=False)
        self.key = nn.Linear(spec.width, spec.kv_width, bias=False)
        self.value = nn.Linear(spec.width, spec.kv_width, bias=False)
        self.output = nn.Linear(spec.width, spec.width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = (
            project(tokens).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        turned = rotated(query, self.theta), rotated(key, self.theta)
        shared = query.shape[1] != key.shape[1]
        mixed = F.scaled_dot_product_attention(*turned, value, is_causal=True, enable_gqa=shared)
        output: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return output

    def maps(self, query: Tensor, key: Tensor) -> Tensor:
        """Weights of tokens (batch, heads, tokens, tokens), of what two layers gave."""
        queries, keys = (
            rotated(each.unflatten(-1, (-1, self.head_width)).transpose(1, 2), self.theta)
            for each in (query, key)
        )
        keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], dim=1)
        scores = queries @ keys.transpose(-2, -1) / math.sqrt(self.head_width)
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        return scores.masked_fill(later, -math.inf).softmax(dim=-1)


def rotated(features: Tensor, theta: float) -> Tensor:
    """Features (batch, heads, tokens, size), pair (i, i + size / 2) turned by its place's angle.

    Su et al., arXiv 2104.09864, with the pairs as in Llama's code.
    """
    half = features.shape[-1] // 2
    powers = torch.arange(half, device=features.device) * (-math.log(theta) / half)
    places = torch.arange(features.shape[-2], device=features.device)
    angles = places[:, None] * powers.exp()
    cos, sin = angles.cos().to(features.dtype), angles.sin().to(features.dtype)
    first, second = features[..., :half], features[..., half:]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Block(nn.Module):
    """A pre-norm block: tokens (batch, tokens, width) to the same shape."""

    def __init__(self, spec: LanguageSpec) -> None:
        super().__init__()
        self.norm_attention = nn.RMSNorm(spec.width, eps=spec.norm_eps)
        self.attention = Attention(spec)
        self.norm_mlp = nn.RMSNorm(spec.width, eps=spec.norm_eps)
        self.gate = nn.Linear(spec.width, spec.mlp_width, bias=False)
        self.expand = nn.Linear(spec.width, spec.mlp_width, bias=False)
        self.contract = nn.Linear(spec.mlp_width, spec.width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.norm_attention(tokens))
        normed = self.norm_mlp(tokens)
        change: Tensor = self.contract(F.silu(self.gate(normed)) * self.expand(normed))
        return tokens + change


class Head(nn.Module):
    """Tokens (batch, tokens, width) to the logits of each next one (batch, tokens, vocabulary)."""

    def __init__(self, spec: LanguageSpec) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(spec.width, eps=spec.norm_eps)
        self.classifier = nn.Linear(spec.width, spec.vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.norm(tokens))
        return logits


class LanguageModel(nn.Module):
    """Ids int64 (batch, tokens) to logits (batch, tokens, vocabulary).

    Tied, the classifier's weights are one parameter, under the embedding's name.
    """

    def __init__(self, spec: LanguageSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed = nn.Embedding(spec.vocabulary, spec.width)
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.depth))
        self.head = Head(spec)
        self.tie()

    def tie(self) -> None:
        """Make the classifier's weights the embedding's, where they are to be."""
        if self.spec.tied:
            self.head.classifier.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        tokens: Tensor = self.embed(ids)
        for block in self.blocks:
            tokens = block(tokens)
        logits: Tensor = self.head(tokens)
        return logits
