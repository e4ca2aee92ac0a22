"""A device that is not there: torch's own place for backends, its values on the CPU.

Tensors on it have values and take part in training, and, as on a GPU, none works beside a tensor
that is on the CPU, but as an index, as a number, or to be copied.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "standin"
_MIXES = {"aten::copy_", "aten::_to_copy", "aten::index", "aten::index_put", "aten::index_put_"}
_library: Any = None


def device() -> torch.device:
    """The device, which the process has from the first call on."""
    global _library
    if _library is None:
        _setup_privateuseone_for_python_backend(NAME)
        _library = torch.library.Library("_", "IMPL")
        _library.fallback(_call, "PrivateUse1")
    return torch.device(NAME, 0)


class There(Tensor):
    """A tensor of the device."""

    on_host: Tensor

    @staticmethod
    def __new__(cls, on_host: Tensor) -> "There":
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined,no-any-return]
            cls,
            on_host.shape,
            strides=on_host.stride(),
            dtype=on_host.dtype,
            device=f"{NAME}:0",
        )

    def __init__(self, on_host: Tensor) -> None:
        self.on_host = on_host

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # Torch's C++ does these with no subclass in mind.
        if func is Tensor.tolist:
            return args[0].on_host.tolist()
        if func is Tensor.__setitem__ and not args[0].requires_grad:
            return func(*_map(_held, args))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _call(func, *args, **(kwargs or {}))


def _call(func: Any, *args: Any, **kwargs: Any) -> Any:
    name = func._schema.name
    tensors = list(_tensors((args, tuple(kwargs.values()))))
    there = any(isinstance(each, There) for each in tensors)
    generator = kwargs.get("generator")
    if there and name not in _MIXES:
        others = [each for each in tensors if not isinstance(each, There) and each.dim()]
        if others:
            raise RuntimeError(f"{name}: Expected all tensors to be on the same device")
    asked = kwargs.get("device")
    if asked is not None:
        there = torch.device(asked).type == NAME
        kwargs["device"] = "cpu" if there else asked
    if generator is not None and there:
        raise RuntimeError(f"{name}: Expected a '{NAME}' device type for generator")
    found = func(*_map(_held, args), **{key: _map(_held, each) for key, each in kwargs.items()})
    if name.endswith("_"):
        return args[0]
    return _map(_wrapped, found) if there else found


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


def _map(function: Any, value: Any) -> Any:
    """What the function gives of tensors, in lists and tuples too; torch's tree_map is slow."""
    if isinstance(value, list | tuple):
        return type(value)([_map(function, each) for each in value])
    return function(value) if isinstance(value, Tensor) else value


def _held(tensor: Tensor) -> Tensor:
    return tensor.on_host if isinstance(tensor, There) else tensor


def _wrapped(tensor: Tensor) -> Tensor:
    return tensor if isinstance(tensor, There) else There(tensor)
