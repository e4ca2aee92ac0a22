"""Common seed: one number that all nodes of a run have, so that what they draw alike is not sent.

A node's own seed differs from every other's.
"""

import torch
from torch import nn

NAME = "common_seed"


def planted(model: nn.Module) -> nn.Module:
    """The model with the seed as a buffer: for ``adapt``, which comes before nodes part.

    It is drawn from torch's own generator, which the run's seed has seeded then.
    """
    model.register_buffer(NAME, torch.randint((1 << 63) - 1, (1,)), persistent=False)
    return model


def common_seed(model: nn.Module) -> int:
    """The seed of a planted model; below 2^63."""
    return int(model.get_buffer(NAME))
