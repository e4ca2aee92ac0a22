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
and a ``spec`` with the ``width`` of its tokens.
"""

import importlib
from collections.abc import Iterable
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
    """Raise ValueError where no module of the model is called as one of ``paths`` is.

    A path of one word may end a module's name anywhere in the model, as peft looks for it; a
    longer one is the whole name.
    """
    there = [name for name, _ in model.named_modules()]
    last = {name.rpartition(".")[2] for name in there}
    missing = [path for path in paths if path not in there and path not in last]
    if missing:
        raise ValueError(
            f"variant {variant} needs {' and '.join(missing)}, which this model lacks: "
            "take another model, or another variant"
        )


def train_only(model: nn.Module, wanted: Iterable[nn.Parameter]) -> nn.Module:
    """The same model; of its parameters only ``wanted`` require a gradient."""
    chosen = {id(parameter) for parameter in wanted}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in chosen)
    return model
