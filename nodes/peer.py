"""Peer, a client's side of the method contract: its server, every wait with a limit."""

import contextlib
from collections import defaultdict, deque
from collections.abc import Mapping

from torch import Tensor

from methods import Accept, Missed
from methods.payload import coder as coders
from methods.payload.coder import Base, Coder
from nodes.coding import decoded
from nodes.compute import Compute, Real
from nodes.kinds import ABSENT, EVALUATE, HELLO, REFUSED, STOP, WELCOME
from testbed import clock
from testbed.network.topology import SERVER
from testbed.record.events import Dropped, Report
from testbed.record.events import Missed as Missing
from testbed.transport.sockets import ClientTransport, Timeout
from testbed.transport.wire import MAX_TEXT, Detail, Message

FIRST_ANSWER_S = 2.0
"""How long the first hello waits for its answer; each further one waits twice as long."""
AMONG_CLIENTS = 0.8
"""Of a round's limit, for what clients do among themselves: who waits in vain has the rest of it to
tell the server, whose limit began earlier."""


class Stopped(Exception):
    """The server says that the run is over."""


class Overtaken(Exception):
    """The server has begun another round: what this client was about is no longer wanted."""


class Refused(Exception):
    """The server or this client could not take what the other sent: its part of the round is over.

    Both know.
    """


class Peer:
    """See ``methods.Peer``."""

    def __init__(
        self,
        transport: ClientTransport,
        report: Report,
        timeout_s: float,
        between_rounds_s: float,
        compute: Compute | None = None,
        round_s: float | None = None,
        name: str = "",
        coder: Coder | None = None,
    ) -> None:
        """``timeout_s``: how long a message within a round is waited for.

        ``round_s``: how long the server waits for a round's updates; None: ``timeout_s``.
        ``coder``: of what goes to the server and comes from it; None: nothing is coded.
        """
        self._name = name
        self._coder = coder or coders.none()
        self._compute = compute or Real()
        self._transport = transport
        self._report = report
        self._timeout_s = timeout_s
        self._between_rounds_s = between_rounds_s
        self._among_clients_s = AMONG_CLIENTS * (timeout_s if round_s is None else round_s)
        self._began_s = 0.0
        """When the server sent the first message of the round."""
        self._absent: dict[str, str] = {}
        """Neighbours that are not there, and why."""
        self._inboxes: dict[str, deque[Message]] = defaultdict(deque)
        self.round = 0

    def join(self, timeout_s: float) -> None:
        """Say hello until the server answers; a hello can be lost while the server starts.

        Raises:
            Timeout: no answer within ``timeout_s``.
        """
        deadline = clock.monotonic() + timeout_s
        wait_s = FIRST_ANSWER_S
        while True:
            self._transport.send(HELLO, 0, {}, {})
            try:
                answer = self._transport.receive(min(wait_s, deadline - clock.monotonic()))
            except Timeout:
                if clock.monotonic() >= deadline:
                    raise Timeout(f"no answer from the server within {timeout_s:g} s") from None
                wait_s *= 2
                continue
            self._sort(answer)
            return

    def await_round(self) -> bool:
        """Wait for the first message of a new round and enter it; of several, the newest.

        False: before one begins, the server wants metrics of the model after the present one.

        Raises:
            Stopped: the run is over.
            Timeout: the server was silent for too long.
        """
        while True:
            message = self._take(self._between_rounds_s, SERVER)
            if message.kind == REFUSED:
                continue  # What it had sent last, and it waits for no answer any more.
            self._look()
            queued = self._inboxes[SERVER]
            if self.stopped:
                raise Stopped
            newest = max((later.round for later in queued), default=0)
            if message.kind == EVALUATE and message.round == self.round >= newest:
                return False
            if message.round > self.round and message.round >= newest:
                self.round, self._began_s = message.round, message.header.sent_ns / 1e9
                queued.appendleft(message)
                return True
            self._drop(message, f"belongs to round {message.round}, which is over")

    def send(
        self,
        kind: str,
        tensors: Mapping[str, Tensor],
        *,
        to: str = SERVER,
        base: Base | None = None,
        **details: Detail,
    ) -> None:
        coded = self._coder.encode(kind, self.round, tensors, base, self._name)
        self._compute.settle()
        self._check_current()
        if to in self._absent:
            return
        outgoing = self._compute.outgoing(coded.tensors)
        self._transport.send(kind, self.round, outgoing, details, to)
        self._coder.remember(kind, self.round, coded)

    def receive(
        self,
        kind: str,
        like: Mapping[str, Tensor] | None = None,
        *,
        sender: str = SERVER,
        accept: Accept | None = None,
        base: Base | None = None,
    ) -> Message:
        self._look()
        if not self._inboxes[sender]:
            self._compute.settle()
        while True:
            message = self._next(sender)
            self._check_refused(message)
            if message.round > self.round:
                self._inboxes[sender].appendleft(message)
                reason = f"round {message.round} began during round {self.round}"
                raise Overtaken(reason) if sender == SERVER else self._miss(sender, reason)
            if message.kind != kind or message.round != self.round:
                expected = f"{kind!r} of round {self.round}"
                reason = f"{message.kind!r} of round {message.round}, expected {expected}"
            else:
                incoming = self._compute.incoming(message)
                found, objection = decoded(
                    self._coder, "down", self._name, incoming, like, accept, base, self._report
                )
                if objection is None:
                    return found
                # It is the sender's answer, and no better one will come: do not wait out the limit.
                self._drop(message, objection)
                raise self.refuse(objection, sender=sender)
            self._drop(message, reason)

    def refuse(self, reason: str, *, sender: str = SERVER) -> Exception:
        if sender != SERVER:
            return self._miss(sender, reason)
        self._transport.send(REFUSED, self.round, {}, {"reason": reason[:MAX_TEXT]})
        return Refused(reason)

    def _next(self, sender: str) -> Message:
        """The sender's next message; raises Missed where none of a neighbour comes."""
        if sender == SERVER:
            return self._take(self._timeout_s, SERVER)
        until_s = self._began_s + self._among_clients_s
        wait_s = min(self._timeout_s, max(0.0, until_s - clock.monotonic()))
        try:
            return self._take(wait_s, sender)
        except Timeout:
            limit = f"{self._among_clients_s:g} s of the round's beginning"
            raise self._miss(sender, f"nothing within {limit}") from None

    def _look(self) -> None:
        """Take in what has arrived by now."""
        with contextlib.suppress(Timeout):
            while True:
                self._sort(self._transport.receive(0.0))

    def _sort(self, message: Message) -> None:
        """Keep a message for whoever waits for it, or heed what it says of neighbours."""
        if message.sender == SERVER and message.kind == ABSENT:
            for neighbour, reason in message.details.items():
                self._absent.pop(neighbour, None)
                if reason:
                    self._absent[neighbour] = str(reason)
                    self._transport.hang_up(neighbour)
        elif message.sender != SERVER or message.kind != WELCOME:
            self._inboxes[message.sender].append(message)

    @property
    def stopped(self) -> bool:
        """Whether it has heard that the run is over."""
        return any(message.kind == STOP for message in self._inboxes[SERVER])

    def _check_current(self) -> None:
        """Raise Overtaken where the server has gone on: nobody waits for what is to be sent."""
        self._look()
        for message in self._inboxes[SERVER]:
            self._check_refused(message)
            if message.round > self.round or message.kind == STOP:
                raise Overtaken(f"round {self.round} is over: {message.kind!r} came")

    def _take(self, timeout_s: float, sender: str) -> Message:
        """The next message of the server or of a neighbour; those of others are kept.

        Raises:
            Stopped: the run is over.
            Overtaken: the server began another round while a neighbour was waited for.
            Missed: the neighbour is not there.
            Timeout: nothing came in time.
        """
        deadline = clock.monotonic() + timeout_s
        while not self._inboxes[sender]:
            if sender in self._absent:
                raise self._miss(sender, self._absent[sender])
            message = self._transport.receive(max(0.0, deadline - clock.monotonic()))
            self._sort(message)
            if sender == SERVER or message.sender != SERVER:
                continue
            self._check_refused(message)
            if message.round > self.round or message.kind == STOP:
                raise Overtaken(f"round {message.round} began while {sender} was waited for")
        message = self._inboxes[sender].popleft()
        if message.kind == STOP and sender == SERVER:
            raise Stopped
        return message

    def _check_refused(self, message: Message) -> None:
        """Raise Refused where the server could not take what it was sent in this round."""
        if message.sender == SERVER and message.kind == REFUSED and message.round == self.round:
            raise Refused(str(message.details.get("reason")))

    def _miss(self, neighbour: str, reason: str) -> Missed:
        self._report(Missing(peer=neighbour, round=self.round, reason=reason))
        return Missed(f"{neighbour}: {reason}")

    def _drop(self, message: Message, reason: str) -> None:
        size = message.message_bytes
        self._report(Dropped(peer=message.sender, bytes=size, reason=reason))
