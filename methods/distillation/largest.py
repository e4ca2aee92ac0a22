"""Largest logits alone: k of them with their places, and one value for all that are left out.

Of V logits x the message has the k largest, their indices, and r = log(mean(exp(x_i))) over the
others, so that a softmax of what is rebuilt gives the k their own probabilities and the others the
rest in equal parts. Nobody learns these parts: a loss is of k + 1 values, the last being the
logarithm of all others' exponentials together, and leaves their shares as they are.

Bytes a prediction: 4 k + 4 + k * (1, 2 or 4), the bytes of the smallest whole number that has place
for V - 1.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from methods.shared.objective import precise

VALUES, PLACES, REST = "logits", "places", "rest"


def places_dtype(width: int) -> torch.dtype:
    """The smallest type that has place for the index of each of ``width`` logits."""
    types = (torch.uint8, torch.int16, torch.int32)
    return next(each for each in types if width - 1 <= torch.iinfo(each).max)


def like(shape: tuple[int, ...], count: int) -> dict[str, Tensor]:
    """Tensors of a message of such logits (..., V), without values."""
    *others, width = shape
    return {
        VALUES: torch.empty(*others, count, device="meta"),
        PLACES: torch.empty(*others, count, dtype=places_dtype(width), device="meta"),
        REST: torch.empty(*others, 1, device="meta"),
    }


def cut(logits: Tensor, count: int) -> dict[str, Tensor]:
    """Tensors to send of logits (..., V), ``count`` < V of them."""
    width = logits.shape[-1]
    values, places = logits.topk(count, dim=-1)
    rest = _others(logits, places) - math.log(width - count)
    return {VALUES: values, PLACES: places.to(places_dtype(width)), REST: rest}


def rebuilt(sent: Mapping[str, Tensor], width: int) -> Tensor:
    """Logits (..., V) that a message stands for."""
    values, places, rest = (sent[name] for name in (VALUES, PLACES, REST))
    return rest.expand(*rest.shape[:-1], width).scatter(-1, places.long(), values)


def loss_of_largest(loss: Callable[[Tensor, Tensor], Tensor], count: int) -> Any:
    """The loss of scores and labels (..., V), all but the ``count`` largest labels taken as one.

    0: of each.
    """

    def found(scores: Tensor, labels: Tensor) -> Tensor:
        places = labels.topk(count, dim=-1).indices
        return loss(*(_as_one(precise(each), places) for each in (scores, labels)))

    return found if count else loss


def _as_one(logits: Tensor, places: Tensor) -> Tensor:
    """Logits at these places, and behind them the logit of all others together."""
    return torch.cat([logits.gather(-1, places), _others(logits, places)], dim=-1)


def _others(logits: Tensor, places: Tensor) -> Tensor:
    return logits.scatter(-1, places, -math.inf).logsumexp(dim=-1, keepdim=True)


def check(sent: Mapping[str, Tensor], width: int) -> None:
    """Raises ValueError where a place is none of ``width``."""
    places = sent[PLACES]
    if not 0 <= int(places.min()) <= int(places.max()) < width:
        raise ValueError(f"a logit at a place outside 0 to {width - 1}")
