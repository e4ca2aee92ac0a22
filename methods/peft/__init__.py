"""Parameter-efficient variants: what is trained and sent of a model, one file each.

A variant's file holds

``KIND``
    What its messages are called in the byte report.
``LEARNING_RATE``
    A client's, by optimizer, where none is given.
``check(config, model)``
    Raises ValueError, saying what the variant needs, where the model lacks it. The model may be on
    the meta device.
``adapt(config, model)``
    The model with what the variant inserts; ``requires_grad`` on exactly what is trained and sent.

A model has the stages ``embed``, ``blocks`` and ``head``, its classifier being ``head.classifier``,
a ``spec`` with the ``width`` of its tokens, and ``roles`` where its modules have other names than
those of the models that ship. An image model's classifier, which every run starts anew, is trained
with all variants; a language model's, which is pretrained and may be its embedding, with ``head``
and ``full`` alone.
"""

import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

from torch import nn


def names() -> list[str]:
    """Every variant: one file each."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))


def load(name: str) -> ModuleType:
    """The module of a variant."""
    return importlib.import_module(f"{__name__}.{name}")


def require(model: nn.Module, variant: str, *paths: str) -> None:
    """Raise ValueError where no module's path in the model ends with one of ``paths``."""
    missing = [path for path in paths if next(named(model, path), None) is None]
    if missing:
        raise ValueError(
            f"variant {variant} needs {' and '.join(missing)}, which this model lacks: "
            "take another model, or another variant"
        )


def named(model: nn.Module, *endings: str) -> Iterator[tuple[str, nn.Module]]:
    """Modules whose paths end with the words of one of these, as peft looks for them."""
    for path, module in model.named_modules():
        if any(f".{path}".endswith(f".{ending}") for ending in endings):
            yield path, module


def train_only(model: nn.Module, wanted: Iterable[nn.Parameter]) -> nn.Module:
    """The same model; of its parameters only ``wanted`` require a gradient."""
    chosen = {id(parameter) for parameter in wanted}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in chosen)
    return model
