"""Messages as a transport hands them over."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from testbed.transport.wire import Header, Message

LIKE = {"w": torch.zeros(2, 3), "b": torch.zeros(3)}


def made(
    sender: str, kind: str, number: int, tensors: Mapping[str, Tensor] = LIKE, **details: Any
) -> Message:
    """A message as a transport hands it over."""
    return Message(sender, Header(kind, number, 0, details), dict(tensors), 0, 99)
