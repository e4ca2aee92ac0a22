"""What all unit tests have in common."""

import sys

import pytest


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """As in a node; threads that wait for each other on busy cores take many times as long."""
    # Where no test that was collected has torch, importing it would only take time.
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
