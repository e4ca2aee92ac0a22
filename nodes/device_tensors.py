"""Tensors of a method on its node's accelerator, by code that names no device.

A method's code makes tensors and draws random numbers as on a CPU. Within this mode what it makes
without naming a device is on the node's, and what it draws is drawn on the CPU, from the generator
that it names or torch's own, and then moved: so a run draws the same numbers on every device.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_any, tree_map

import methods

Value = TypeVar("Value")

_DRAWN = {
    *(torch.rand, torch.randn, torch.randint, torch.randperm, torch.normal),
    *(torch.bernoulli, torch.multinomial, torch.poisson),
    *(torch.rand_like, torch.randn_like, torch.randint_like),
    *(Tensor.bernoulli, Tensor.multinomial),
}
_DRAWN_IN_PLACE = {
    *(Tensor.uniform_, Tensor.normal_, Tensor.random_, Tensor.bernoulli_, Tensor.exponential_),
    *(Tensor.cauchy_, Tensor.geometric_, Tensor.log_normal_),
}
_MADE = {
    *(torch.empty, torch.zeros, torch.ones, torch.full, torch.eye, torch.arange, torch.linspace),
    *(torch.logspace, torch.tril_indices, torch.triu_indices, torch.empty_strided),
}
_MADE_ON_HOST = {torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor}
"""Not from_numpy, which torch lets nobody else do."""
_READ_ON_HOST: set[Any] = {Tensor.numpy, Tensor.__array__}


_thread = threading.local()
"""``at_rest``: within ``on_host``."""


@contextlib.contextmanager
def on_host() -> Iterator[None]:
    """Within, this thread makes tensors where they would be without a mode."""
    before, _thread.at_rest = getattr(_thread, "at_rest", False), True
    try:
        yield
    finally:
        _thread.at_rest = before


class DeviceTensors(TorchFunctionMode):
    """Mode in which a method's tensors are on ``device``."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def moved(self, value: Value) -> Value:
        """The same with its tensors on the device, but those without values."""
        return moved(value, self.device)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _READ_ON_HOST:
            return func(args[0].cpu(), *args[1:], **kwargs)
        if func in _DRAWN_IN_PLACE:
            return self._drawn_in_place(func, args, kwargs)
        made = func in _MADE or func in _MADE_ON_HOST or func in _DRAWN
        # The frame is that of who called torch, for it is torch's own C code that calls this.
        if not made or kwargs.get("device") is not None or not self._is_method(sys._getframe(1)):
            return func(*args, **kwargs)
        if func in _MADE:
            return func(*args, **{**kwargs, "device": self.device})
        if func in _DRAWN:
            args, kwargs = _on_host(args), _on_host(dict(kwargs))
        return self.moved(func(*args, **kwargs))

    def _drawn_in_place(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        into = args[0]
        if into.device.type != self.device.type:
            return func(*args, **kwargs)
        drawn = torch.empty(into.shape, dtype=into.dtype)
        return into.copy_(func(drawn, *_on_host(args[1:]), **_on_host(dict(kwargs))))

    def _is_method(self, frame: Any) -> bool:
        """Whether a method's code runs there, and not a node's own, which works on the host."""
        if getattr(_thread, "at_rest", False):
            return False
        return f"{frame.f_globals.get('__name__')}.".startswith(f"{methods.__name__}.")


def moved(value: Value, device: torch.device | str) -> Value:
    """``value``, a tensor or containers of such, with its tensors on ``device``.

    Those that have no values stay, and so does what holds no tensor.
    """

    def there(each: Any) -> Any:
        if isinstance(each, Tensor) and not each.is_meta and each.device != torch.device(device):
            return each.to(device)
        return each

    found: Value = tree_map(there, value)
    return found


def _on_host(value: Value) -> Value:
    if not tree_any(lambda each: isinstance(each, Tensor), value):
        return value
    return moved(value, "cpu")
