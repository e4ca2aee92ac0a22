"""Checkpoints: what of a method's Server or Client lasts from round to round, out and in.

Taken are the trainable parameters and the buffers of its modules, its optimizers and generators
(torch's, numpy's and Python's own of the process too), and what its attributes hold beside them,
down through containers and objects of classes that the method's files name; as tensors by name, and
the rest as JSON.
Left out is what a new object has by itself: options, data, functions, frozen parameters that nobody
wrote to, and trainable ones of what its class names in ``received``. Gradients do not last, nor do
other attributes of modules that are not the project's. Tensors without values keep their shapes
alone.

What cannot be kept is an Unkept error that names the attribute: it comes when a node starts or
first saves, not when a run is to go on.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

import methods
from methods import Shard
from nodes.checkpoint.capture import Capture
from nodes.checkpoint.kinds import CONSTANTS, SCALARS, Json, Unkept, address, global_states, name_of
from nodes.checkpoint.restore import Restore

__all__ = ["Json", "Snapshot", "Unkept"]
_NOT_ITS_LIKE = (
    *(AttributeError, LookupError, TypeError, ValueError, ArithmeticError, RuntimeError),
    AssertionError,
)


class Snapshot:
    """Takes what lasts out of one object, and puts what was taken from its like into it."""

    def __init__(self, root: object, options: object, shard: Shard) -> None:
        """``root``: as its class has just made it, of these options and this data.

        Raises:
            Unkept: an attribute is of a kind that cannot be kept.
        """
        self.root = root
        self.options = options
        self.device = shard.inputs.device
        """Where its node computes."""
        self.kind = f"{type(root).__module__}.{type(root).__qualname__}"
        self._homes = (methods.__name__, _home(type(root).__module__))
        data = (*shard, *(shard.test or ()))
        self.data = {address(each) for each in data if isinstance(each, Tensor)} - {None}
        self.stateful = {id(value): path for path, value in self._find(root, "", set())}
        """Modules, optimizers and schedules, the paths of which a new object has too."""
        self.weights = dict(self._named())
        self.at_first = {name: (t._version, t.requires_grad) for name, t in self.weights.items()}
        received = [getattr(root, name) for name in getattr(root, "received", ())]
        within = [value for _, value in self._find(received, "", set())]
        modules = [value for value in within if isinstance(value, nn.Module)]
        self.received = {id(own) for module in modules for own in module.parameters()}
        self.classes: dict[str, type] = {}
        """By its name, each class of which a state may have objects."""
        self.constants: dict[str, object] = {}
        self.undrawn = {name: hash(str(state)) for name, state in global_states().items()}
        with torch.no_grad():
            Capture(self, at_first=True).value(root, "")
        self.classes |= {name_of(kind): kind for kind in self._at_hand()}

    def take(self) -> tuple[dict[str, Tensor], Json]:
        """Tensors by name, the object's own, which it must not change before they are written.

        Raises:
            Unkept: an attribute is of a kind that cannot be kept.
        """
        with torch.no_grad():
            return Capture(self).all()

    def put(self, tensors: Mapping[str, Tensor], told: Json) -> None:
        """Give the object what ``take`` took from its like.

        Raises:
            Unkept: it was taken from another kind of object.
        """
        with torch.no_grad():
            try:
                Restore(self, tensors).all(told)
            except _NOT_ITS_LIKE as error:
                raise Unkept(f"what was kept is not of this {self.kind}: {error!r}") from error

    def is_ours(self, value: object) -> bool:
        """Whether it is of a class of the project's, which is looked into."""
        return self.is_of_ours(type(value))

    def is_of_ours(self, kind: type) -> bool:
        return _home(kind.__module__) in self._homes

    def _at_hand(self) -> Iterator[type]:
        """Classes of the project's, and enumerations, that the files of what was found name.

        By themselves, or in a module of the project's that they name.
        """
        lines = [kind.__mro__ for kind in (type(self.root), *self.classes.values())]
        files = {each.__module__ for line in lines for each in line if self.is_of_ours(each)}
        named = [vars(sys.modules[file]) for file in sorted(files & sys.modules.keys())]
        within = [vars(each) for names in named for each in names.values() if self._is_room(each)]
        for names in (*named, *within):
            for each in names.values():
                if isinstance(each, type) and (self.is_of_ours(each) or issubclass(each, Enum)):
                    yield each

    def _is_room(self, value: object) -> bool:
        return isinstance(value, ModuleType) and _home(value.__name__) in self._homes

    def _find(self, value: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
        """Modules, optimizers and schedules within ``value``, by path; no module within another."""
        if isinstance(value, (*SCALARS, *CONSTANTS, Tensor)) or id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, nn.Module | Optimizer | LRScheduler):
            yield path, value
            return
        within: Iterable[tuple[str, Any]] = ()
        if isinstance(value, dict):
            within = ((f"[{key!r}]", each) for key, each in value.items())
        elif isinstance(value, list | tuple | deque):
            within = ((f"[{number}]", each) for number, each in enumerate(value))
        elif self.is_ours(value) and hasattr(value, "__dict__"):
            within = ((f".{name}", each) for name, each in vars(value).items())
        for step, each in within:
            yield from self._find(each, path + step, seen)

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter and buffer, once, by a name that it has in a new object too."""
        seen: set[int] = set()
        found = [(path, value) for path, value in self._find(self.root, "", set())]
        # An optimizer may train what no module has.
        for path, value in sorted(found, key=lambda each: not isinstance(each[1], nn.Module)):
            own: list[tuple[str, Tensor]] = []
            if isinstance(value, nn.Module):
                own = [*value.named_parameters(), *value.named_buffers()]
            elif isinstance(value, Optimizer):
                trained = [each for group in value.param_groups for each in group["params"]]
                own = [(f"params[{number}]", each) for number, each in enumerate(trained)]
            for name, tensor in own:
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield f"{path}.{name}", tensor


def _home(module: str) -> str:
    """`methods`, wherever that lies, of what is in it; of anything else the package at the top."""
    within = f"{module}.".startswith(f"{methods.__name__}.")
    return methods.__name__ if within else module.partition(".")[0]
