"""Rounds whose mean the clients take among themselves, in place of the server.

The server conducts and gets no weights. A round:

1. ``begin``: which model counts by now. A client that has it trains, and says ``trained``.
2. ``order``: an all-reduce of all who did. Members of a new group each send their ``address`` and
   get all ``addresses``. A member gives n_k w_k and n_k; one that missed a round, and so has
   nothing to give, gives zeros and takes part for the model's sake. Each says ``reduced``.
3. Where every member has the sum, an ``order`` to adopt it. Else from 2 again with those left;
   where nothing comes of that, the model stays.

All begin with the model that they were forked with. One client evaluates, the first that can.
"""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn

from methods import Fleet
from testbed.transport.wire import Message

BEGIN = "begin"
TRAINED = "trained"
ORDER = "order"
ADDRESS = "address"
ADDRESSES = "addresses"
REDUCED = "reduced"

FIRST_MODEL = "0"
"""The name of the one that all begin with; others are named by the attempt that they came of."""


class AveragingServer(Protocol):
    """An averaging method's Server, as far as an all-reduce stands in for its mean."""

    model: nn.Module

    def take(self, update: Message, fleet: Fleet) -> bool: ...

    def metrics(self) -> dict[str, float]: ...

    def evaluate(self, inputs: Tensor, targets: Tensor) -> dict[str, float]: ...


class AveragingClient(Protocol):
    """The same of its Client."""

    model: nn.Module

    def update(self, start: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, float]]: ...
