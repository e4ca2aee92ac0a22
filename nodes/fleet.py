"""Fleet, the server's side of the method contract: clients by name, every wait with a limit."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Mapping, Sequence

from torch import Tensor

from methods import UPDATE, Accept, Missed
from methods.payload import coder as coders
from methods.payload.coder import Base, Coder
from nodes.coding import decoded
from nodes.compute import Compute, Real
from nodes.kinds import ABSENT, HELLO, REFUSED, STOP, WELCOME
from nodes.membership import Membership
from nodes.waits import Limit, objection, within
from testbed import clock
from testbed.record import events
from testbed.record.events import Report
from testbed.seeds import derive
from testbed.transport.sockets import Encoded, ServerTransport, Unreachable
from testbed.transport.wire import MAX_DETAILS, MAX_TEXT, Detail, Message, encode_tensors

_Inbox = asyncio.Queue[Message | Missed]


class Fleet:
    """See ``methods.Fleet``. Every lost update is reported with its reason."""

    def __init__(
        self,
        transport: ServerTransport,
        samples: Mapping[str, int],
        report: Report,
        round_timeout_s: float,
        per_round: int | None = None,
        seed: int = 0,
        compute: Compute | None = None,
        deadline_s: float | None = None,
        peer_to_peer: bool = False,
        coder: Coder | None = None,
    ) -> None:
        """``samples``: training samples of each client, of all by name.

        ``per_round``: how many clients a round takes, drawn from ``seed``; None: all.

        ``deadline_s``: how long a round takes updates; None: ``round_timeout_s``.
        ``peer_to_peer``: clients wait for one another, and are told who is not there.
        ``coder``: of what is sent and received; None: nothing is coded.
        """
        self._coder = coder or coders.none()
        self._transport = transport
        self._compute = compute or Real()
        self._report = report
        self._expected = len(samples) if per_round is None else per_round
        self._seed = seed
        self._round_timeout_s = round_timeout_s
        self._deadline_s = deadline_s
        self._limit = Limit(0.0, "")
        self._inboxes: dict[str, _Inbox] = {name: asyncio.Queue() for name in samples}
        self.members = Membership(samples)
        self._peer_to_peer = peer_to_peer
        self._telling: set[asyncio.Task[None]] = set()
        self._present: tuple[str, ...] = ()
        self.sampling_rate = 1.0
        self._missed: set[str] = set()
        self._heard: set[str] = set()
        """Whose answers were taken in this round."""
        self._asked: set[str] = set()
        """Whom ``keep_busy`` has asked in this round."""
        self._at_work: dict[str, asyncio.Task[Message]] = {}
        """Who has yet to answer ``keep_busy``, in whichever round it was asked."""
        self._answers = 0
        self._answered: dict[str, int] = {}
        """Whose answers ``keep_busy`` has given in this round, by the round asked in."""
        self.round = 0

    @property
    def samples(self) -> dict[str, int]:
        return self.members.samples

    @property
    def clients(self) -> tuple[str, ...]:
        """Those chosen of who was there when the round began; who joins later waits."""
        return tuple(name for name in self._present if name not in self.members.gone)

    @property
    def everyone(self) -> tuple[str, ...]:
        return tuple(name for name in self.members.there if name not in self._missed)

    @property
    def joined(self) -> int:
        return len(self.members.joined)

    @property
    def failed(self) -> int:
        """How many fewer clients did their part of the present round than the run asks for.

        Where clients are kept busy: how many were waited for in vain.
        """
        if self._asked or self._at_work:
            return len(self._missed)
        # One that ended after its last answer has done its part.
        left = self.members.gone.keys() - self._heard
        done = [name for name in self._present if name not in self._missed | left]
        return self._expected - len(done)

    @property
    def took_part(self) -> dict[str, int]:
        """Clients that did their part of the present round and are there, by the round asked in."""
        if self._asked or self._at_work:
            gone = self.members.gone
            return {name: asked for name, asked in self._answered.items() if name not in gone}
        there = [*self.clients, *(self._heard & set(self.members.joined))]
        return {name: self.round for name in there if name not in self._missed}

    @property
    def succeeded(self) -> int:
        """Clients that did their part of the present round; where they are kept busy: answers."""
        if self._asked or self._at_work:
            return self._answers
        return self._expected - self.failed

    async def pump(self) -> None:
        """Sort what arrives into the clients' inboxes; runs until cancelled."""
        while True:
            # Held by no name, the last one's memory is free while the next is waited for.
            await self._sort(await self._transport.receive())

    async def _sort(self, message: Message) -> None:
        if message.kind != HELLO:
            self._inboxes[message.sender].put_nowait(message)
            return
        try:
            await self._transport.send(message.sender, WELCOME, 0, ([], []), {})
        except Unreachable as error:
            self._drop(message, str(error))
            return
        self.members.join(message.sender)

    async def join(self, timeout_s: float) -> None:
        """Wait until every client that still runs has said hello, or ``timeout_s`` is over.

        Raises:
            Missed: none came at all.
        """
        try:
            await asyncio.wait_for(self.members.all_joined(), timeout_s)
        except TimeoutError:
            for name in self.members.unheard:
                self._miss(name, f"did not connect within {timeout_s:g} s")
        if not self.joined:
            raise Missed(f"no client connected within {timeout_s:g} s")

    def lose(self, client: str, reason: str) -> None:
        """``client`` is gone for good: whoever waits for it is told."""
        self._inboxes[client].put_nowait(Missed(reason))
        self.members.lose(client, reason)
        if self._peer_to_peer:
            task = asyncio.create_task(self._tell_absent(*self.clients))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def attended(self) -> None:
        """Wait until a round has somebody to choose.

        Raises:
            Missed: everybody stayed away for as long as a round may take.
        """
        try:
            await asyncio.wait_for(self.members.someone_there(), self._round_timeout_s)
        except TimeoutError:
            limit = f"round_timeout_s = {self._round_timeout_s:g}"
            raise Missed(f"every client was away for longer than {limit}") from None

    def begin(self, number: int) -> None:
        """Choose a round's clients and start its clock."""
        self.round = number
        self.sampling_rate = min(1.0, self._expected / max(1, len(self.members.there)))
        seed = derive(self._seed, "clients of a round", number)
        self._present = self.members.drawn(self._expected, seed)
        self._missed = set()
        self._heard = set()
        self._asked = set()
        self._answers = 0
        self._answered = {}
        self._limit = within(self._round_timeout_s)
        if self._deadline_s is not None:
            reason = f"nothing by the deadline of {self._deadline_s:g} s"
            self._limit = Limit(clock.monotonic() + self._deadline_s, reason)
        if self._expected == len(self._inboxes):
            for client in self.members.joined:
                if client in self.members.away:
                    self._miss(client, self.members.away[client])

    def conclude(self) -> None:
        """The round has what it takes; what is asked of its clients now has a limit of its own."""
        self._limit = within(self._round_timeout_s)

    async def _tell_absent(self, *clients: str) -> None:
        """Bring up to date what clients know of one another, before all else that they are sent."""
        if not self._peer_to_peer:
            return
        for client in clients:
            news = list(self.members.news(client).items())
            for start in range(0, len(news), MAX_DETAILS):
                some = news[start : start + MAX_DETAILS]
                details = {name: why[:MAX_TEXT] for name, why in some}
                try:
                    await self._transport.send(client, ABSENT, self.round, ([], []), details)
                except Unreachable:
                    break  # It is told with what it is sent next.
                self.members.tell(client, dict(some))

    async def send(
        self,
        client: str,
        kind: str,
        tensors: Mapping[str, Tensor],
        *,
        base: Base | None = None,
        **details: Detail,
    ) -> None:
        if base is not None:
            tensors = self._coder.encode_values(kind, self.round, tensors, client)
        await self._compute.settled()
        await self._tell_absent(client)
        encoded = encode_tensors(self._compute.outgoing(tensors))
        try:
            await self._transport.send(client, kind, self.round, encoded, details)
        except Unreachable as error:
            raise self._miss(client, str(error)) from error

    async def broadcast(
        self,
        kind: str,
        tensors: Mapping[str, Tensor],
        *,
        clients: Sequence[str] | None = None,
        base: Base | None = None,
        **details: Detail,
    ) -> Mapping[str, Tensor]:
        clients = self.clients if clients is None else clients
        coded: Mapping[str, Tensor] | None = None
        whole = tensors
        if base == "held":
            coded, whole = self._coder.encode_model(kind, self.round, tensors)
        elif base is not None:
            coded = self._coder.encode_values(kind, self.round, tensors)
        await self._compute.settled()
        for_all, for_some = self._encoded(whole), None if coded is None else self._encoded(coded)
        await self._tell_absent(*clients)
        for client in clients:
            takes = base != "held" or self._coder.may_take(kind, client)
            encoded = for_some if takes and for_some is not None else for_all
            try:
                await self._transport.send(client, kind, self.round, encoded, details)
            except Unreachable as error:
                self._miss(client, str(error))
        if base == "held":
            self._coder.sent(kind)
        return whole

    def _encoded(self, tensors: Mapping[str, Tensor]) -> Encoded:
        return encode_tensors(self._compute.outgoing(tensors))

    async def receive(
        self,
        client: str,
        kind: str,
        like: Mapping[str, Tensor] | None = None,
        *,
        accept: Accept | None = None,
        base: Base | None = None,
    ) -> Message:
        await self._compute.settled()
        return await self._answer(client, kind, like, accept, base, self.round, self._limit)

    async def _answer(
        self,
        client: str,
        kind: str,
        like: Mapping[str, Tensor] | None,
        accept: Accept | None,
        base: Base | None,
        number: int,
        limit: Limit,
    ) -> Message:
        while True:
            message = await self._next(client, limit)
            if message.kind == REFUSED and message.round == number:
                raise self._miss(client, f"it refused: {message.details.get('reason')}")
            wrong = objection(message, kind, number)
            if wrong is None:
                break
            self._drop(message, wrong)
        incoming = self._compute.incoming(message)
        found, reason = decoded(
            self._coder, "up", client, incoming, like, accept, base, self._report
        )
        if reason is not None:
            # It is the client's answer, and no better one will come: do not wait out the limit.
            self._drop(message, reason)
            missed = self.refuse(client, reason)
            # In a conversation it waits for more, and would for as long as a round may take.
            with contextlib.suppress(Unreachable):
                told = {"reason": reason[:MAX_TEXT]}
                await self._transport.send(client, REFUSED, number, ([], []), told)
            raise missed
        self._heard.add(client)
        self._coder.answered(client, number)
        return found

    def refuse(self, client: str, reason: str) -> Missed:
        return self._miss(client, f"its update was not taken: {reason}")

    async def gather(
        self,
        kind: str,
        like: Mapping[str, Tensor] | None = None,
        *,
        clients: Sequence[str] | None = None,
        accept: Accept | None = None,
        base: Base | None = None,
    ) -> AsyncIterator[Message]:
        if clients is None:
            clients = [client for client in self._present if client not in self._missed]
        came: asyncio.Queue[Message | Exception] = asyncio.Queue()

        async def wait_for(client: str) -> None:
            # A task would keep its result for as long as the slowest client takes.
            try:
                came.put_nowait(await self.receive(client, kind, like, accept=accept, base=base))
            except Exception as error:
                came.put_nowait(error)

        waits = [asyncio.create_task(wait_for(client)) for client in clients]
        try:
            for _ in waits:
                found = await came.get()
                if isinstance(found, Message):
                    yield found
                elif not isinstance(found, Missed):
                    raise found
                del found
        finally:
            for task in waits:
                task.cancel()

    async def keep_busy(
        self, kind: str, tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]
    ) -> AsyncIterator[Message]:
        await self._compute.settled()
        encoded = encode_tensors(self._compute.outgoing(tensors))
        while True:
            # 1. Who is free gets to work, up to as many as the run has at work at once.
            for client in self._free():
                try:
                    await self._transport.send(client, kind, self.round, encoded, {})
                except Unreachable as error:
                    self._miss(client, str(error))
                    continue
                self._asked.add(client)
                limit = within(self._round_timeout_s)
                answer = self._answer(client, kind, like, None, UPDATE, self.round, limit)
                self._at_work[client] = asyncio.create_task(answer)
            # 2. The next answers, to whichever round's question; those not taken are kept.
            left_s = self._limit.until_s - clock.monotonic()
            done: set[asyncio.Task[Message]] = set()
            if self._at_work and left_s > 0:
                done, _ = await asyncio.wait(
                    self._at_work.values(), timeout=left_s, return_when=asyncio.FIRST_COMPLETED
                )
            if not done:
                return
            for client in [name for name, task in self._at_work.items() if task in done]:
                try:
                    message = self._at_work.pop(client).result()
                except Missed:
                    continue
                self._answers += 1
                self._answered[client] = message.round
                yield message

    def _free(self) -> list[str]:
        """Clients that may be set to work, in a drawn order: each once a round."""
        busy = self._at_work.keys() | self._asked
        free = [name for name in self.members.there if name not in busy]
        random.Random(derive(self._seed, "who is free", self.round, len(self._asked))).shuffle(free)
        return free[: max(0, self._expected - len(self._at_work))]

    async def stop(self) -> None:
        """Tell every client that the run is over; none that is gone keeps it from its end."""
        for task in self._at_work.values():
            task.cancel()
        await self._transport.hang_up(self.members.gone)
        for client in self.members.joined:
            try:
                await self._transport.send(client, STOP, self.round, ([], []), {})
            except Unreachable:
                continue

    async def _next(self, client: str, limit: Limit) -> Message:
        inbox = self._inboxes[client]
        if client in self.members.gone and inbox.empty():
            raise self._miss(client, self.members.gone[client])
        try:
            remaining_s = limit.until_s - clock.monotonic()
            found = await asyncio.wait_for(inbox.get(), max(0.0, remaining_s))
        except TimeoutError:
            away = f"; {self.members.away[client]}" if client in self.members.away else ""
            raise self._miss(client, f"{limit.reason}{away}") from None
        if isinstance(found, Missed):
            raise self._miss(client, str(found))
        return found

    def _miss(self, client: str, reason: str) -> Missed:
        if client not in self._missed:
            self._missed.add(client)
            self._report(events.Missed(peer=client, round=self.round, reason=reason))
        return Missed(reason)

    def _drop(self, message: Message, reason: str) -> None:
        size = message.message_bytes
        self._report(events.Dropped(peer=message.sender, bytes=size, reason=reason))
