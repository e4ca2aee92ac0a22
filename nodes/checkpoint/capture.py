"""Capture of an object: its tensors by name, and all else as JSON."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from nodes.checkpoint.kinds import (
    ABSENT,
    DEVICE,
    DEVICE_RANDOM,
    DICTS,
    OWN_OF_MODULES,
    RANDOM,
    SCALARS,
    SEQUENCES,
    Json,
    Unkept,
    address,
    global_states,
    is_constant,
    is_plain,
    is_same,
    name_of,
    state_of,
)

if TYPE_CHECKING:
    from nodes.checkpoint import Snapshot


class Capture:
    def __init__(self, of: Snapshot, at_first: bool = False) -> None:
        self._of = of
        self._at_first = at_first
        self._tensors: dict[str, Tensor] = {}
        self._names = {id(tensor): name for name, tensor in of.weights.items()}
        self._met: dict[int, tuple[str, object]] = {}
        """Where a value stands; held here, so that no other gets its id."""
        # Not by their storages: to ask a tensor for that writes to memory that processes share.
        self._memory = {tensor.data_ptr(): name for name, tensor in of.weights.items()}
        """Whose the memory that begins at an address is."""

    def all(self) -> tuple[dict[str, Tensor], Json]:
        of = self._of
        present = {id(tensor) for _, tensor in of._named()}
        if new := present - self._names.keys():
            raise Unkept(f"{of.kind}: {len(new)} parameters or buffers are not those of __init__")
        kept, flags = [], {}
        for name, tensor in of.weights.items():
            version, required = of.at_first[name]
            if tensor.requires_grad != required:
                flags[name] = tensor.requires_grad
            lasts = tensor.requires_grad or not isinstance(tensor, nn.Parameter)
            overwritten = tensor.requires_grad and id(tensor) in of.received
            if (lasts or tensor._version != version) and not (overwritten or tensor.is_meta):
                kept.append(name)
                self._tensors[name] = tensor
        root = self.value(of.root, "")
        self._tensors[RANDOM] = torch.get_rng_state()
        if torch.cuda.is_initialized():
            self._tensors[DEVICE_RANDOM] = torch.cuda.get_rng_state()
        # Who never draws from them spares its states 13 KB.
        drawn = {name: s for name, s in global_states().items() if hash(str(s)) != of.undrawn[name]}
        return self._tensors, {
            "weights": kept,
            "requires_grad": flags,
            "root": root,
            "drawn": drawn,
        }

    def value(self, value: Any, path: str) -> Json:
        of = self._of
        if type(value) in SCALARS:
            return value
        if value is of.options:
            return {"options": None}
        if id(value) in self._names:
            return {"weight": self._names[id(value)]}
        if id(value) in self._met:
            return {"same": self._met[id(value)][0]}
        if is_constant(value) or (isinstance(value, Tensor) and address(value) in of.data):
            return self._constant(value, path)
        self._met[id(value)] = path, value
        if isinstance(value, Tensor):
            return self._tensor(value, path)
        if isinstance(value, nn.Module):
            return self._module(value, path)
        if isinstance(value, Optimizer | LRScheduler):
            self._check_there(value, path)
            return {"state": self.value(value.state_dict(), f"{path}.state")}
        if isinstance(value, torch.Generator | np.random.Generator | np.random.RandomState):
            state = state_of(value)
            return {"generator": [type(value).__name__, self.value(state, f"{path}.state")]}
        if isinstance(value, random.Random):
            return {"generator": ["Random", self.value(value.getstate(), f"{path}.state")]}
        if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
            data = torch.from_numpy(np.frombuffer(value.tobytes(), np.uint8).copy())
            self._tensors[path] = data
            return {"array": [path, value.dtype.str, list(value.shape)]}
        return self._container(value, path)

    def _container(self, value: Any, path: str) -> Json:
        kind = type(value)
        if kind.__name__ in DICTS and kind is DICTS[kind.__name__]:
            pairs = [
                [self.value(key, f"{path}.keys[{number}]"), self.value(each, f"{path}[{key!r}]")]
                for number, (key, each) in enumerate(value.items())
            ]
            return {"dict": [kind.__name__, pairs]}
        if kind is deque:
            return {"deque": [value.maxlen, self._items(value, path)]}
        if kind is list:
            return self._items(value, path)
        if kind.__name__ in SEQUENCES and kind is SEQUENCES[kind.__name__]:
            # A set's order is not the same in another process.
            ordered = sorted(value, key=repr) if issubclass(kind, set | frozenset) else value
            return {"sequence": [kind.__name__, self._items(ordered, path)]}
        if self._at_first and (self._of.is_ours(value) or isinstance(value, Enum)):
            self._of.classes[name_of(kind)] = kind
        if self._of.classes.get(name_of(kind)) is kind:
            if isinstance(value, Enum):
                return {"enum": [name_of(kind), value.name]}
            if isinstance(value, tuple) and hasattr(value, "_fields"):
                return {"named": [name_of(kind), self._items(value, path)]}
            if is_plain(value):
                fields = {n: self.value(each, f"{path}.{n}") for n, each in vars(value).items()}
                return {"object": [name_of(kind), fields]}
        raise Unkept(
            f"{self._of.kind}{path}: a {kind.__module__}.{kind.__qualname__} cannot be kept for a "
            "run to go on with; make it anew in each round, hold its state in tensors, numbers and "
            "containers of them, or launch with --no-checkpoints"
        )

    def _items(self, values: Iterable[Any], path: str) -> list[Json]:
        return [self.value(each, f"{path}[{number}]") for number, each in enumerate(values)]

    def _constant(self, value: Any, path: str) -> Json:
        if self._at_first:
            self._of.constants[path] = value
        elif not is_same(self._of.constants.get(path, ABSENT), value):
            raise Unkept(
                f"{self._of.kind}{path}: a {type(value).__qualname__} that is not the one of "
                "__init__ cannot be kept for a run to go on with"
            )
        return {"constant": None}

    def _tensor(self, tensor: Tensor, path: str) -> Json:
        if tensor.is_meta:
            return {"shape": [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]}
        place = address(tensor)
        owner = path
        if place is not None and tensor.numel():
            owner = self._memory.setdefault(place, path)
        if owner != path:
            raise Unkept(f"{self._of.kind}{path}: shares memory with {owner}; keep a clone")
        self._tensors[path] = tensor
        # Where it is written it is on the CPU.
        there = [] if tensor.device.type == "cpu" else [DEVICE]
        return {"tensor": [path, tensor.requires_grad, *there]}

    def _module(self, module: nn.Module, path: str) -> Json:
        self._check_there(module, path)
        parts = list(module.named_modules())
        training = [name for name, each in parts if each.training]
        modes: Json = training
        if len(training) in (0, len(parts)):
            modes = bool(training)
        fields = {}
        for name, each in parts:
            own = vars(each).keys() - OWN_OF_MODULES if self._of.is_ours(each) else ()
            where = f"{path}.{name}" if name else path
            told = {n: self.value(getattr(each, n), f"{where}.{n}") for n in sorted(own)}
            if told:
                fields[name] = told
        return {"module": [modes, fields]}

    def _check_there(self, value: object, path: str) -> None:
        if id(value) not in self._of.stateful:
            raise Unkept(
                f"{self._of.kind}{path}: a {type(value).__qualname__} that __init__ did not make "
                "cannot be kept for a run to go on with"
            )
