"""What variants train of a language model, and what they make of it, against it joined by hand."""

import math
from typing import Any

import pytest
import torch
from copied import copied
from made_text import SPEC, ids, language_model
from torch import Tensor, nn
from torch.nn import functional as F

from methods import fedpeft, peft
from methods.peft.lora import LowRank
from methods.shared.backbone import Roles, tied
from nodes.workload.text.model import LanguageModel

WIDTH, HIDDEN, DEPTH = SPEC.width, SPEC.mlp_width, SPEC.depth
TIED = ["adapter", "ffalora", "full", "ia3", "lora", "prompt"]
"""Variants that a model with tied weights and without biases can have."""


def adapted(variant: str, model: nn.Module | None = None, **options: Any) -> Any:
    config = fedpeft.Config(variant=variant, **options)  # type: ignore[arg-type]
    model = language_model() if model is None else model
    fedpeft.check(config, model)
    torch.manual_seed(1)
    return fedpeft.adapt(config, model)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: each for name, each in model.named_parameters() if each.requires_grad}


def shake(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for each in trained(model).values():
            each.add_(0.3 * torch.randn(each.shape, generator=generator))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("variant", "options", "expected"),
    [
        ("adapter", {}, 2 * WIDTH * 2 + 2 + WIDTH),
        ("prompt", {"prompt_length": 7}, DEPTH * 7 * WIDTH),
        ("lora", {"rank": 3}, DEPTH * 2 * 2 * 3 * WIDTH),
        ("ffalora", {"rank": 3}, DEPTH * 2 * 3 * WIDTH),
        ("ia3", {}, DEPTH * (WIDTH + WIDTH + HIDDEN)),
    ],
)
@pytest.mark.parametrize("tying", [True, False])
def test_no_classifier_is_trained_beside_what_a_variant_adds(
    variant: str, options: dict[str, int], expected: int, tying: bool
) -> None:
    model = adapted(variant, language_model(tied=tying), **options)
    assert sum(each.numel() for each in trained(model).values()) == expected
    assert not model.head.classifier.weight.requires_grad
    assert not model.embed.weight.requires_grad and tied(model) == tying


def test_all_is_trained_with_tied_weights_once() -> None:
    names = set(trained(adapted("full")))
    assert names == {name for name, _ in language_model().named_parameters()}
    assert "embed.weight" in names and "head.classifier.weight" not in names


def test_the_classifier_alone_is_trained_where_it_is_not_the_embedding() -> None:
    assert set(trained(adapted("head", language_model(tied=False)))) == {"head.classifier.weight"}
    with pytest.raises(ValueError, match=r"variant head trains .* its embedding too"):
        adapted("head")


def test_biases_are_trained_where_there_are_any() -> None:
    with pytest.raises(ValueError, match="variant bias needs biases, and this model has none"):
        adapted("bias")
    model = language_model()
    model.blocks[1].attention.query = nn.Linear(WIDTH, WIDTH)
    assert set(trained(adapted("bias", model))) == {"blocks.1.attention.query.bias"}


@pytest.mark.thorough
@pytest.mark.parametrize("variant", [each for each in TIED if each != "prompt"])
def test_a_variant_at_first_changes_nothing(variant: str) -> None:
    with torch.no_grad():
        expected = language_model()(ids(3))
        assert torch.allclose(adapted(variant)(ids(3)), expected, atol=1e-6)


@pytest.mark.parametrize("variant", TIED)
@pytest.mark.parametrize("kv_heads", [None, 1])
def test_all_that_is_trained_and_nothing_else_gets_a_gradient(
    variant: str, kv_heads: int | None
) -> None:
    model = adapted(variant, language_model(kv_heads=kv_heads), rank=2)
    shake(model)
    model(ids(3)).square().mean().backward()
    for name, each in model.named_parameters():
        assert (each.grad is not None and bool(each.grad.any())) == each.requires_grad, name


@pytest.mark.parametrize("variant", TIED)
def test_no_variant_lets_a_token_see_what_comes_after_it(variant: str) -> None:
    model = adapted(variant)
    shake(model)
    one, other = ids(2), ids(2)
    other[:, 3:] = (other[:, 3:] + 1) % SPEC.vocabulary
    with torch.no_grad():
        assert torch.allclose(model(one)[:, :3], model(other)[:, :3], atol=1e-6)


def test_prompts_stand_before_the_tokens_of_every_block() -> None:
    model = adapted("prompt", prompt_length=5)
    plain = language_model()
    prompts = [block.prompt for block in model.blocks]
    tokens: Tensor = plain.embed(ids(3))
    for prompt, block in zip(prompts, plain.blocks, strict=True):
        tokens = block(torch.cat([prompt.repeat(3, 1, 1), tokens], dim=1))[:, 5:]
    found = model(ids(3))
    assert found.shape == (3, 6, SPEC.vocabulary)
    assert torch.allclose(found, plain.head(tokens), atol=1e-6)
    # Behind a causal mask they would change nothing.
    assert not torch.allclose(found, plain(ids(3)), atol=1e-3)


def test_prompts_start_within_the_bound_of_tokens() -> None:
    model = adapted("prompt", prompt_length=50)
    values = torch.cat([block.prompt for block in model.blocks]).detach()
    bound = math.sqrt(3 / WIDTH)
    assert 0.99 * bound < values.abs().max() <= bound


class Renamed(LanguageModel):
    """The same in names as other models have them, of which one ends like another's."""

    roles = Roles(
        low_rank=("q_proj", "mlp.c_proj"),
        scaled_outputs=("k_proj",),
        scaled_inputs=("mlp.c_proj",),
        perceptron_output="mlp.c_proj",
    )

    def __init__(self) -> None:
        super().__init__(SPEC)
        for block in self.blocks:
            block.__class__ = _Block
            block.mlp = nn.ModuleDict({"c_proj": block.contract})
            block.attn = nn.ModuleDict({"c_proj": nn.Linear(WIDTH, WIDTH)})
            block.attention.__class__ = _Attention
            block.attention.q_proj = block.attention.query
            block.attention.k_proj = block.attention.key
            del block.contract, block.attention.query, block.attention.key


class _Block(type(LanguageModel(SPEC).blocks[0])):  # type: ignore[misc]
    @property
    def contract(self) -> nn.Module:
        return self.mlp["c_proj"]  # type: ignore[no-any-return]


class _Attention(type(LanguageModel(SPEC).blocks[0].attention)):  # type: ignore[misc]
    @property
    def query(self) -> nn.Module:
        return self.q_proj  # type: ignore[no-any-return]

    @property
    def key(self) -> nn.Module:
        return self.k_proj  # type: ignore[no-any-return]


def test_a_model_says_which_of_its_layers_variants_act_on() -> None:
    adapters = {
        path
        for path, each in adapted("lora", Renamed(), rank=2).named_modules()
        if isinstance(each, LowRank)
    }
    expected = {f"blocks.{number}.{each}" for number in range(DEPTH)
                for each in ("attention.q_proj", "mlp.c_proj")}  # fmt: skip
    assert adapters == expected
    scaled = {name.rpartition(".ia3_l")[0] for name in trained(adapted("ia3", Renamed()))}
    assert scaled == {f"blocks.{number}.{each}" for number in range(DEPTH)
                      for each in ("attention.k_proj", "mlp.c_proj")}  # fmt: skip
    model = adapted("adapter", Renamed())
    shake(model)
    adapter = model.blocks[0].mlp.c_proj.adapter
    plain = copied(model)
    with torch.no_grad():
        tokens = plain.embed(ids(2))
        for block in plain.blocks:
            tokens = tokens + block.attention(block.norm_attention(tokens))
            normed = block.norm_mlp(tokens)
            m = block.contract.layer(F.silu(block.gate(normed)) * block.expand(normed))
            tokens = tokens + m + adapter.up(F.gelu(adapter.down(m)))
        assert torch.allclose(model(ids(2)), plain.head(tokens), atol=1e-5)


def test_what_a_model_says_but_lacks_is_named() -> None:
    model = language_model()
    model.roles = Roles(low_rank=("q_proj",))
    with pytest.raises(ValueError, match="variant lora needs q_proj, which this model lacks"):
        adapted("lora", model)
    assert set(peft.names()) == {*TIED, "head", "bias"}
