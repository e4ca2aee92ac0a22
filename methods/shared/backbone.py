"""Backbone: what methods ask of a model, its stages and a classifier with a name."""

from typing import Protocol, cast

from torch import nn

STAGES = ("embed", "blocks", "head")


class Spec(Protocol):
    """Sizes of a model's images and tokens."""

    @property
    def side(self) -> int:
        """Height and width of an image, pixels."""

    @property
    def channels(self) -> int:
        """Channels of an image."""

    @property
    def patch(self) -> int:
        """Height and width of a patch, pixels."""

    @property
    def width(self) -> int:
        """Features of a token."""

    @property
    def tokens(self) -> int:
        """Tokens of an image."""


class Head(nn.Module):
    """Tokens (batch, tokens, width) to logits (batch, classes)."""

    classifier: nn.Linear


class Backbone(nn.Module):
    """Images (batch, channels, side, side) to logits (batch, classes), in three stages."""

    spec: Spec
    embed: nn.Module
    """Images to tokens (batch, tokens, width)."""
    blocks: nn.ModuleList
    """Tokens to tokens, one after another."""
    head: Head


def staged(model: nn.Module) -> Backbone:
    """The same model, whatever its class, for those who need its stages.

    Raises:
        ValueError: it has none.
    """
    missing = [stage for stage in STAGES if not hasattr(model, stage)]
    if missing:
        raise ValueError(f"{type(model).__name__} cannot be cut: it has no {', '.join(missing)}")
    return cast(Backbone, model)
