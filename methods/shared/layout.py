"""Layout of a message: the names, shapes and dtypes of its tensors."""

from collections.abc import Mapping

from torch import Tensor


def difference(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> str | None:
    """The difference of ``tensors`` from ``like`` in names, shapes or dtypes, or None."""
    if tensors.keys() != like.keys():
        odd = sorted(tensors.keys() ^ like.keys())
        return f"tensors differ in {odd[0]!r} and {len(odd) - 1} more names"
    for name, expected in like.items():
        tensor = tensors[name]
        if tensor.shape != expected.shape or tensor.dtype != expected.dtype:
            return (
                f"{name} is {tensor.dtype}{list(tensor.shape)}, "
                f"expected {expected.dtype}{list(expected.shape)}"
            )
    return None


def check(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> None:
    """Raises ValueError where they differ."""
    if (reason := difference(tensors, like)) is not None:
        raise ValueError(reason)
