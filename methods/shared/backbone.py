"""Backbone: what methods ask of a model, its stages and a classifier with a name."""

from typing import NamedTuple, Protocol, cast

from torch import nn

STAGES = ("embed", "blocks", "head")


class Roles(NamedTuple):
    """Modules of a block that variants act on, by the last word or words of their paths."""

    low_rank: tuple[str, ...] = ("query", "value")
    """Linear layers that low-rank adapters are added to."""
    scaled_outputs: tuple[str, ...] = ("key", "value")
    """Layers whose outputs (IA)3 scales."""
    scaled_inputs: tuple[str, ...] = ("contract",)
    """Layers whose inputs (IA)3 scales: those that read the perceptron's hidden features."""
    perceptron_output: str = "contract"
    """The layer that gives what a block's perceptron adds to the tokens."""


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


def roles(model: nn.Module) -> Roles:
    """A model's own ``roles``, or the names that the shipped models have."""
    found: Roles = getattr(model, "roles", Roles())
    return found


def causal(model: nn.Module) -> bool:
    """Whether a token sees those before it alone, and each has a target: a language model."""
    return bool(getattr(getattr(model, "spec", None), "causal", False))


def images_only(model: nn.Module) -> None:
    """Raises ValueError where a model reads ids, of which no gradient can make others."""
    if causal(model):
        raise ValueError(
            "it learns images by their gradient, and a language model reads ids, which have none; "
            "take another method, such as fedpeft, or a vision model"
        )


def learnt_classifier(model: nn.Module) -> list[nn.Parameter]:
    """Parameters of a classifier that every run starts anew; of a language model none.

    What a language model names tokens by is pretrained like the rest of it.
    """
    return [] if causal(model) else list(model.get_submodule("head.classifier").parameters())


def tied(model: nn.Module) -> bool:
    """Whether the classifier's weights are the embedding's too."""
    stages = staged(model)
    return any(each is stages.head.classifier.weight for each in stages.embed.parameters())


def staged(model: nn.Module) -> Backbone:
    """The same model, whatever its class, for those who need its stages.

    Raises:
        ValueError: it has none.
    """
    missing = [stage for stage in STAGES if not hasattr(model, stage)]
    if missing:
        raise ValueError(f"{type(model).__name__} cannot be cut: it has no {', '.join(missing)}")
    return cast(Backbone, model)
