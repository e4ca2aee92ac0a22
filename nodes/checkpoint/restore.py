"""Restoring: into a new object what was captured of its like.

What was taken may come from a file that somebody sent. It names classes and attributes, and no
more than these are believed: a class must be one of the Snapshot's, none of its code is run, and
nothing is imported; modules, optimizers and functions are those that the new object has in that
very place. Each tensor is taken once, so that what is restored is no larger than what was read.
"""

from __future__ import annotations

import inspect
import random
import re
from collections import deque
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from nodes.checkpoint.kinds import (
    ABSENT,
    BIT_GENERATORS,
    DEVICE,
    DEVICE_RANDOM,
    DICTS,
    OWN_OF_MODULES,
    RANDOM,
    SCALARS,
    SEQUENCES,
    Json,
    address,
    is_constant,
    is_plain,
)

if TYPE_CHECKING:
    from nodes.checkpoint import Snapshot


_NUMBERS = re.compile(r"[<>|][?biufcmMSU][0-9]{1,9}(\[[0-9]{0,3}[A-Za-z]{1,2}\])?|\|b1")
"""Types of an array's elements."""
_MOST_POSITIONS = {"pos": 624, "buffer_pos": 4}
"""In the states of numpy's MT19937 and Philox, which do not look at them."""


class Restore:
    def __init__(self, of: Snapshot, tensors: Mapping[str, Tensor]) -> None:
        self._of = of
        self._tensors = dict(tensors)
        """Those that nothing has taken yet."""
        self._made: dict[str, Any] = {}

    def all(self, told: Json) -> None:
        for name, required in told["requires_grad"].items():
            self._of.weights[name].requires_grad_(required)
        for name in told["weights"]:
            tensor, kept = self._of.weights[name], self._tensors.pop(name)
            if (tensor.shape, tensor.dtype) != (kept.shape, kept.dtype):
                raise ValueError(f"{name}: {kept.dtype} of {list(kept.shape)}")
            tensor.copy_(kept)
        self.value(told["root"], self._of.root, "")
        torch.set_rng_state(self._tensors.pop(RANDOM).clone())
        if torch.cuda.is_initialized() and DEVICE_RANDOM in self._tensors:
            torch.cuda.set_rng_state(self._tensors.pop(DEVICE_RANDOM).clone())
        drawn = told["drawn"]
        if "numpy" in drawn:
            kind, words, position, *rest = drawn["numpy"]
            _check_position("pos", position)
            np.random.set_state((kind, words, position, *rest))
        if "python" in drawn:
            version, words, *rest = drawn["python"]
            random.setstate((version, tuple(words), *rest))

    def value(self, told: Json, now: Any, path: str) -> Any:
        """The value at ``path``; ``now``: what the new object has there, or ABSENT."""
        if type(told) in SCALARS:
            return told
        if isinstance(told, list):
            return self._list(told, now, path)
        ((kind, what),) = told.items()
        if kind == "same":
            return self._made[what]
        put = _KINDS[kind]
        self._made[path] = now
        self._made[path] = found = put(self, what, now, path)
        return found

    def _options(self, what: Json, now: Any, path: str) -> Any:
        return self._of.options

    def _constant(self, what: Json, now: Any, path: str) -> Any:
        is_data = isinstance(now, Tensor) and address(now) in self._of.data
        if now is ABSENT or not (is_constant(now) or is_data):
            raise ValueError(f"{path} is no constant")
        return now

    def _weight(self, what: Json, now: Any, path: str) -> Tensor:
        return self._of.weights[what]

    def _shape(self, what: Json, now: Any, path: str) -> Tensor:
        dtype, shape = what
        kind = vars(torch)[dtype]
        if not isinstance(kind, torch.dtype):
            raise ValueError(f"{path}: {dtype} is no type of a tensor")
        return torch.empty(shape, dtype=kind, device="meta")

    def _tensor(self, what: Json, now: Any, path: str) -> Tensor:
        name, requires_grad, *there = what
        device = self._of.device if there == [DEVICE] else "cpu"
        # What is read from a file may go on standing in it.
        return self._tensors.pop(name).to(device, copy=True).requires_grad_(requires_grad)

    def _array(self, what: Json, now: Any, path: str) -> Any:
        name, dtype, shape = what
        if not _NUMBERS.fullmatch(dtype):
            raise ValueError(f"{path}: {dtype!r} is no type of a number or a text")
        data = self._tensors.pop(name).numpy().tobytes()
        # Of a shape without extents it is the number itself.
        return np.frombuffer(data, np.dtype(dtype)).reshape(shape).copy()[()]

    def _module(self, what: Json, now: Any, path: str) -> nn.Module:
        modes, fields = what
        if not isinstance(now, nn.Module):
            raise ValueError(f"{path} is no module")
        modules = dict(now.named_modules())
        for name, each in modules.items():
            each.training = modes if isinstance(modes, bool) else name in modes
        for name, own in fields.items():
            where = f"{path}.{name}" if name else path
            if not self._of.is_ours(modules[name]) or not OWN_OF_MODULES.isdisjoint(own):
                raise ValueError(f"{where}: attributes that are no method's")
            self._attributes(modules[name], own, where)
        return now

    def _state(self, what: Json, now: Any, path: str) -> Any:
        if not isinstance(now, Optimizer | LRScheduler):
            raise ValueError(f"{path} is no optimizer and no schedule")
        state = self.value(what, ABSENT, f"{path}.state")
        if isinstance(now, LRScheduler):
            # It takes whatever there is for its attributes.
            _check_attributes(now, state, path)
        now.load_state_dict(state)
        return now

    def _generator(self, what: Json, now: Any, path: str) -> Any:
        kind, told = what
        state = self.value(told, ABSENT, f"{path}.state")
        if isinstance(state, dict):
            for part in (state, state["state"]):
                for name in _MOST_POSITIONS.keys() & part.keys():
                    _check_position(name, part[name])
        if kind == "Random":
            made = random.Random()
            made.setstate(state)
            return made
        if kind == "RandomState":
            legacy = np.random.RandomState()
            legacy.set_state(state)
            return legacy
        if kind == "Generator" and isinstance(state, Tensor):
            return torch.Generator().set_state(state)
        bits = BIT_GENERATORS[state["bit_generator"]]()
        bits.state = state
        return np.random.Generator(bits)

    def _dict(self, what: Json, now: Any, path: str) -> Any:
        kind, told = what
        if kind == "defaultdict" and now is ABSENT:
            raise ValueError(f"{path} is not there")
        there = type(now) is DICTS[kind]
        found = now if there else DICTS[kind]()
        before = dict(now) if there else {}
        found.clear()
        self._made[path] = found
        for number, (key_told, each) in enumerate(told):
            key = self.value(key_told, ABSENT, f"{path}.keys[{number}]")
            found[key] = self.value(each, before.get(key, ABSENT), f"{path}[{key!r}]")
        return found

    def _list(self, told: list[Json], now: Any, path: str) -> list[Any]:
        found = now if type(now) is list else []
        self._made[path] = found
        found[:] = self._items(told, list(found), path)
        return found

    def _deque(self, what: Json, now: Any, path: str) -> deque[Any]:
        most, told = what
        return deque(self._items(told, now, path), most)

    def _items(self, told: list[Json], now: Any, path: str) -> list[Any]:
        before = list(now) if isinstance(now, list | tuple | deque) else []
        before += [ABSENT] * (len(told) - len(before))
        return [
            self.value(each, before[number], f"{path}[{number}]")
            for number, each in enumerate(told)
        ]

    def _sequence(self, what: Json, now: Any, path: str) -> Any:
        return SEQUENCES[what[0]](self._items(what[1], now, path))

    def _enum(self, what: Json, now: Any, path: str) -> Any:
        name, member = what
        return self._class(name, Enum).__members__[member]

    def _named(self, what: Json, now: Any, path: str) -> Any:
        kind = self._class(what[0], tuple)
        items = self._items(what[1], now, path)
        if len(items) != len(kind._fields):
            raise ValueError(f"{path}: {len(items)} fields of a {kind.__name__}")
        return tuple.__new__(kind, items)

    def _object(self, what: Json, now: Any, path: str) -> Any:
        kind = self._class(what[0], object)
        found = now if type(now) is kind else object.__new__(kind)
        if not is_plain(found):
            raise ValueError(f"{path}: a {kind.__name__} is made by its class alone")
        self._made[path] = found
        for name in vars(found).keys() - what[1].keys():
            del vars(found)[name]
        self._attributes(found, what[1], path)
        return found

    def _attributes(self, owner: Any, told: Mapping[str, Json], path: str) -> None:
        _check_attributes(owner, told, path)
        for name, each in told.items():
            now = vars(owner).get(name, ABSENT)
            vars(owner)[name] = self.value(each, now, f"{path}.{name}")

    def _class(self, name: str, base: type) -> Any:
        kind = self._of.classes.get(name)
        if kind is None or not issubclass(kind, base):
            raise ValueError(f"{name} is no class that a state of a {self._of.kind} may name")
        return kind


def _check_attributes(owner: object, names: Iterable[str], path: str) -> None:
    """ValueError where one would hide what the owner has of its class."""
    for name in names:
        by_class = inspect.getattr_static(type(owner), name, None)
        if name not in vars(owner) and (callable(by_class) or hasattr(by_class, "__get__")):
            raise ValueError(f"{path}.{name} is its class's")


def _check_position(name: str, value: object) -> None:
    """ValueError where a generator would read beyond its numbers."""
    if type(value) is not int or not 0 <= value <= _MOST_POSITIONS[name]:
        raise ValueError(f"{name} = {value!r} of a generator's state")


_KINDS = {
    kind: getattr(Restore, f"_{kind}")
    for kind in (
        *("options", "constant", "weight", "shape", "tensor", "array", "module", "state"),
        *("generator", "dict", "deque", "sequence", "enum", "named", "object"),
    )
}
"""Not whatever method a file names."""
