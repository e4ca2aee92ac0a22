"""Kinds of values within a method's objects, and how each is told apart."""

from __future__ import annotations

import functools
import random
import types
from collections import Counter, OrderedDict, defaultdict
from pathlib import PurePath
from typing import Any, cast

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from methods import Shard

Json = Any

SCALARS = (type(None), bool, int, float, str)
CONSTANTS = (
    *(types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, type),
    *(functools.partial, torch.dtype, torch.device, PurePath, Shard),
)
DICTS = {kind.__name__: kind for kind in (dict, Counter, OrderedDict, defaultdict)}
SEQUENCES = {kind.__name__: kind for kind in (tuple, set, frozenset, torch.Size)}
BIT_GENERATORS = {
    kind.__name__: kind
    for kind in (
        *(np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox),
        np.random.SFC64,
    )
}
OWN_OF_MODULES = frozenset(vars(nn.Module()))
"""Attributes that every module has."""
RANDOM = "torch"
"""The state of torch's own generator, which dropout and new adapters draw from; no path is so."""
DEVICE_RANDOM = "cuda"
"""The same of the node's accelerator, where it has one."""
DEVICE = "device"
"""Said of a tensor that was on that."""
ABSENT = object()
_HEAP_TYPE = 1 << 9
"""Py_TPFLAGS_HEAPTYPE: a class that Python code made."""


class Unkept(TypeError):
    """An error: something cannot be kept, or put back; the text names it."""


def address(tensor: Tensor) -> int | None:
    """The address where its memory begins; None where it has none."""
    return None if tensor.is_meta else tensor.untyped_storage().data_ptr() or None


def is_constant(value: object) -> bool:
    if isinstance(value, msgspec.Struct):
        return bool(value.__struct_config__.frozen)
    return isinstance(value, CONSTANTS)


def is_plain(value: object) -> bool:
    """Whether an object is its attributes and no more."""
    kind = type(value)
    if not hasattr(value, "__dict__") or issubclass(kind, msgspec.Struct | nn.Module):
        return False
    # As copyreg: what is within an object of a built-in class is not in its attributes.
    return next(each for each in kind.__mro__ if not each.__flags__ & _HEAP_TYPE) is object


def is_same(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        places = [(t.data_ptr(), t.shape, t.stride(), t.dtype) for t in (one, other)]
        return places[0] == places[1]
    if one is other:
        return True
    return type(one) is type(other) and not isinstance(one, tuple) and one == other


def state_of(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.get_state(legacy=False)


def global_states() -> dict[str, Json]:
    """States of numpy's and Python's generators, which are as they were when a node began anew."""
    kind, words, *rest = cast(tuple[Any, ...], np.random.get_state(legacy=True))
    return {"numpy": [kind, words.tolist(), *rest], "python": random.getstate()}


def name_of(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"
