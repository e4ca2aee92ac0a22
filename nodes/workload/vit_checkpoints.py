"""Vision transformers as `transformers` saves them, renamed for the stages of `models`.

A checkpoint is a folder with config.json and model.safetensors, as `save_pretrained` of ViTModel or
ViTForImageClassification writes it, or a repository of such files on the hub ("google/vit-...").
Of its weights the pooler and the classifier are left out.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nodes.workload import saved
from nodes.workload.saved import CONFIG, MOST, MOST_BLOCKS, PROCESSORS, size
from testbed.config_error import ConfigError

EMBED = {
    "embed.class_token": "embeddings.cls_token",
    "embed.positions": "embeddings.position_embeddings",
    "embed.patches.weight": "embeddings.patch_embeddings.projection.weight",
    "embed.patches.bias": "embeddings.patch_embeddings.projection.bias",
}
BLOCK = {
    "norm_attention": "layernorm_before",
    "attention.query": "attention.attention.query",
    "attention.key": "attention.attention.key",
    "attention.value": "attention.attention.value",
    "attention.output": "attention.output.dense",
    "norm_mlp": "layernorm_after",
    "expand": "intermediate.dense",
    "contract": "output.dense",
}

MOST_PIXELS = 1 << 16
"""Of an image's side; its square counts."""


def architecture(name: str, folder: Path) -> dict[str, int | float]:
    """The fields of a ModelSpec. ConfigError for what a VisionTransformer of ours is not."""
    config = saved.read_config(name, folder)
    # What its own library takes where the file is silent.
    defaults = {"hidden_act": "gelu", "qkv_bias": True, "num_channels": 3, "layer_norm_eps": 1e-12}
    wanted = {"model_type": "vit", "hidden_act": "gelu", "qkv_bias": True}
    for field, right in wanted.items():
        found = config.get(field, defaults.get(field))
        if found != right:
            also = ", and causal language models" if field == "model_type" else ""
            raise ConfigError(
                f"model = {name!r}: {field} = {found!r} in its {CONFIG}; only {right!r} is known"
                f"{also}"
            )
    side, patch, width, depth, heads, hidden, channels = (
        size(name, field, config.get(field, defaults.get(field)), most)
        for field, most in (
            ("image_size", MOST_PIXELS),
            ("patch_size", MOST_PIXELS),
            ("hidden_size", MOST),
            ("num_hidden_layers", MOST_BLOCKS),
            ("num_attention_heads", MOST),
            ("intermediate_size", MOST),
            ("num_channels", MOST_PIXELS),
        )
    )
    for large, small, what in (
        (side, patch, "image_size of patch_size"),
        (width, heads, "hidden_size of num_attention_heads"),
        (hidden, width, "intermediate_size of hidden_size"),
    ):
        if large % small:
            raise ConfigError(f"model = {name!r}: {what}: {large} is no multiple of {small}")
    eps = config.get("layer_norm_eps", defaults["layer_norm_eps"])
    if not isinstance(eps, int | float) or not 0 < eps < 1:
        raise ConfigError(
            f"model = {name!r}: layer_norm_eps = {eps!r} in its {CONFIG}; must be above 0, below 1"
        )
    return {
        "side": side,
        "channels": channels,
        "patch": patch,
        "width": width,
        "depth": depth,
        "heads": heads,
        "mlp_ratio": hidden // width,
        "norm_eps": eps,
    }


def described(spec: Mapping[str, int | float]) -> dict[str, dict[str, Any]]:
    """Contents, by file, of what `transformers` reads beside weights of ours.

    ``spec``: what `architecture` reads of it.
    """
    side = spec["side"]
    config = {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "dtype": "float32",
        "image_size": side,
        "patch_size": spec["patch"],
        "num_channels": spec["channels"],
        "hidden_size": spec["width"],
        "num_hidden_layers": spec["depth"],
        "num_attention_heads": spec["heads"],
        "intermediate_size": spec["mlp_ratio"] * spec["width"],
        "layer_norm_eps": spec["norm_eps"],
    }
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": side, "width": side},
        "rescale_factor": 1 / 255,
        "do_normalize": False,
    }
    return {CONFIG: config, PROCESSORS[1]: processor}


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A backbone's weights by the names that `transformers` has for them."""
    return {_their_name(ours): tensor for ours, tensor in state.items()}


def backbone(name: str, folder: Path, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The weights float32 by our names, which with their shapes are the keys of `shapes`.

    Those saved as float32 are mapped from the file and not copied, but for the patch convolution:
    it takes in the images' normalisation. ConfigError where one is missing or has another shape.
    """
    weights = saved.Weights(name, folder)
    prefix = "vit." if f"vit.{EMBED['embed.class_token']}" in weights.files else ""
    theirs = {ours: prefix + _their_name(ours) for ours in shapes}
    read = weights.read({theirs[ours]: shape for ours, shape in shapes.items()})
    state = {ours: read[theirs[ours]].float() for ours in shapes}
    weight, bias = state["embed.patches.weight"], state["embed.patches.bias"]
    mean, deviation = _normalisation(name, folder, weight.shape[1])
    weight = weight / deviation[:, None, None]
    state["embed.patches.bias"] = bias - (weight * mean[:, None, None]).sum(dim=(1, 2, 3))
    state["embed.patches.weight"] = weight
    return state


def _their_name(ours: str) -> str:
    if ours in EMBED:
        return EMBED[ours]
    module, _, kind = ours.rpartition(".")
    if module == "head.norm":
        return f"layernorm.{kind}"
    _, number, part = module.split(".", 2)
    return f"encoder.layer.{number}.{BLOCK[part]}.{kind}"


def _normalisation(name: str, folder: Path, channels: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation (channels,) that images in 0..1 are normalised with."""
    file, config = _processor(name, folder)
    where = f"in its {file}"
    for field in ("do_rescale", "do_normalize"):
        if not isinstance(config.get(field, True), bool):
            raise ConfigError(
                f"model = {name!r}: {field} = {config[field]!r} {where}; must be true or false"
            )
    factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
    if not _is_number(factor) or abs(factor * 255 - 1) > 1e-3:
        wanted = f"{factor:.4g}" if _is_number(factor) else repr(factor)
        raise ConfigError(
            f"model = {name!r}: its {file} wants pixels times {wanted}; only 1/255, images in "
            "0..1, is known"
        )
    if not config.get("do_normalize", True):
        return torch.zeros(channels), torch.ones(channels)
    found = []
    for field in ("image_mean", "image_std"):
        values = config.get(field, [0.5] * channels)
        right = isinstance(values, list) and len(values) == channels
        if not right or not all(_is_number(each) for each in values):
            raise ConfigError(
                f"model = {name!r}: {field} = {values!r} {where}; must be a list of {channels} "
                "numbers, one a channel"
            )
        found.append(torch.tensor(values, dtype=torch.float32))
    if not (found[1] > 0).all():
        raise ConfigError(f"model = {name!r}: image_std {where} must be above 0")
    return found[0], found[1]


def _processor(name: str, folder: Path) -> tuple[str, dict[str, Any]]:
    """The file that says how images are prepared, as `transformers` finds it, and what it says."""
    both, alone = PROCESSORS
    if os.path.isfile(folder / both):
        found = saved.read(name, folder / both)
        if "image_processor" in found:
            if not isinstance(found["image_processor"], dict):
                raise ConfigError(
                    f"model = {name!r}: image_processor in its {both} must be a JSON object"
                )
            return both, found["image_processor"]
    return alone, saved.read(name, folder / alone) if os.path.isfile(folder / alone) else {}


def _is_number(found: Any) -> bool:
    is_one = isinstance(found, int | float) and not isinstance(found, bool)
    return is_one and abs(found) < 1e30
