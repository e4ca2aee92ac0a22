"""The language model: causal, and what transformers' own Llama is with the same weights."""

import hashlib

import heavy
import pytest
import torch

from methods.shared.objective import IGNORED, scores
from nodes.workload.models import WEIGHTS
from nodes.workload.text.corpora import DOCS
from nodes.workload.text.model import LanguageModel, LanguageSpec
from nodes.workload.text.tokens import SHIPPED

SPEC = LanguageSpec(vocabulary=40, width=32, depth=2, heads=4, mlp_width=24, context=64)
NAMES = {
    "embed.": "model.embed_tokens.",
    "head.norm.": "model.norm.",
    "head.classifier.": "lm_head.",
    "blocks.": "model.layers.",
    ".attention.query.": ".self_attn.q_proj.",
    ".attention.key.": ".self_attn.k_proj.",
    ".attention.value.": ".self_attn.v_proj.",
    ".attention.output.": ".self_attn.o_proj.",
    ".norm_attention.": ".input_layernorm.",
    ".norm_mlp.": ".post_attention_layernorm.",
    ".gate.": ".mlp.gate_proj.",
    ".expand.": ".mlp.up_proj.",
    ".contract.": ".mlp.down_proj.",
}


def made(spec: LanguageSpec = SPEC) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(spec).eval()


def theirs(name: str) -> str:
    for ours, other in NAMES.items():
        name = name.replace(ours, other)
    return name


@pytest.mark.parametrize("kv_heads", [None, 2, 1])
@pytest.mark.parametrize("tied", [True, False])
@torch.inference_mode()
def test_it_is_llama_as_transformers_has_it(kv_heads: int | None, tied: bool) -> None:
    spec = LanguageSpec(
        **{name: getattr(SPEC, name) for name in ("vocabulary", "width", "depth", "heads")},
        kv_heads=kv_heads,
        mlp_width=24,
        context=64,
        rope_theta=500.0,
        tied=tied,
    )
    model = made(spec)
    config = heavy.transformers.LlamaConfig(
        vocab_size=spec.vocabulary,
        hidden_size=spec.width,
        num_hidden_layers=spec.depth,
        num_attention_heads=spec.heads,
        num_key_value_heads=kv_heads or spec.heads,
        intermediate_size=spec.mlp_width,
        max_position_embeddings=spec.context,
        rms_norm_eps=spec.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope_theta},
        tie_word_embeddings=tied,
    )
    other = heavy.transformers.LlamaForCausalLM(config).eval()
    other.load_state_dict({theirs(name): each for name, each in model.state_dict().items()})
    ids = torch.randint(0, spec.vocabulary, (3, 50))
    expected = other(input_ids=ids).logits
    assert (model(ids) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_what_is_tied_is_one_parameter() -> None:
    names = [name for name, _ in made().named_parameters()]
    assert "embed.weight" in names and "head.classifier.weight" not in names


@torch.inference_mode()
def test_a_token_knows_nothing_of_those_that_follow() -> None:
    model, ids = made(), torch.randint(0, 40, (1, 20))
    changed = ids.clone()
    changed[0, 12:] = 39 - changed[0, 12:]
    before, after = model(ids), model(changed)
    assert torch.equal(before[:, :12], after[:, :12])
    assert not torch.allclose(before[:, 12:], after[:, 12:])


@torch.inference_mode()
def test_an_exact_match_is_what_greedy_decoding_would_say() -> None:
    model = made()
    prompts = torch.randint(0, 40, (12, 6))
    rows = []
    for prompt in prompts:
        ids = prompt.tolist()
        for _ in range(4):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        rows.append(ids)
    said = torch.tensor(rows)
    said[::3, -1] = (said[::3, -1] + 1) % 40
    targets = said[:, 1:].clone()
    targets[:, :5] = IGNORED
    assert scores(model, said[:, :-1], targets)["exact_match"] == pytest.approx(8 / 12)


def test_what_ships_is_small_and_has_the_sums_that_the_docs_say() -> None:
    page = (WEIGHTS.parents[2] / "docs" / "language.md").read_text()
    paths = WEIGHTS / "llama-docs.safetensors", SHIPPED, DOCS
    for path in paths:
        data = path.read_bytes()
        name = path.relative_to(WEIGHTS.parent).as_posix()
        digest = hashlib.sha256(data).hexdigest()
        assert f"| `{name}` | {len(data):,} | `{digest}` |" in page
    assert sum(path.stat().st_size for path in paths) < 5e6
