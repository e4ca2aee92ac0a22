"""The server's side of the method contract: clients by name, with limits on every wait."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Mapping

from torch import Tensor

from methods import Missed
from nodes.checks import difference
from nodes.compute import Compute, Real
from testbed.transport import Report, ServerTransport, Unreachable
from testbed.wire import Detail, Message, encode_tensors

HELLO = "hello"
WELCOME = "welcome"
STOP = "stop"
METRICS = "metrics"

_Inbox = asyncio.Queue[Message | Missed]


class Fleet:
    """See ``methods.Fleet``. Every lost update is reported with its reason."""

    def __init__(
        self,
        transport: ServerTransport,
        names: list[str],
        report: Report,
        round_timeout_s: float,
        per_round: int | None = None,
        seed: int = 0,
        compute: Compute | None = None,
    ) -> None:
        """``per_round``: how many clients a round takes, drawn from ``seed``; None: all."""
        self._transport = transport
        self._compute = compute or Real()
        self._report = report
        self._expected = len(names) if per_round is None else per_round
        self._seed = seed
        self._round_timeout_s = round_timeout_s
        self._deadline_s = 0.0
        self._inboxes: dict[str, _Inbox] = {name: asyncio.Queue() for name in names}
        self._gone: dict[str, str] = {}
        self._present: tuple[str, ...] = ()
        self._missed: set[str] = set()
        self._all_joined = asyncio.Event()
        self.round = 0
        self.samples: dict[str, int] = {}

    @property
    def clients(self) -> tuple[str, ...]:
        """Those chosen of who was there when the round began; who joins later waits."""
        return tuple(name for name in self._present if name not in self._gone)

    @property
    def joined(self) -> int:
        return len(self._joined())

    @property
    def failed(self) -> int:
        """How many fewer clients did their part of the present round than the run asks for."""
        done = [name for name in self.clients if name not in self._missed]
        return self._expected - len(done)

    @property
    def succeeded(self) -> int:
        """Clients that did their part of the present round."""
        return self._expected - self.failed

    async def pump(self) -> None:
        """Sort what arrives into the clients' inboxes; runs until cancelled."""
        while True:
            message = await self._transport.receive()
            if message.kind != HELLO:
                self._inboxes[message.sender].put_nowait(message)
                continue
            samples = message.details.get("samples")
            if not isinstance(samples, int) or samples < 1:
                self._drop(message, f"hello with samples = {samples!r}")
                continue
            try:
                await self._transport.send(message.sender, WELCOME, 0, ([], []), {})
            except Unreachable as error:
                self._drop(message, str(error))
                continue
            # A client may say hello twice: its first may have been lost with a connection.
            self.samples.setdefault(message.sender, samples)
            self._check_joined()

    async def join(self, timeout_s: float) -> None:
        """Wait until every client that still runs has said hello, or ``timeout_s`` is over.

        Raises:
            Missed: none came at all.
        """
        try:
            await asyncio.wait_for(self._all_joined.wait(), timeout_s)
        except TimeoutError:
            for name in self._inboxes.keys() - self.samples.keys():
                self._miss(name, f"did not connect within {timeout_s:g} s")
        if not self._joined():
            raise Missed(f"no client connected within {timeout_s:g} s")

    def lose(self, client: str, reason: str) -> None:
        """``client`` is gone for good: whoever waits for it is told."""
        self._gone.setdefault(client, reason)
        self._inboxes[client].put_nowait(Missed(reason))
        self._check_joined()

    def begin(self, number: int) -> None:
        """Choose a round's clients and start its clock."""
        self.round = number
        self._present = self._choose()
        self._missed = set()
        self._deadline_s = time.monotonic() + self._round_timeout_s

    async def send(
        self, client: str, kind: str, tensors: Mapping[str, Tensor], **details: Detail
    ) -> None:
        await self._compute.settled()
        encoded = encode_tensors(self._compute.outgoing(tensors))
        try:
            await self._transport.send(client, kind, self.round, encoded, details)
        except Unreachable as error:
            raise self._miss(client, str(error)) from error

    async def broadcast(self, kind: str, tensors: Mapping[str, Tensor], **details: Detail) -> None:
        await self._compute.settled()
        encoded = encode_tensors(self._compute.outgoing(tensors))
        for client in self.clients:
            try:
                await self._transport.send(client, kind, self.round, encoded, details)
            except Unreachable as error:
                self._miss(client, str(error))

    async def receive(
        self, client: str, kind: str, like: Mapping[str, Tensor] | None = None
    ) -> Message:
        await self._compute.settled()
        while True:
            message = await self._next(client)
            reason = self._objection(message, kind)
            if reason is None:
                break
            self._drop(message, reason)
        reason = None if like is None else difference(message.tensors, like)
        if reason is not None:
            # It is the client's answer, and no better one will come: do not wait out the limit.
            self._drop(message, reason)
            raise self.refuse(client, reason)
        return self._compute.incoming(message)

    def refuse(self, client: str, reason: str) -> Missed:
        return self._miss(client, f"its update was not taken: {reason}")

    async def gather(
        self, kind: str, like: Mapping[str, Tensor] | None = None
    ) -> AsyncIterator[Message]:
        waits = [
            asyncio.create_task(self.receive(client, kind, like))
            for client in self.clients
            if client not in self._missed
        ]
        try:
            for wait in asyncio.as_completed(waits):
                try:
                    message = await wait
                except Missed:
                    continue
                yield message
        finally:
            for task in waits:
                task.cancel()

    async def stop(self) -> None:
        """Tell every client that the run is over."""
        for client in self._joined():
            try:
                await self._transport.send(client, STOP, self.round, ([], []), {})
            except Unreachable:
                continue

    async def _next(self, client: str) -> Message:
        inbox = self._inboxes[client]
        remaining_s = self._deadline_s - time.monotonic()
        if client in self._gone and inbox.empty():
            raise self._miss(client, self._gone[client])
        try:
            found = await asyncio.wait_for(inbox.get(), max(0.0, remaining_s))
        except TimeoutError:
            limit = f"nothing within round_timeout_s = {self._round_timeout_s:g}"
            raise self._miss(client, limit) from None
        if isinstance(found, Missed):
            raise self._miss(client, str(found))
        return found

    def _objection(self, message: Message, kind: str) -> str | None:
        if message.round != self.round:
            return f"belongs to round {message.round}, this is round {self.round}"
        if message.kind != kind:
            return f"kind {message.kind!r} where {kind!r} was expected"
        return None

    def _miss(self, client: str, reason: str) -> Missed:
        if client not in self._missed:
            self._missed.add(client)
            self._report({"event": "missed", "peer": client, "round": self.round, "reason": reason})
        return Missed(reason)

    def _drop(self, message: Message, reason: str) -> None:
        self._report(
            {
                "event": "dropped",
                "peer": message.sender,
                "bytes": message.message_bytes,
                "reason": reason,
            }
        )

    def _choose(self) -> tuple[str, ...]:
        """All who are there, or a draw of them that depends on the round and the seed alone."""
        joined = self._joined()
        if len(joined) <= self._expected:
            return joined
        draw = random.Random(f"{self._seed} {self.round}").sample(sorted(joined), self._expected)
        return tuple(name for name in joined if name in draw)

    def _joined(self) -> tuple[str, ...]:
        return tuple(name for name in self.samples if name not in self._gone)

    def _check_joined(self) -> None:
        if self._inboxes.keys() <= self.samples.keys() | self._gone.keys():
            self._all_joined.set()
