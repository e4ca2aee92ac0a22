"""Matrix products of float32 by oneDNN, where torch would have them made by a slower library.

Torch has two libraries for them and asks MKL, which on processors that are not Intel's leaves half
of their registers empty: on an AMD EPYC a layer of ``llama-docs`` took 2.2 times as long as by
oneDNN. Sums are added up in another order, so results differ in their last bits; runs of images,
whose results are to stay what they were, do without.
"""

import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LEAST_OPERATIONS = 1 << 19
"""Of less, the call from Python takes longer than what it saves."""


@contextmanager
def by_onednn(wanted: bool = True) -> Iterator[None]:
    """Within, this process's products of matrices on its processor are oneDNN's, if ``wanted``.

    Forward and backward; processes that are forked within have them too. Nothing changes where MKL
    is as fast.
    """
    if not (wanted and faster()):
        yield
        return
    # Autograd and the counter of operations see no difference: this is the last that is called.
    library = torch.library.Library("aten", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Warning only once for all operators")
            library.impl("mm", _mm, "CPU", allow_override=True)
            library.impl("addmm", _addmm, "CPU", allow_override=True)
        yield
    finally:
        library._destroy()


def faster() -> bool:
    """Whether oneDNN is there, and MKL leaves half of this processor's registers empty."""
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.mkl.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and _vendor() != "GenuineIntel"
    )


def _vendor() -> str:
    """The processor's maker, as it calls itself; what the system knows, where it tells no more."""
    told = Path("/proc/cpuinfo")
    for line in told.read_text().splitlines() if told.exists() else ():
        name, _, value = line.partition(":")
        if name.strip() == "vendor_id":
            return value.strip()
    return "GenuineIntel" if "Intel" in platform.processor() else ""


def _mm(left: Tensor, right: Tensor) -> Tensor:
    if _suits(left, right):
        return _linear(left, right, None)
    return torch.mm(left, right, out=left.new_empty(left.shape[0], right.shape[1]))


def _addmm(added: Tensor, left: Tensor, right: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    if added.dim() == 1 and beta == alpha == 1 and _suits(left, right, added):
        return _linear(left, right, added)
    out = left.new_empty(left.shape[0], right.shape[1])
    return torch.addmm(added, left, right, beta=beta, alpha=alpha, out=out)


def _suits(left: Tensor, right: Tensor, *others: Tensor) -> bool:
    operations = 2 * left.shape[0] * left.shape[1] * right.shape[1]
    return operations >= LEAST_OPERATIONS and all(
        each.dtype is torch.float32 and each.layout is torch.strided
        for each in (left, right, *others)
    )


def _linear(left: Tensor, right: Tensor, added: Tensor | None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(left, right.t(), added, "none", [], "")
    return found
