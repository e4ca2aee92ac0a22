"""Modelled compute: a node counts operations instead of doing them, and waits as a device would.

Real compute on slower devices is in ``stretched``.

The method's own code runs on tensors of torch's meta device: shapes and no values, so that a model
of any size costs neither memory nor work. Operations are counted by torch's formulae as they are
called. Before a node sends or waits for something it lets the time pass that its device takes for
what was counted. What it sends are random numbers of the true shapes; what it receives is real
until it has arrived. Integers, such as labels and seeds, keep their values throughout.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any, ClassVar, Protocol

import msgspec
import torch
from torch import Tensor

from methods.shared import attention, flops
from nodes.spells import Spells
from testbed import clock
from testbed.seeds import derive
from testbed.transport.wire import Message

NOISE_VALUES = 1 << 23
"""Random numbers that all nodes of a run share; more than any weight of a ViT-L/16 has."""


class Compute(Protocol):
    """How a node computes."""

    def active(self) -> AbstractContextManager[None]:
        """Within it the node does all that it does."""

    def outgoing(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Tensors that are sent in place of these."""

    def incoming(self, message: Message) -> Message:
        """The message as the method sees it."""

    def settle(self) -> None:
        """Return when the device would be done with what was computed since last time."""

    async def settled(self) -> None:
        """The same, while others go on."""

    def rest(self) -> None:
        """Discount what was done since last time, such as an evaluation."""

    def woken(self) -> float:
        """Waiting is over; seconds that the device will now compute for at least, if known."""

    def facts(self) -> dict[str, Any]:
        """Facts for the node's "computed" event, since the last time; empty: none was measured."""


class Real:
    """The node's tensors have values, and what it computes takes what it takes: for tests."""

    def active(self) -> AbstractContextManager[None]:
        return nullcontext()

    def outgoing(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return tensors

    def incoming(self, message: Message) -> Message:
        return message

    def settle(self) -> None:
        pass

    async def settled(self) -> None:
        pass

    def rest(self) -> None:
        pass

    def woken(self) -> float:
        return 0.0

    def facts(self) -> dict[str, Any]:
        return {}


class Modelled:
    """One device, which does one thing after the other."""

    def __init__(
        self, flops_per_s: float, noise: Tensor, now: Callable[[], float] = clock.monotonic
    ) -> None:
        """``noise``: float32 (any,), what messages are filled with."""
        self._rate = flops_per_s
        self._noise = noise
        self._clock = now
        self._counter = _Shapes(now)
        self._busy_until = 0.0
        self._flops = 0
        self._late_s = 0.0
        self._spells = Spells()

    @contextmanager
    def active(self) -> Iterator[None]:
        with attention.ByProducts(), self._counter:
            yield

    def outgoing(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {name: self._filled(tensor) for name, tensor in tensors.items()}

    def incoming(self, message: Message) -> Message:
        return msgspec.structs.replace(
            message,
            tensors={
                name: tensor.to("meta") if tensor.is_floating_point() else tensor
                for name, tensor in message.tensors.items()
            },
        )

    def settle(self) -> None:
        if (left_s := self._left_s()) > 0:
            with self._spells.settling():
                clock.sleep(left_s)

    async def settled(self) -> None:
        if (left_s := self._left_s()) > 0:
            await asyncio.sleep(left_s)

    def rest(self) -> None:
        self._counter.take()

    def woken(self) -> float:
        return self._spells.begin()

    def facts(self) -> dict[str, Any]:
        found = {
            "flops": self._flops,
            "modelled_s": round(self._flops / self._rate, 6),
            "late_s": round(self._late_s, 6),
        }
        self._flops, self._late_s = 0, 0.0
        return found

    def _left_s(self) -> float:
        """Charge the device with what was counted; seconds until it is done with that."""
        count, began = self._counter.take()
        if not count:
            return 0.0
        now = self._clock()
        self._flops += count
        self._busy_until = max(self._busy_until, began) + count / self._rate
        self._spells.add(count / self._rate)
        self._late_s += max(0.0, now - self._busy_until)
        return self._busy_until - now

    def _filled(self, tensor: Tensor) -> Tensor:
        """Random numbers, or zeros for integers, in the shape of a tensor without values."""
        if not tensor.is_meta:
            return tensor
        if not tensor.is_floating_point():
            return torch.zeros(tensor.shape, dtype=tensor.dtype)
        if tensor.numel() > len(self._noise):
            self._noise = self._noise.repeat(-(-tensor.numel() // len(self._noise)))
        return self._noise[: tensor.numel()].view(tensor.shape).to(tensor.dtype)


_EQUAL = torch.ops.aten.equal.default
_READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default, _EQUAL}
"""What asks for values; ``item`` is seen in inference mode alone."""


class _Shapes(flops.Counter):
    """Lets code that was written for tensors with values run on such without."""

    _known: ClassVar[dict[Any, tuple[int, bool, list[Any]]]] = {}
    """Of a call with such arguments: its operations, and results' layouts; for all of a process."""

    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__()
        self._clock = now
        self._began: float | None = None

    def take(self) -> tuple[int, float]:
        """Operations since the last time, and when the first call came."""
        count, began = self.flops, self._began
        self.flops, self._began = 0, None
        return count, self._clock() if began is None else began

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if self._began is None:
            self._began = self._clock()
        tensors = [each for each in args if isinstance(each, Tensor)]
        if any(each.is_meta for each in tensors):
            if func in _READS:
                # A check, such as for finite values, has passed; a number is none in particular.
                return func is _EQUAL or args[0].dtype is torch.bool
            if not all(each.is_meta for each in tensors):
                args = tuple(map(_without_values, args))
            if _changes(func):
                return args[0]
            if not func.is_view:
                return self._remembered(func, args, kwargs or {})
        elif _is_update(func, args):
            return None
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _remembered(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The result of a call, by that of the last one with such arguments.

        Most kernels of the meta device are Python, and take a hundred times as long.
        """
        try:
            key = (func, *map(_described, args), *map(_described, kwargs.items()))
            known = self._known.get(key)
        except TypeError:
            return super().__torch_dispatch__(func, (), args, kwargs)
        if known is None:
            before = self.flops
            out = super().__torch_dispatch__(func, (), args, kwargs)
            tensors = out if isinstance(out, tuple) else (out,)
            if all(isinstance(each, Tensor) and each.is_meta for each in tensors):
                layouts = [(each.shape, each.stride(), each.dtype) for each in tensors]
                self._known[key] = (self.flops - before, isinstance(out, tuple), layouts)
            return out
        count, several, layouts = known
        self.flops += count
        found = tuple(
            torch.empty_strided(shape, stride, dtype=dtype, device="meta")
            for shape, stride, dtype in layouts
        )
        return found if several else found[0]


def _without_values(argument: Any) -> Any:
    """An argument as a kernel of the meta device takes it, which refuses labels with values."""
    if isinstance(argument, Tensor) and argument.is_cpu and argument.dim():
        return argument.to("meta")
    return argument


@cache
def _changes(func: Any) -> bool:
    """Whether an operator gives its first argument new values, and no new shape."""
    in_place: bool = func._schema.name.endswith("_")
    return in_place and torch.Tag.inplace_view not in func.tags


def _is_update(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether this is an optimizer's update of many tensors at once, which have no values."""
    name = func._schema.name
    if not (name.startswith("aten::_foreach_") and name.endswith("_")):
        return False
    return bool(args[0]) and args[0][0].is_meta


def _described(argument: Any) -> Any:
    """The facts of an argument that decide on a result's shape. TypeError where none are told."""
    if isinstance(argument, Tensor):
        if not argument.is_meta and argument.dim():
            raise TypeError
        return argument.shape, argument.stride(), argument.dtype
    if isinstance(argument, list | tuple):
        return tuple(map(_described, argument))
    hash(argument)
    return argument


def noise(seed: int) -> Tensor:
    """Values that all modelled nodes of a run send: float32 (NOISE_VALUES,), uniform in -1 to 1."""
    generator = torch.Generator().manual_seed(derive(seed, "modelled tensors"))
    return torch.empty(NOISE_VALUES).uniform_(-1, 1, generator=generator)
