"""Backbones in stages: a small vision transformer that any method can cut between blocks.

`embed` turns images into tokens, each of `blocks` maps tokens to tokens, `head` turns tokens into
logits. The shipped weights are read by memory map, so all processes of a run share one copy.
"""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

WEIGHTS = Path(__file__).parent / "weights"


class ModelSpec(msgspec.Struct, frozen=True):
    """The architecture of a vision transformer, as its weights file states it."""

    side: int = 16
    """Height and width of an image, pixels; a multiple of `patch`."""
    channels: int = 1
    """Channels of an image; 1 is greyscale."""
    patch: int = 4
    """Height and width of a patch, pixels."""
    width: int = 96
    """Features of a token; a multiple of `heads`."""
    depth: int = 4
    """Blocks."""
    heads: int = 4
    """Attention heads of a block."""
    mlp_ratio: int = 2
    """Hidden features of a block's perceptron, as a multiple of `width`."""

    @property
    def tokens(self) -> int:
        """Tokens of an image: one a patch, and the class token."""
        return (self.side // self.patch) ** 2 + 1


class Embed(nn.Module):
    """Images (batch, channels, side, side) to tokens (batch, tokens, width), class token first."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.patches = nn.Conv2d(spec.channels, spec.width, spec.patch, stride=spec.patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, spec.width))
        self.positions = nn.Parameter(torch.empty(1, spec.tokens, spec.width))
        # On the meta device `normal_` would import torch's compiler, three seconds; this does not.
        nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        patches: Tensor = self.patches(images).flatten(2).transpose(1, 2)
        first = self.class_token.expand(len(images), -1, -1)
        return torch.cat([first, patches], dim=1) + self.positions


class Attention(nn.Module):
    """Multi-head self-attention; four separate projections, so that adapters find them by name."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = (
            project(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        output: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return output


class Block(nn.Module):
    """A pre-norm transformer block: tokens (batch, tokens, width) to the same shape."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(spec.width)
        self.attention = Attention(spec.width, spec.heads)
        self.norm_mlp = nn.LayerNorm(spec.width)
        self.expand = nn.Linear(spec.width, spec.mlp_ratio * spec.width)
        self.contract = nn.Linear(spec.mlp_ratio * spec.width, spec.width)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.norm_attention(tokens))
        tokens = tokens + self.contract(F.gelu(self.expand(self.norm_mlp(tokens))))
        return tokens


class Head(nn.Module):
    """Tokens (batch, tokens, width) to logits (batch, classes), from the class token alone."""

    def __init__(self, spec: ModelSpec, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(spec.width)
        self.classifier = nn.Linear(spec.width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.norm(tokens[:, 0]))
        return logits


class VisionTransformer(nn.Module):
    """Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021, pre-norm, in three stages.

    Images are (batch, channels, side, side) with values in 0..1; logits are (batch, classes).
    """

    def __init__(self, spec: ModelSpec, classes: int) -> None:
        super().__init__()
        self.spec = spec
        self.embed = Embed(spec)
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.depth))
        self.head = Head(spec, classes)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images)
        for block in self.blocks:
            tokens = block(tokens)
        logits: Tensor = self.head(tokens)
        return logits


def names() -> list[str]:
    """The shipped models: one file of `weights/` is one model."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def path_of(name: str) -> Path:
    """The weights file of a shipped model. ValueError, with the known names, for another name."""
    if name not in names():
        raise ValueError(f"unknown model {name!r}; known: {', '.join(names())}")
    return WEIGHTS / f"{name}.safetensors"


def read_spec(name: str) -> ModelSpec:
    """The architecture of a shipped model, from its file's metadata. Errors as `path_of`."""
    with safe_open(path_of(name), framework="pt") as file:
        return msgspec.json.decode(file.metadata()["spec"], type=ModelSpec)


def build(name: str, classes: int, seed: int) -> VisionTransformer:
    """A shipped backbone under a new classifier of `classes` outputs, drawn from `seed`.

    The backbone is mapped from its file privately: processes share its pages until one of them
    writes (a training step copies the pages it changes and never reaches the file). Every
    parameter requires a gradient. ValueError for an unknown name or fewer than one class.
    """
    if classes < 1:
        raise ValueError(f"a classifier needs at least one class, not {classes}")
    with torch.device("meta"):
        model = VisionTransformer(read_spec(name), classes)
    with safe_open(path_of(name), framework="pt") as file:
        keys = file.keys()
        state = {key: file.get_tensor(key) for key in keys}
    state |= new_classifier(model.spec.width, classes, seed)
    model.load_state_dict(state, assign=True)
    return model


def new_classifier(width: int, classes: int, seed: int) -> dict[str, Tensor]:
    """Weights of `head.classifier`: near zero, so that a new model guesses; bias zero."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, width, generator=generator) * (0.1 / math.sqrt(width))
    return {"head.classifier.weight": weight, "head.classifier.bias": torch.zeros(classes)}
