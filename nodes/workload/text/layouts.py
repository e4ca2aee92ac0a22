"""Layouts of causal language models of `transformers`: where each family has its parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from methods.shared.backbone import Roles


class Sizes(NamedTuple):
    """Fields of config.json."""

    width: str = "hidden_size"
    depth: str = "num_hidden_layers"
    heads: str = "num_attention_heads"
    vocabulary: str = "vocab_size"
    context: str = "max_position_embeddings"


class Layout(NamedTuple):
    """Places of a family's parts, by their paths in its base model."""

    perceptron_output: str = "mlp.down_proj"
    """In a layer: the module that gives what its perceptron adds to the tokens."""
    layers: str = "layers"
    norm: str = "norm"
    rotary: str | None = "rotary_emb"
    """Makes a layer's ``position_embeddings``; None: places are learnt, at ``places``."""
    by_kind: bool = False
    """Whether these differ by the kind of a layer's attention."""
    places: str | None = None
    tied: bool = False
    """Where config.json does not say."""
    head: str = "lm_head"
    """In files: the classifier."""
    sizes: Sizes = Sizes()


_LLAMA = Layout()
_TIED = Layout(tied=True)
_NORMED = Layout("post_feedforward_layernorm")
LAYOUTS: Mapping[str, Layout] = {
    "arcee": _LLAMA,
    "ernie4_5": _TIED,
    "exaone4": _NORMED,
    "gemma": _TIED,
    "gemma2": _NORMED._replace(tied=True),
    "gemma3_text": _NORMED._replace(tied=True, by_kind=True),
    "glm": _LLAMA,
    "glm4": Layout("post_mlp_layernorm"),
    "gpt2": Layout(
        "mlp.c_proj",
        layers="h",
        norm="ln_f",
        rotary=None,
        places="wpe",
        tied=True,
        sizes=Sizes("n_embd", "n_layer", "n_head", context="n_positions"),
    ),
    "gpt_neox": Layout("mlp.dense_4h_to_h", norm="final_layer_norm", head="embed_out"),
    "helium": _LLAMA,
    "llama": _LLAMA,
    "ministral3": _LLAMA,
    "mistral": _LLAMA,
    "nemotron": _LLAMA,
    "olmo": _LLAMA,
    "olmo2": _NORMED,
    "olmo3": _NORMED._replace(by_kind=True),
    "phi": Layout("mlp.fc2", norm="final_layernorm"),
    "phi3": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "seed_oss": _LLAMA,
    "smollm3": _TIED,
    "stablelm": _LLAMA,
}
"""By ``model_type`` of config.json."""
FUSED = {"phi3": (("qkv_proj",), ("qkv_proj",), ("down_proj",))}
"""Layers for LoRA, and those whose outputs and inputs (IA)3 scales, of families that peft's tables
lack and whose layers are not called as Llama's."""


def roles(model_type: str) -> Roles:
    """Modules that variants act on, by peft's own tables; as Llama's where they lack a family."""
    # Here and not above: it takes a second, which models that ship do without.
    from peft.utils import constants

    low_rank = constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    scaled = constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
    inputs = constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING
    output = LAYOUTS[model_type].perceptron_output
    if model_type not in low_rank and model_type in FUSED:
        return Roles(*FUSED[model_type], output)
    key = model_type if model_type in scaled else "llama"
    outputs = [each for each in scaled[key] if each not in inputs[key]]
    return Roles(
        tuple(low_rank.get(model_type, low_rank["llama"])),
        tuple(outputs),
        tuple(inputs[key]),
        output,
    )
