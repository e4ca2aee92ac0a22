"""Attention by matrix products alone, where the fused kernels will not do."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class ByProducts(TorchFunctionMode):
    """Attention that has a gradient of its gradient and one by sample, and products to count.

    Of this thread alone: ``torch.nn.attention.sdpa_kernel`` sets it for all threads, and what was
    set before comes back when the first of two that overlap ends. The kernels' results differ in
    their last digits.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        # The operator beneath adds what it gets.
        least = torch.zeros((), dtype=query.dtype, device=attn_mask.device)
        attn_mask = torch.where(attn_mask, least, least - torch.inf)
    products = torch.ops.aten._scaled_dot_product_attention_math
    return products(query, key, value, attn_mask, dropout_p, is_causal, **options)[0]  # type: ignore[no-any-return]
