"""A server in process that says one thing about public images; what a client answers is kept."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


class Told:
    """A client's Peer: the seed, whose round's subset the labels are of, and the labels."""

    def __init__(
        self, number: int, seed: int, labels_of: Any = 0, logits: Tensor | None = None
    ) -> None:
        self.round = number
        self.sent: dict[str, Tensor] = {}
        first = SimpleNamespace(
            tensors={"seed": torch.tensor([seed])}, details={"labels_of": labels_of}
        )
        self._messages = [first]
        if logits is not None:
            self._messages.append(SimpleNamespace(tensors={"logits": logits}, details={}))

    def receive(self, kind: str, like: Mapping[str, Tensor], **_: Any) -> Any:
        assert kind == "logits"
        message = self._messages.pop(0)
        assert message.tensors.keys() == like.keys()
        return message

    def send(self, kind: str, tensors: Mapping[str, Tensor], **_: Any) -> None:
        assert kind == "logits"
        self.sent = dict(tensors)
