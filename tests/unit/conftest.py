"""What all unit tests have in common."""

import sys

import pytest


@pytest.fixture(scope="session", autouse=True)
def torch_as_in_a_node() -> None:
    """One thread, since such as wait for each other on busy cores take long, and no compiler."""
    # Where no test that was collected has torch, importing it would only take time.
    if torch := sys.modules.get("torch"):
        from nodes.optimizers import without_compiler

        torch.set_num_threads(1)
        without_compiler()
        if not torch.accelerator.is_available():
            # For each kind of device that is not here torch's own keeps all frames of who called.
            torch.manual_seed = torch.default_generator.manual_seed
