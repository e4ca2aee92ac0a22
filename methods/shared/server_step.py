"""Server step: the mean of a round's updates as a direction to go in, instead of where to go."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn


def stepped(
    model: nn.Module,
    start: Mapping[str, Tensor],
    mean: Mapping[str, Tensor],
    movement: Callable[[str, Tensor], Tensor],
) -> dict[str, Tensor]:
    """The new weights: of a parameter its start and ``movement(name, mean - start)``.

    All of it in float64, so that moving by the whole difference ends at the mean. Buffers are the
    mean's: they are statistics, which have no direction.
    """
    found = dict(mean)
    for name, _ in model.named_parameters():
        if name in found:
            begun = start[name].double()
            found[name] = begun + movement(name, found[name].double() - begun)
    return found
