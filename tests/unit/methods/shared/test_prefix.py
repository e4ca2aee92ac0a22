"""Prefix: attention that reads it, against transformers' own cache and sums by hand."""

import copy
import math
from pathlib import Path
from typing import Any

import made_causal
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.shared.prefix import Attention, Keys, Prefix, Prefixed, attend, keys_of
from nodes.workload import models
from nodes.workload.models import ModelSpec, VisionTransformer
from nodes.workload.text.model import LanguageModel, LanguageSpec

SPEC = LanguageSpec(
    vocabulary=24, width=16, depth=3, heads=4, kv_heads=2, mlp_width=20, context=12, tied=False
)


def model(spec: LanguageSpec = SPEC) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(spec)


def prefixed(own: nn.Module, places: int = 5, hidden: int | None = None) -> Prefixed:
    keys, like = keys_of(own), next(own.parameters()).detach()
    layers = len(own.blocks)  # type: ignore[arg-type]
    prefix = Prefix(places, layers, keys, SPEC.width, like, hidden=hidden, deviation=1.0)
    return Prefixed(own, own.blocks, prefix)  # type: ignore[arg-type]


def ids() -> Tensor:
    return torch.randint(24, (3, 7), generator=torch.Generator().manual_seed(1))


NAMES = {
    "norm_attention": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "norm_mlp": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "expand": "mlp.up_proj",
    "contract": "mlp.down_proj",
}


def as_transformers(own: LanguageModel) -> Any:
    """The same model as `transformers` has it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    spec = own.spec
    config = LlamaConfig(
        vocab_size=spec.vocabulary,
        hidden_size=spec.width,
        intermediate_size=spec.mlp_width,
        num_hidden_layers=spec.depth,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        rms_norm_eps=spec.norm_eps,
        tie_word_embeddings=False,
    )
    theirs = LlamaForCausalLM(config)
    state = {
        "model.embed_tokens.weight": own.embed.weight,
        "model.norm.weight": own.head.norm.weight,
        "lm_head.weight": own.head.classifier.weight,
    }
    for number, block in enumerate(own.blocks):
        for ours, name in NAMES.items():
            weight = block.get_parameter(f"{ours}.weight")
            state[f"model.layers.{number}.{name}.weight"] = weight
    theirs.load_state_dict(state)
    return theirs.eval()


def test_a_prefix_is_what_transformers_has_of_tokens_before() -> None:
    from transformers import DynamicCache

    ours = prefixed(model())
    theirs = as_transformers(model())
    cache = DynamicCache(config=theirs.config)
    for layer, (keys, values) in enumerate(ours.prefix().detach()):
        own = (each.expand(3, -1, -1, -1) for each in (keys, values))
        cache.update(*own, layer)
    with torch.no_grad():
        # Places are the tokens' own: counted without the prefix.
        places = torch.arange(7).expand(3, -1)
        expected = theirs(ids(), past_key_values=cache, position_ids=places, use_cache=True).logits
        found = ours(ids())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, model()(ids()), atol=1e-2)


def test_no_places_change_nothing() -> None:
    ours = prefixed(model())
    none = ours.prefix()[..., :0, :]
    hidden = ours.hidden(ids(), none)
    expected = model()(ids())
    torch.testing.assert_close(ours.head.classifier(hidden), expected)  # type: ignore[operator]


def test_no_token_sees_one_behind_it() -> None:
    ours, changed = prefixed(model()), ids()
    changed[:, 4:] = (changed[:, 4:] + 1) % 24
    one, other = ours(ids()), ours(changed)
    torch.testing.assert_close(one[:, :4], other[:, :4])
    assert not torch.allclose(one[:, 4:], other[:, 4:])


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def by_hand(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    weights = query @ keys.transpose(-1, -2) / math.sqrt(query.shape[-1])
    return (weights if mask is None else weights + mask).softmax(dim=-1) @ values


@pytest.mark.parametrize("kind", ["none", "causal", "flags", "numbers"])
def test_what_is_masked_stays_so_and_the_prefix_is_seen(kind: str) -> None:
    query, key, value = drawn(3, 2, 3, 4, 8)
    prefix = drawn(2, 3, 5, 8)
    flags = torch.ones(4, 4, dtype=torch.bool).tril()
    numbers = torch.zeros(4, 4).masked_fill(~flags, -math.inf)
    given: dict[str, Any] = {
        "none": {},
        "causal": {"is_causal": True},
        "flags": {"attn_mask": flags},
        "numbers": {"attn_mask": numbers},
    }[kind]
    found = attend(prefix, query, key, value, **given)
    keys, values = (
        torch.cat([own[None].expand(2, -1, -1, -1), each], dim=2)
        for own, each in zip(prefix, (key, value), strict=True)
    )
    mask = None if kind == "none" else F.pad(numbers, (5, 0))
    torch.testing.assert_close(found, by_hand(query, keys, values, mask))


def test_a_projection_makes_as_many_values_from_few() -> None:
    ours = prefixed(model(), hidden=6)
    assert ours.prefix().shape == (3, 2, 2, 5, 4)
    values = 3 * 2 * 2 * 4
    sizes = [each.numel() for each in ours.prefix.parameters()]
    assert sum(sizes) == 5 * 16 + 16 * 6 + 6 + 6 * values + values
    direct = prefixed(model()).prefix
    assert [each.numel() for each in direct.parameters()] == [5 * values]
    # Each layer has values of its own.
    one, other = direct()[0], direct()[1]
    assert not torch.equal(one, other)


def test_keys_are_those_that_attention_reads() -> None:
    assert keys_of(model()) == Keys(heads=2, size=4)
    assert keys_of(model().to("meta")) == Keys(heads=2, size=4)


class Eager(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return (tokens @ tokens.transpose(-1, -2)).softmax(dim=-1) @ tokens


def test_attention_of_another_kind_is_refused() -> None:
    own = model()
    own.blocks[0].attention = Eager()  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="attends 0 times by torch's scaled_dot_product_attention"):
        keys_of(own)


def test_attention_is_torchs_again_behind_it() -> None:
    before = model()(ids())
    ours = prefixed(model())
    ours(ids())
    assert torch.equal(model()(ids()), before)
    with Attention(lambda *args, **options: torch.zeros_like(args[0])):
        assert not torch.equal(model()(ids()), before)
    assert torch.equal(model()(ids()), before)


def test_a_gradient_reaches_every_place() -> None:
    ours = prefixed(model())
    ours(ids()).square().sum().backward()
    places = ours.prefix.places.grad
    assert places is not None and bool((places.abs().sum(dim=1) > 0).all())


def test_copies_keep_what_is_tied() -> None:
    tied = LanguageModel(LanguageSpec(vocabulary=24, width=16, depth=2, heads=4, mlp_width=20))
    ours = copy.deepcopy(prefixed(tied))
    assert ours.head.classifier.weight is ours.embed.weight  # type: ignore[union-attr]


def test_a_vision_transformer_reads_a_prefix_too() -> None:
    torch.manual_seed(0)
    own = VisionTransformer(ModelSpec(side=4, patch=2, width=16, depth=2, heads=4), 3)
    images = torch.rand(2, 1, 4, 4)
    with Attention(lambda *args, **options: attend(drawn(2, 4, 5, 4), *args, **options)):
        found = own(images)
    assert found.shape == (2, 3) and not torch.allclose(found, own(images))


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
def test_models_of_transformers_read_a_prefix_as_their_own_cache(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, DynamicCache

    folder = str(made_causal.folder_of(kind, tmp_path))
    own = models.build(folder, 1, 0)
    keys, like = keys_of(own), next(own.parameters()).detach()
    prefix = Prefix(5, len(own.blocks), keys, own.spec.width, like, hidden=None, deviation=1.0)
    ours = Prefixed(own, own.blocks, prefix)
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    cache = DynamicCache(config=theirs.config)
    for layer, each in enumerate(prefix().detach()):
        cache.update(*(part.expand(3, -1, -1, -1) for part in each), layer)
    text = ids() % made_causal.VOCABULARY
    with torch.no_grad():
        places = torch.arange(7).expand(3, -1)
        given = {"past_key_values": cache, "position_ids": places, "use_cache": True}
        expected = theirs(text, **given).logits
        torch.testing.assert_close(ours.eval()(text), expected, atol=1e-5, rtol=1e-5)


def test_a_model_that_caps_its_scores_is_refused(tmp_path: Path) -> None:
    folder = str(made_causal.folder_of("gemma2", tmp_path))
    with pytest.raises(ValueError, match="attends 0 times"):
        keys_of(models.skeleton(folder, 1))
