"""Talks over real sockets on this machine: what was reported of them, and waits with a limit."""

import asyncio
import socket
from collections.abc import Awaitable
from typing import Any, TypeVar

from made_events import told

from testbed.record.events import Event

HOST = "127.0.0.1"
LIMIT_S = 20
"""Long enough for any machine; nothing waits it out where the code works."""

Result = TypeVar("Result")


class Reports:
    """What a transport reported, and a way to wait for it inside the same event loop."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self._news = asyncio.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(told(event))
        self._news.set()

    def all(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]

    async def next(self, kind: str) -> dict[str, Any]:
        while not self.all(kind):
            self._news.clear()
            await soon(self._news.wait())
        return self.all(kind)[0]


async def soon(awaitable: Awaitable[Result]) -> Result:
    return await asyncio.wait_for(awaitable, LIMIT_S)


def free_port() -> int:
    with socket.create_server((HOST, 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
