"""Prefix: keys and values that each layer's attention reads before those of the tokens.

Prefix-tuning (Li and Liang, arXiv 2101.00190). They are read by every token, and tokens' places
are counted without them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from methods.shared.backbone import staged

Attend = Callable[..., Tensor]


class Attention(TorchFunctionMode):
    """Within it ``attend`` does what F.scaled_dot_product_attention is called for."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self._attend = attend

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        called = self._attend if func is F.scaled_dot_product_attention else func
        return called(*args, **(kwargs or {}))


def attend(
    prefix: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    """Attention to the prefix (2, heads, places, size) and, as asked for, to what comes after it.

    ``prefix``: keys and values, of as many heads as the tokens' keys (batch, heads, tokens, size).
    """
    batch, places = len(key), prefix.shape[2]
    if is_causal:
        attn_mask = query.new_ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
    if attn_mask is not None:
        seen = 1.0 if attn_mask.dtype == torch.bool else 0.0
        attn_mask = F.pad(attn_mask, (places, 0), value=seen)
    keys, values = (
        torch.cat([own.to(each.dtype).expand(batch, -1, -1, -1), each], dim=2)
        for own, each in zip(prefix, (key, value), strict=True)
    )
    return F.scaled_dot_product_attention(query, keys, values, attn_mask, dropout_p, **options)


class Keys(NamedTuple):
    """Shape of a token's keys and values, as attention reads them."""

    heads: int
    size: int


def keys_of(model: nn.Module) -> Keys:
    """Those of the model's first block. ValueError where it does not attend by torch's function."""
    seen: list[Keys] = []

    def note(query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Tensor:
        seen.append(Keys(key.shape[1], key.shape[3]))
        return F.scaled_dot_product_attention(query, key, value, *args, **options)

    stages = staged(model)
    device = next(model.parameters()).device
    with torch.no_grad(), Attention(note):
        stages.blocks[0](stages.embed(torch.zeros(1, 2, dtype=torch.int64, device=device)))
    if len(seen) != 1:
        raise ValueError(
            f"a block attends {len(seen)} times by torch's scaled_dot_product_attention, and a "
            "prefix is for one that does so once: take a model whose attention is of that kind"
        )
    return seen[0]


class Prefix(nn.Module):
    """Keys and values before those of the tokens: (layers, 2, heads, places, size)."""

    def __init__(
        self,
        places: int,
        layers: int,
        keys: Keys,
        width: int,
        like: Tensor,
        *,
        hidden: int | None,
        deviation: float,
    ) -> None:
        """``like``: a tensor of the device and dtype that are wanted.

        ``hidden``: features of a perceptron between what is learnt of each place, of a token's
        width, and its keys and values; None: they are learnt themselves. ``deviation``: of what is
        drawn at first for each place.
        """
        super().__init__()
        self._shape = (places, layers, 2, *keys)
        values = layers * 2 * keys.heads * keys.size
        features = values if hidden is None else width
        drawn = torch.randn(places, features, device=like.device, dtype=like.dtype)
        self.places = nn.Parameter(deviation * drawn)
        self.projection: nn.Module = nn.Identity()
        if hidden is not None:
            perceptron = nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, values)
            self.projection = nn.Sequential(*perceptron).to(like)

    def forward(self) -> Tensor:
        found: Tensor = self.projection(self.places)
        return found.view(self._shape).permute(1, 2, 3, 0, 4)


class Prefixed(nn.Module):
    """Ids int64 (batch, tokens) to logits (batch, tokens, vocabulary), a prefix in each layer."""

    def __init__(self, model: nn.Module, blocks: nn.ModuleList, prefix: Prefix) -> None:
        """``blocks``: one a layer, or fewer, which are applied in turn."""
        super().__init__()
        stages = staged(model)
        self.spec = stages.spec
        self.embed, self.blocks, self.head = stages.embed, blocks, stages.head
        self.prefix = prefix

    @property
    def base(self) -> list[nn.Module]:
        """All of it but the prefix."""
        return [self.embed, self.blocks, self.head]

    def hidden(self, ids: Tensor, prefixes: Tensor) -> Tensor:
        """Last hidden states (batch, tokens, width), behind the norm, with each layer's prefix."""
        normed: Tensor = self.head.get_submodule("norm")(self._tokens(ids, prefixes))
        return normed

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self._tokens(ids, self.prefix()))
        return logits

    def _tokens(self, ids: Tensor, prefixes: Tensor) -> Tensor:
        tokens: Tensor = self.embed(ids)
        for layer, prefix in enumerate(prefixes):
            with Attention(partial(attend, prefix)):
                tokens = self.blocks[layer % len(self.blocks)](tokens)
        return tokens
