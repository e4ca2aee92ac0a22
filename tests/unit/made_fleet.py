"""A fleet of a, b and c over a transport that is made up, its pump running."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any

from made_events import Reported
from made_messages import LIKE, made
from torch import Tensor

from nodes.fleet import Fleet
from nodes.kinds import ABSENT, HELLO
from testbed.transport.sockets import Encoded, Unreachable
from testbed.transport.wire import Message

NAMES = ["a", "b", "c"]
SHORT_S = 0.25
"""A limit that is waited out, long against what a busy machine may take from a test."""
LONG_S = 20.0
"""Nothing waits it out where the code works."""


class FakeServerTransport:
    """In place of a ServerTransport: ``arrive`` says what comes, ``sent`` what went."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, int]] = []
        self.encoded: list[Encoded] = []
        self.details: list[Mapping[str, Any]] = []
        self.unreachable: set[str] = set()
        self.hung_up: list[str] = []
        self._arrivals: asyncio.Queue[Message] = asyncio.Queue()

    def arrive(self, *messages: Message) -> None:
        for message in messages:
            self._arrivals.put_nowait(message)

    async def receive(self) -> Message:
        return await self._arrivals.get()

    async def hang_up(self, clients: Iterable[str]) -> None:
        self.hung_up += clients

    async def send(
        self, peer: str, kind: str, number: int, encoded: Encoded, details: Mapping[str, Any]
    ) -> None:
        await asyncio.sleep(0)
        if peer in self.unreachable:
            raise Unreachable(f"{peer}: no route")
        self.sent.append((peer, kind, number))
        self.encoded.append(encoded)
        self.details.append(details)


class Case:
    """A fleet of a, b and c over a fake transport, its pump running."""

    def __init__(
        self,
        round_timeout_s: float,
        per_round: int | None = None,
        deadline_s: float | None = None,
        peer_to_peer: bool = False,
    ) -> None:
        self.transport = FakeServerTransport()
        self.events = Reported()
        self.fleet = Fleet(
            self.transport,  # type: ignore[arg-type]
            dict.fromkeys(NAMES, 10),
            self.events,
            round_timeout_s,
            per_round,
            deadline_s=deadline_s,
            peer_to_peer=peer_to_peer,
        )

    def hello(self, *names: str) -> None:
        self.transport.arrive(*(made(name, HELLO, 0, {}) for name in names))

    async def joined(self, *names: str) -> None:
        """Let just these join, and begin round 1."""
        self.hello(*names)
        await until(lambda: self.fleet.samples.keys() >= set(names))
        self.fleet.begin(1)

    async def gathered(self, kind: str = "update", like: Mapping[str, Tensor] = LIKE) -> list[str]:
        return [message.sender async for message in self.fleet.gather(kind, like)]

    def told(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Whom the fleet told who is absent."""
        sent = zip(self.transport.sent, self.transport.details, strict=True)
        return [(peer, details) for (peer, kind, _), details in sent if kind == ABSENT]

    def of(self, kind: str) -> list[tuple[Any, ...]]:
        """Who, in which round where that is said, and why."""
        return [
            tuple(event[key] for key in ("peer", "round", "reason") if key in event)
            for event in self.events
            if event["event"] == kind
        ]


async def until(true: Callable[[], bool]) -> None:
    """Let the other tasks run until something is so; nothing here waits for a clock."""
    for _ in range(1000):
        if true():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not come to that")


async def waiting(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Work under way, as far as it gets by itself."""
    task = asyncio.create_task(work)
    for _ in range(20):
        await asyncio.sleep(0)
    return task


def play(
    test: Callable[[Case], Awaitable[None]],
    round_timeout_s: float = LONG_S,
    per_round: int | None = None,
    deadline_s: float | None = None,
    peer_to_peer: bool = False,
) -> Case:
    """Run ``test`` beside the pump; an error in the pump fails it too."""

    async def run() -> Case:
        case = Case(round_timeout_s, per_round, deadline_s, peer_to_peer)
        pump = asyncio.create_task(case.fleet.pump())
        work = asyncio.ensure_future(test(case))
        done, _ = await asyncio.wait(
            {pump, work}, timeout=LONG_S, return_when=asyncio.FIRST_COMPLETED
        )
        pump.cancel()
        work.cancel()
        assert done, "neither ended"
        for task in done:
            await task
        return case

    return asyncio.run(run())
