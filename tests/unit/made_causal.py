"""Made causal language models of `transformers`: tiny random ones of each layout, and folders."""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from copied import copied

VOCABULARY, CONTEXT, DEPTH = 97, 64, 3


def theirs(model_type: str, **fields: Any) -> Any:
    """A model in which every parameter is random, biases and norms too.

    Windows, where the family has them, are of 5 tokens.
    """
    return copied(_made(model_type, json.dumps(fields)))


@cache
def _made(model_type: str, fields: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        model_type,
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=DEPTH,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=CONTEXT,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **json.loads(fields),
    )
    if getattr(config, "head_dim", None):
        config.head_dim = 8
    if hasattr(config, "sliding_window"):
        config.sliding_window = 5
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager" if capped else "sdpa"
    ).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for each in model.parameters():
            each.add_(torch.randn(each.shape, generator=generator) * 0.1)
    return model


def folder_of(model_type: str, path: Path, **fields: Any) -> Path:
    """Such a model, saved."""
    path.mkdir(parents=True, exist_ok=True)
    for name, contents in _files(model_type, json.dumps(fields)).items():
        (path / name).write_bytes(contents)
    return path


@cache
def _files(model_type: str, fields: str) -> dict[str, bytes]:
    with TemporaryDirectory() as folder:
        theirs(model_type, **json.loads(fields)).save_pretrained(folder)
        return {each.name: each.read_bytes() for each in Path(folder).iterdir()}


def ids(tokens: int = 20) -> torch.Tensor:
    """Two sequences."""
    return torch.randint(3, VOCABULARY, (2, tokens), generator=torch.Generator().manual_seed(1))
