"""Causal language models of transformers in our stages: the same logits, from the same files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_causal
import pytest
import torch
from made_causal import ids

from nodes.workload import models
from nodes.workload.text.layouts import LAYOUTS
from nodes.workload.text.stages import CausalSpec

Change = Callable[[dict[str, Any]], object]


@torch.inference_mode()
def logits(model: Any, tokens: int = 20) -> torch.Tensor:
    found = model(ids(tokens))
    return getattr(found, "logits", found)


@pytest.mark.parametrize("model_type", LAYOUTS)
def test_logits_are_those_of_transformers(model_type: str, tmp_path: Path) -> None:
    theirs = made_causal.theirs(model_type)
    theirs.save_pretrained(tmp_path)
    ours = models.build(str(tmp_path), 1, 0)
    for tokens in (1, 4, 20, made_causal.CONTEXT):
        expected = logits(theirs, tokens)
        assert (logits(ours, tokens) - expected).abs().max() <= 1e-6 * expected.abs().max()
    spec = models.read_spec(str(tmp_path))
    assert spec == CausalSpec(
        model_type=model_type,
        width=32,
        depth=made_causal.DEPTH,
        heads=4,
        vocabulary=made_causal.VOCABULARY,
        context=made_causal.CONTEXT,
        tied=theirs.config.tie_word_embeddings,
    )
    assert ours.spec == spec and spec.causal
    # As many, each once: what is tied is one parameter.
    counts = [sum(each.numel() for each in model.parameters()) for model in (ours, theirs)]
    assert counts[0] == counts[1]
    assert all(each.requires_grad for each in ours.parameters())
    with pytest.raises(ValueError, match="a sequence of 65 tokens: the model takes at most 64"):
        logits(ours, made_causal.CONTEXT + 1)


@pytest.mark.parametrize("model_type", LAYOUTS)
def test_a_skeleton_has_the_shapes_without_weights(model_type: str, tmp_path: Path) -> None:
    ours = models.build(str(made_causal.folder_of(model_type, tmp_path)), 1, 0)
    (tmp_path / "model.safetensors").unlink()
    skeleton = models.skeleton(str(tmp_path), 1)
    assert all(each.is_meta for each in [*skeleton.parameters(), *skeleton.buffers()])
    shapes = [
        {name: (each.shape, each.dtype) for name, each in model.named_parameters()}
        for model in (skeleton, ours)
    ]
    assert shapes[0] == shapes[1]
    assert skeleton(ids().to("meta")).shape == (2, 20, made_causal.VOCABULARY)
    models.check(str(tmp_path), weights=False)
