"""A client's side of the method contract: its server, with limits on every wait."""

from collections import defaultdict, deque
from collections.abc import Mapping

from torch import Tensor

from methods import Missed
from nodes.checks import difference
from nodes.compute import Compute, Real
from nodes.fleet import HELLO, REFUSED, STOP, WELCOME
from testbed import clock
from testbed.transport import SERVER, ClientTransport, Report, Timeout
from testbed.wire import MAX_TEXT, Detail, Message

FIRST_ANSWER_S = 2.0
"""How long the first hello waits for its answer; each further one waits twice as long."""


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
    ) -> None:
        """``timeout_s``: how long a message within a round is waited for."""
        self._compute = compute or Real()
        self._transport = transport
        self._report = report
        self._timeout_s = timeout_s
        self._between_rounds_s = between_rounds_s
        self._inboxes: dict[str, deque[Message]] = defaultdict(deque)
        self.round = 0

    def join(self, samples: int, timeout_s: float) -> None:
        """Say hello until the server answers; a hello can be lost while the server starts.

        Raises:
            Timeout: no answer within ``timeout_s``.
        """
        deadline = clock.monotonic() + timeout_s
        wait_s = FIRST_ANSWER_S
        while True:
            self._transport.send(HELLO, 0, {}, {"samples": samples})
            try:
                answer = self._transport.receive(min(wait_s, deadline - clock.monotonic()))
            except Timeout:
                if clock.monotonic() >= deadline:
                    raise Timeout(f"no answer from the server within {timeout_s:g} s") from None
                wait_s *= 2
                continue
            if answer.kind != WELCOME:
                self._inboxes[SERVER].append(answer)
            return

    def await_round(self) -> None:
        """Wait for the first message of a new round and enter it; of several, the newest.

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
            if any(later.kind == STOP for later in queued):
                raise Stopped
            newest = max((later.round for later in queued), default=0)
            if message.round > self.round and message.round >= newest:
                self.round = message.round
                queued.appendleft(message)
                return
            self._drop(message, f"belongs to round {message.round}, which is over")

    def send(
        self, kind: str, tensors: Mapping[str, Tensor], *, to: str = SERVER, **details: Detail
    ) -> None:
        self._compute.settle()
        self._heed()
        self._transport.send(kind, self.round, self._compute.outgoing(tensors), details, to)

    def receive(
        self, kind: str, like: Mapping[str, Tensor] | None = None, *, sender: str = SERVER
    ) -> Message:
        self._compute.settle()
        while True:
            try:
                message = self._take(self._timeout_s, sender)
            except Timeout:
                if sender == SERVER:
                    raise
                raise self._miss(sender, f"nothing within {self._timeout_s:g} s") from None
            self._check_refused(message)
            if message.round > self.round:
                self._inboxes[sender].appendleft(message)
                reason = f"round {message.round} began during round {self.round}"
                raise Overtaken(reason) if sender == SERVER else self._miss(sender, reason)
            if message.kind != kind or message.round != self.round:
                expected = f"{kind!r} of round {self.round}"
                reason = f"{message.kind!r} of round {message.round}, expected {expected}"
            else:
                objection = None if like is None else difference(message.tensors, like)
                if objection is None:
                    return self._compute.incoming(message)
                # It is the sender's answer, and no better one will come: do not wait out the limit.
                self._drop(message, objection)
                raise self._refusal(sender, objection)
            self._drop(message, reason)

    def _look(self) -> None:
        """Take in what has arrived by now."""
        while True:
            try:
                message = self._transport.receive(0.0)
            except Timeout:
                return
            if message.kind != WELCOME:
                self._inboxes[message.sender].append(message)

    def _heed(self) -> None:
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
            Timeout: nothing came in time.
        """
        deadline = clock.monotonic() + timeout_s
        while not self._inboxes[sender]:
            message = self._transport.receive(max(0.0, deadline - clock.monotonic()))
            if message.kind == WELCOME and message.sender == SERVER:
                continue
            self._inboxes[message.sender].append(message)
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

    def _refusal(self, sender: str, reason: str) -> Exception:
        if sender != SERVER:
            return self._miss(sender, reason)
        self._transport.send(REFUSED, self.round, {}, {"reason": reason[:MAX_TEXT]})
        return Refused(reason)

    def _miss(self, neighbour: str, reason: str) -> Missed:
        event = {"event": "missed", "peer": neighbour, "round": self.round, "reason": reason}
        self._report(event)
        return Missed(f"{neighbour}: {reason}")

    def _drop(self, message: Message, reason: str) -> None:
        size = message.message_bytes
        self._report({"event": "dropped", "peer": message.sender, "bytes": size, "reason": reason})
