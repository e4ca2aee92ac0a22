"""Backbones in stages: transformers of images and of text that any method can cut between blocks.

`embed` turns images or ids into tokens, each of `blocks` maps tokens to tokens, `head` turns tokens
into logits. The shipped weights are read by memory map, so all processes of a run share one copy.
Architectures of the papers' size have random weights: they have its bytes and FLOPs, and know
nothing. A checkpoint of `transformers` is a model too, by its folder or its name on the hub.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from nodes.workload import saved, vit_checkpoints
from nodes.workload.text import checkpoints
from nodes.workload.text import model as text
from nodes.workload.text.model import LanguageModel, LanguageSpec
from nodes.workload.text.stages import CausalModel, CausalSpec
from nodes.workload.text.tokens import SHIPPED as SHIPPED_TOKENIZER
from nodes.workload.text.tokens import Encoder, ShippedEncoder
from testbed.config_error import ConfigError
from testbed.run.config import choose
from testbed.seeds import derive

WEIGHTS = Path(__file__).parent / "weights"
CLASSIFIER = "head.classifier."
"""Begins the names of the parameters that every run starts anew."""


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
    norm_eps: float = 1e-5
    """What layer norms add to the variance."""

    @property
    def tokens(self) -> int:
        """Tokens of an image: one a patch, and the class token."""
        return (self.side // self.patch) ** 2 + 1


PAPER_SIZE = {
    "vit-b16": ModelSpec(
        side=224, channels=3, patch=16, width=768, depth=12, heads=12, mlp_ratio=4
    ),
    "vit-l16": ModelSpec(
        side=224, channels=3, patch=16, width=1024, depth=24, heads=16, mlp_ratio=4
    ),
}
"""Dosovitskiy et al., 2021, table 1; 16 is the patch."""


def fit(images: Tensor, spec: ModelSpec) -> Tensor:
    """Images (batch, any, any, any) as `spec` takes them; those that are right stay themselves.

    Another size is interpolated bilinearly, with antialiasing where it shrinks. A single channel
    is repeated; for a greyscale model several become their mean. ValueError for other channels.
    """
    if images.shape[1] != spec.channels:
        _check_channels(images.shape[1], spec)
        images = images.mean(dim=1, keepdim=True).expand(-1, spec.channels, -1, -1)
    if images.shape[2:] != (spec.side, spec.side):
        size = (spec.side, spec.side)
        images = F.interpolate(images, size, mode="bilinear", antialias=True)
    return images


def _check_channels(channels: int, spec: ModelSpec) -> None:
    if channels not in (1, spec.channels) and spec.channels != 1:
        raise ValueError(f"images of {channels} channels for a model of {spec.channels}")


class Embed(nn.Module):
    """Images (batch, channels, side, side) to tokens (batch, tokens, width), class token first.

    Images of another size or number of channels are made to fit.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.patches = nn.Conv2d(spec.channels, spec.width, spec.patch, stride=spec.patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, spec.width))
        self.positions = nn.Parameter(torch.empty(1, spec.tokens, spec.width))
        # On the meta device `normal_` would import torch's compiler, three seconds; this does not.
        nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        patches: Tensor = self.patches(fit(images, self.spec)).flatten(2).transpose(1, 2)
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
        self.norm_attention = nn.LayerNorm(spec.width, eps=spec.norm_eps)
        self.attention = Attention(spec.width, spec.heads)
        self.norm_mlp = nn.LayerNorm(spec.width, eps=spec.norm_eps)
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
        self.norm = nn.LayerNorm(spec.width, eps=spec.norm_eps)
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


def fingerprint(name: str) -> str | None:
    """SHA-256 of a model's file of weights; None where it has random ones."""
    if name in PAPER_SIZE or name in text.PAPER_SIZE:
        return None
    if is_checkpoint(name):
        return saved.fingerprint(name, saved.find(name, weights=True))
    with path_of(name).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def names() -> list[str]:
    """Every model that has a name here: one file of `weights/` each, and those of papers' size."""
    return sorted([*_shipped(), *PAPER_SIZE, *text.PAPER_SIZE])


def is_language(name: str) -> bool:
    """Whether a model reads text, and not images."""
    return not isinstance(read_spec(name), ModelSpec)


def encoder(name: str) -> Encoder:
    """The tokenizer of a language model. ConfigError where a checkpoint has none that fits."""
    if is_checkpoint(name):
        return checkpoints.encoder(name, saved.find(name, weights=False))
    return ShippedEncoder(SHIPPED_TOKENIZER)


def is_checkpoint(name: str) -> bool:
    """Whether a model's name, none of `names`, is that of a folder or of a hub repository."""
    return name not in names() and ("/" in name or saved.is_folder(saved.local(name)))


def absolute(name: str) -> str:
    """A model's name; that of a local checkpoint is its absolute path."""
    folder = saved.local(name)
    return str(folder.resolve()) if is_checkpoint(name) and saved.is_folder(folder) else name


def check(name: str, *, weights: bool) -> None:
    """ConfigError where there is no such model, with `weights` also where it cannot be built.

    A checkpoint of the hub is downloaded, its weights only if asked for.
    """
    if not is_checkpoint(name):
        choose("model", name, names())
        if weights and name in text.PAPER_SIZE:
            raise ConfigError(
                f"model = {name!r}: its weights are not here, and 20 clients with random ones "
                "would learn nothing for hours; take --compute=modelled, or your own folder of it"
            )
    elif weights and (folder := _language(name, weights=True)) is not None:
        checkpoints.check(name, folder)
    elif weights:
        _backbone(name, skeleton(name, classes=1))
    else:
        read_spec(name)


def check_images(name: str, channels: int) -> None:
    """ValueError where the model cannot take images of so many channels."""
    spec = read_spec(name)
    assert isinstance(spec, ModelSpec)
    _check_channels(channels, spec)


def path_of(name: str) -> Path:
    """The weights file of a shipped model. ValueError, with the known names, for another name."""
    if name not in _shipped():
        raise ValueError(f"unknown model {name!r}; known: {', '.join(_shipped())}")
    return WEIGHTS / f"{name}.safetensors"


def _language(name: str, *, weights: bool) -> Path | None:
    """The folder of a checkpoint that is a causal language model; None for any other model."""
    if not is_checkpoint(name) or not checkpoints.is_causal(saved.find(name, weights=False)):
        return None
    return saved.find(name, weights=weights)


def read_spec(name: str) -> ModelSpec | LanguageSpec | CausalSpec:
    """The architecture of a model. ValueError, with the known names, for an unknown one."""
    if (language := _language(name, weights=False)) is not None:
        return checkpoints.architecture(name, language)
    if is_checkpoint(name):
        folder = saved.find(name, weights=False)
        return msgspec.convert(vit_checkpoints.architecture(name, folder), ModelSpec)
    if name not in names():
        raise ValueError(f"unknown model {name!r}; known: {', '.join(names())}")
    if name in PAPER_SIZE:
        return PAPER_SIZE[name]
    if name in text.PAPER_SIZE:
        return text.PAPER_SIZE[name]
    with safe_open(path_of(name), framework="pt") as file:
        spec = msgspec.json.decode(file.metadata()["spec"])
    if "vocabulary" in spec:
        return msgspec.convert(spec, LanguageSpec)
    return msgspec.convert(spec, ModelSpec)


def skeleton(name: str, classes: int) -> VisionTransformer | LanguageModel | CausalModel:
    """The model on the meta device: every shape, no values and no memory. Errors as `build`."""
    if (folder := _language(name, weights=False)) is not None:
        return checkpoints.skeleton(name, folder)
    if classes < 1:
        raise ValueError(f"a classifier needs at least one class, not {classes}")
    spec = read_spec(name)
    with torch.device("meta"), _Undrawn():
        if isinstance(spec, LanguageSpec):
            return LanguageModel(spec)
        assert isinstance(spec, ModelSpec)
        return VisionTransformer(spec, classes)


def parameters(name: str) -> int:
    """How many a model has, but for the classifier that every run starts anew."""
    model = skeleton(name, classes=1)
    anew = CLASSIFIER if isinstance(model, VisionTransformer) else ()
    named = model.named_parameters()
    return sum(each.numel() for key, each in named if not key.startswith(anew))


class _Undrawn(TorchFunctionMode):
    """Layers without their first values: for an embedding's torch would import its compiler."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if kwargs and "tensor" in kwargs and func.__module__ == nn.init.__name__:
            return kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def build(name: str, classes: int, seed: int) -> VisionTransformer | LanguageModel | CausalModel:
    """A backbone under a new classifier of `classes` outputs, drawn from `seed`.

    A language model is whole as it is: its `classes` are the tokens of its vocabulary.

    A backbone from a file is mapped from it privately: processes share its pages until one of them
    writes (a training step copies the pages it changes and never reaches the file). One of a
    paper's size is drawn from `seed` as well. Every parameter requires a gradient. ValueError for
    an unknown name, an unfit checkpoint or fewer than one class.
    """
    if (folder := _language(name, weights=True)) is not None:
        return checkpoints.build(name, folder)
    model = skeleton(name, classes)
    if isinstance(model, LanguageModel):
        model.load_state_dict(_backbone(name, model), strict=False, assign=True)
        model.tie()
        return model
    state = random_weights(model, seed) if name in PAPER_SIZE else _backbone(name, model)
    state |= new_classifier(model.spec.width, classes, seed)
    model.load_state_dict(state, assign=True)
    return model


def _backbone(name: str, model: nn.Module) -> dict[str, Tensor]:
    """All weights but the classifier's, from the file of a shipped model or a checkpoint."""
    if is_checkpoint(name):
        shapes = {key: each.shape for key, each in model.named_parameters()}
        shapes = {key: shape for key, shape in shapes.items() if not key.startswith(CLASSIFIER)}
        return vit_checkpoints.backbone(name, saved.find(name, weights=True), shapes)
    with safe_open(path_of(name), framework="pt") as file:
        keys = file.keys()
        return {key: file.get_tensor(key) for key in keys}


def new_classifier(width: int, classes: int, seed: int) -> dict[str, Tensor]:
    """Weights of `head.classifier`: near zero, so that a new model guesses; bias zero."""
    generator = torch.Generator().manual_seed(derive(seed, "classifier"))
    weight = torch.randn(classes, width, generator=generator) * (0.1 / math.sqrt(width))
    return {f"{CLASSIFIER}weight": weight, f"{CLASSIFIER}bias": torch.zeros(classes)}


def random_weights(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """A backbone's first weights: normal with deviation 0.02, norms one, biases zero."""
    generator = torch.Generator().manual_seed(derive(seed, "backbone"))
    state = {}
    for name, parameter in model.named_parameters():
        kind = name.rpartition(".")[2]
        if name.startswith(CLASSIFIER):
            continue
        if kind in ("bias", "class_token"):
            state[name] = torch.zeros(parameter.shape)
        elif parameter.dim() == 1:
            state[name] = torch.ones(parameter.shape)
        else:
            state[name] = torch.empty(parameter.shape).normal_(std=0.02, generator=generator)
    return state


def _shipped() -> list[str]:
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))
