"""Floating-point operations, by torch's formulae for the operators that are really called.

Two a multiplication with addition, as torch.utils.flop_counter counts: matrix products,
convolutions and attention, not what works element by element. Attention counts as its two matrix
products, whichever kernel computes it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils.flop_counter import flop_registry

from methods.shared import attention


class Counter(TorchDispatchMode):
    """A FlopCounterMode without the compiler that its first use imports: 100 MB."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops: int = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # A mode that is to be hidden from the compiler imports the compiler.
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func.overloadpacket)
        if formula is None:
            if _composite(func):
                # In inference mode what is made of other operators comes whole.
                with self:
                    return func.decompose(*args, **kwargs)
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        self.flops += formula(*args, **kwargs, out_val=out)
        return out


@cache
def _composite(func: Any) -> bool:
    """Whether an operator is made of others, which ``decompose`` calls."""
    return bool(func._can_decompose())


def each_size(batches: Sequence[Tensor]) -> Iterator[Tensor]:
    """The first batch of each size, to be worked on by a model without values.

    What it costs is counted for all batches of its size.
    """
    counter = _get_current_dispatch_mode()
    sizes = [len(batch) for batch in batches]
    for size in sorted(set(sizes), reverse=True):
        before = counter.flops if isinstance(counter, Counter) else 0
        yield batches[sizes.index(size)]
        if isinstance(counter, Counter):
            counter.flops += (sizes.count(size) - 1) * (counter.flops - before)


def of_round(found: float | Sequence[float], number: int) -> float:
    """Operations in a round, from 1: of each, or of those told, where the last repeats."""
    return found[min(number, len(found)) - 1] if isinstance(found, Sequence) else found


def forward(run: Callable[[Tensor], Tensor], example: Tensor) -> int:
    """Operations of ``run(example)``; of one sample, where the example is a batch of one."""
    with torch.no_grad(), attention.ByProducts(), (counter := Counter()):
        run(example)
    return counter.flops


def step(
    run: Callable[[Tensor], Tensor],
    example: Tensor,
    *trained: nn.Module,
    input_gradient: bool = False,
) -> int:
    """Operations of ``run(example)`` and of the gradients of ``trained``'s trainable parameters.

    ``input_gradient``: that of the example too, which split training passes on. No parameter's
    ``grad`` is touched, and what an optimizer does is element by element.
    """
    example = example.detach().requires_grad_(input_gradient)
    wanted: list[Tensor] = [p for part in trained for p in part.parameters() if p.requires_grad]
    if input_gradient:
        wanted.append(example)
    if not wanted:
        return forward(run, example)
    with attention.ByProducts(), (counter := Counter()):
        torch.autograd.grad(run(example).sum(), wanted, allow_unused=True)
    return counter.flops
