"""Attention by matrix products, against torch's own, and whom it is set for."""

from typing import Any

import heavy
import pytest
import torch
from in_process import shards
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from methods.shared import attention, flops
from nodes import compute
from nodes.workload.models import ModelSpec, VisionTransformer

SPEC = ModelSpec(side=4, patch=2, width=8, depth=1, heads=2)
DRAWN = torch.Generator().manual_seed(1)
QUERY, KEY, VALUE = (torch.randn(2, 4, 6, 8, generator=DRAWN) for _ in range(3))
MASK = torch.rand(2, 1, 6, 6, generator=DRAWN) > 0.4
MASK[..., 0] = True


@pytest.mark.parametrize(
    ("args", "options"),
    [
        ((QUERY, KEY, VALUE), {}),
        ((QUERY, KEY, VALUE), {"is_causal": True}),
        ((QUERY, KEY, VALUE, MASK), {}),
        ((QUERY, KEY, VALUE), {"attn_mask": torch.randn(6, 6, generator=DRAWN)}),
        ((QUERY, KEY[:, :2], VALUE[:, :2]), {"enable_gqa": True, "scale": 0.3}),
        ((QUERY.half(), KEY.half(), VALUE.half()), {"attn_mask": MASK}),
    ],
    ids=["plain", "causal", "mask", "bias", "grouped", "half"],
)
def test_it_is_torchs_own_by_products_to_the_last_bit(
    args: tuple[Any, ...], options: dict[str, Any]
) -> None:
    with sdpa_kernel(SDPBackend.MATH):
        expected = F.scaled_dot_product_attention(*args, **options)
    with attention.ByProducts():
        assert torch.equal(F.scaled_dot_product_attention(*args, **options), expected)


def test_it_has_a_gradient_of_its_gradient() -> None:
    query = QUERY.clone().requires_grad_()
    with attention.ByProducts():
        mixed = F.scaled_dot_product_attention(query, KEY, VALUE)
        (first,) = torch.autograd.grad(mixed.square().sum(), query, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), query)
    assert second.abs().max() > 0


def by_sample(model: VisionTransformer) -> None:
    shard = shards({"client-1": 2}, (1, 4, 4), 3)["client-1"]
    heavy.dp_sample.gradients(model, shard.inputs, shard.targets)


def counted(model: VisionTransformer) -> None:
    flops.step(model, torch.zeros(1, 1, 4, 4), model)


def modelled(model: VisionTransformer) -> None:
    with compute.Modelled(1e9, torch.zeros(8), lambda: 0.0).active():
        model.to("meta")(torch.zeros(1, 1, 4, 4, device="meta"))


@pytest.mark.parametrize("works", [by_sample, counted, modelled])
def test_other_threads_keep_their_kernels(works: Any) -> None:
    """Where it was set for all, a client's last digits hung on what others were at."""
    model, seen = VisionTransformer(SPEC, 3), list[bool]()
    model.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cuda.flash_sdp_enabled()))
    works(model)
    assert seen
    assert all(seen)
