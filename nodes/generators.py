"""Generators of a process that a method draws from where it names none of its own."""

import random

import numpy as np
import torch

from testbed.seeds import derive


def seed_all(seed: int, whose: str) -> None:
    """Seed torch's, numpy's and Python's own, for ``whose`` draws in the run of that seed."""
    # Not torch.manual_seed, which also looks for accelerators.
    torch.default_generator.manual_seed(derive(seed, "torch", whose))
    np.random.seed(derive(seed, "numpy", whose) % 2**32)
    random.seed(derive(seed, "python", whose))
