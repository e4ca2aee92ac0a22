"""Order in which a server-side model works on clients' batches."""

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Protocol


class Order(Protocol):
    def turn(self, client: str) -> AbstractAsyncContextManager[object]:
        """Wait for the client's next turn, and hold it for the length of one batch."""

    def leave(self, client: str) -> None:
        """Wait for this client no longer; it holds no turn."""


class AtOnce:
    """Nobody waits: every client has a server-side model of its own, or one that stays as it is."""

    def turn(self, client: str) -> AbstractAsyncContextManager[object]:
        return nullcontext()

    def leave(self, client: str) -> None:
        pass


class Arrival:
    """First come, first served; results depend on the times of arrival."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    def turn(self, client: str) -> AbstractAsyncContextManager[object]:
        return self._lock

    def leave(self, client: str) -> None:
        pass


class Drawn:
    """An order of all batches drawn before any arrives, so that arrival does not show in results.

    Each client has one turn a step for as many steps as it has batches; within a step they come in
    an order of their own. A batch that is there waits for those before it.
    """

    def __init__(self, batches: Mapping[str, int], seed: int) -> None:
        """``batches``: how many each client has."""
        draw = random.Random(seed)
        self._order: deque[str] = deque()
        for step in range(max(batches.values(), default=0)):
            having = sorted(client for client, count in batches.items() if count > step)
            self._order.extend(draw.sample(having, len(having)))
        self._called = {client: asyncio.Event() for client in batches}
        self._call()

    @asynccontextmanager
    async def turn(self, client: str) -> AsyncIterator[None]:
        await self._called[client].wait()
        try:
            yield
        finally:
            self._called[client].clear()
            self._order.popleft()
            self._call()

    def leave(self, client: str) -> None:
        self._called[client].clear()
        self._order = deque(other for other in self._order if other != client)
        self._call()

    def _call(self) -> None:
        if self._order:
            self._called[self._order[0]].set()
