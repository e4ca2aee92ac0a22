"""Largest logits alone: k of them with their places, and one value for all that are left out.

Of V logits x the message has the k largest, their indices, and r = log(mean(exp(x_i))) over the
others, so that a softmax of what is rebuilt gives the k their own probabilities and the others the
rest in equal parts. Bytes a prediction: 4 k + 4 + k * (1, 2 or 4), the bytes of the smallest whole
number that has place for V - 1.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

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
    left = logits.scatter(-1, places, -math.inf)
    rest = left.logsumexp(dim=-1, keepdim=True) - math.log(width - count)
    return {VALUES: values, PLACES: places.to(places_dtype(width)), REST: rest}


def rebuilt(sent: Mapping[str, Tensor], width: int) -> Tensor:
    """Logits (..., V) that a message stands for."""
    values, places, rest = (sent[name] for name in (VALUES, PLACES, REST))
    return rest.expand(*rest.shape[:-1], width).scatter(-1, places.long(), values)


def check(sent: Mapping[str, Tensor], width: int) -> None:
    """Raises ValueError where a place is none of ``width``."""
    places = sent[PLACES]
    if not 0 <= int(places.min()) <= int(places.max()) < width:
        raise ValueError(f"a logit at a place outside 0 to {width - 1}")
