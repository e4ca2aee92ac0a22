"""Products of matrices by oneDNN: the same but for the last bits, and only where asked for."""

import copy
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from methods.shared import flops
from nodes import products
from nodes.program import FineTuning
from testbed.run.config import RunConfig


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that oneDNN was asked for, on a processor of which MKL is said to be slow."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch has no oneDNN")
    found: list[tuple[int, ...]] = []
    linear = products._linear

    def counted(*given: torch.Tensor) -> torch.Tensor:
        found.append((*given[0].shape, given[1].shape[1]))
        return linear(*given)

    monkeypatch.setattr(products, "_linear", counted)
    monkeypatch.setattr(products, "faster", lambda: True)
    return found


def trained(model: nn.Module, inputs: torch.Tensor) -> list[torch.Tensor]:
    """What a model gives, and its gradients."""
    inputs = inputs.clone().requires_grad_()
    model.zero_grad()
    output = model(inputs)
    output.square().sum().backward()
    assert inputs.grad is not None
    return [output.detach(), inputs.grad, *(each.grad for each in model.parameters())]  # type: ignore[misc]


@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_gives_and_learns_the_same(calls: list[tuple[int, ...]], bias: bool) -> None:
    torch.manual_seed(0)
    layer, inputs = nn.Linear(128, 344, bias=bias), torch.randn(4, 64, 128)
    before = trained(layer, inputs)
    with products.by_onednn():
        assert not calls
        found = trained(layer, inputs)
    assert len(calls) == 3
    for ours, theirs in zip(found, before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)
    # And afterwards as before, to the last bit.
    assert all(map(torch.equal, trained(layer, inputs), before)) and len(calls) == 3


def test_what_does_not_suit_is_torchs_own(calls: list[tuple[int, ...]]) -> None:
    wide, narrow = torch.randn(512, 512), torch.randn(512, 2)
    pairs = [
        *((wide.to(kind), wide.to(kind)) for kind in (torch.float64, torch.bfloat16)),
        (torch.ones(512, 512, dtype=torch.int64), torch.ones(512, 512, dtype=torch.int64)),
        (narrow.t()[:, :8], narrow[:8]),
        (wide[:0], wide),
        (torch.randn(4, 0), torch.randn(0, 5)),
    ]
    before = [left @ right for left, right in pairs]
    added = torch.randn(512, 512)
    sums = torch.addmm(added, wide, wide, beta=0.5, alpha=2.0)
    with products.by_onednn():
        found = [left @ right for left, right in pairs]
        again = torch.addmm(added, wide, wide, beta=0.5, alpha=2.0)
    assert not calls
    assert all(map(torch.equal, [*found, again], [*before, sums]))


def test_operations_are_counted_as_before_and_nobody_is_warned(
    calls: list[tuple[int, ...]],
) -> None:
    model = nn.Sequential(nn.Linear(128, 256), nn.Linear(256, 128, bias=False))
    inputs = torch.randn(64, 128)
    before = flops.forward(model, inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with products.by_onednn():
            assert flops.forward(model, inputs) == before
            shapes = F.linear(inputs.to("meta"), torch.empty(256, 128, device="meta")).shape
    assert shapes == (64, 256) and len(calls) == 2


def test_an_error_leaves_torch_as_it_was(calls: list[tuple[int, ...]]) -> None:
    with pytest.raises(KeyError), products.by_onednn():
        raise KeyError
    _ = torch.randn(512, 512) @ torch.randn(512, 512)
    assert not calls


def test_a_copy_of_a_model_and_inference_go_the_same_way(calls: list[tuple[int, ...]]) -> None:
    layer = nn.Linear(256, 256)
    inputs = torch.randn(64, 256)
    with products.by_onednn(), torch.inference_mode():
        one, other = layer(inputs), copy.deepcopy(layer)(inputs)
    assert torch.equal(one, other) and len(calls) == 2


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"model": "llama-docs", "dataset": "instructions"}, True),
        ({"model": "vit-glyphs", "dataset": "digits"}, False),
        ({"model": "llama-docs", "dataset": "docs", "compute": "modelled"}, False),
    ],
)
def test_runs_of_text_alone_ask_for_it(
    calls: list[tuple[int, ...]], given: dict[str, str], wanted: bool
) -> None:
    small = {"train_samples": 40, "eval_samples": None, "dilation": "elastic"}
    config = RunConfig(**given, **small)  # type: ignore[arg-type]
    FineTuning(config, 4).prepare()
    assert bool(calls) == wanted


@pytest.mark.parametrize(
    ("vendor", "capability", "faster"),
    [
        ("AuthenticAMD", "AVX512", True),
        ("AuthenticAMD", "AVX2", False),
        ("GenuineIntel", "AVX512", False),
    ],
)
def test_the_processor_decides(
    monkeypatch: pytest.MonkeyPatch, vendor: str, capability: str, faster: bool
) -> None:
    monkeypatch.setattr(products, "_vendor", lambda: vendor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert products.faster() == faster


@pytest.mark.skipif(sys.platform != "linux", reason="no /proc")
def test_a_processor_tells_its_maker() -> None:
    assert products._vendor() in ("AuthenticAMD", "GenuineIntel", "")
