"""A client's side of the method contract: its server, with limits on every wait."""

import time
from collections.abc import Mapping

from torch import Tensor

from nodes.checks import difference
from nodes.fleet import HELLO, STOP, WELCOME
from testbed.transport import ClientTransport, Report, Timeout
from testbed.wire import Detail, Message

FIRST_ANSWER_S = 2.0
"""How long the first hello waits for its answer; each further one waits twice as long."""


class Stopped(Exception):
    """The server says that the run is over."""


class Overtaken(Exception):
    """The server has begun another round: what this client was about is no longer wanted."""


class Peer:
    """See ``methods.Peer``."""

    def __init__(self, transport: ClientTransport, report: Report, timeout_s: float) -> None:
        self._transport = transport
        self._report = report
        self._timeout_s = timeout_s
        self._next: Message | None = None
        self.round = 0

    def join(self, samples: int, timeout_s: float) -> None:
        """Say hello until the server answers; a hello can be lost while the server starts.

        Raises:
            Timeout: no answer within ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        wait_s = FIRST_ANSWER_S
        while True:
            self._transport.send(HELLO, 0, {}, {"samples": samples})
            try:
                answer = self._transport.receive(min(wait_s, deadline - time.monotonic()))
            except Timeout:
                if time.monotonic() >= deadline:
                    raise Timeout(f"no answer from the server within {timeout_s:g} s") from None
                wait_s *= 2
                continue
            if answer.kind != WELCOME:
                self._next = answer
            return

    def await_round(self) -> None:
        """Wait for the first message of a new round and enter it.

        Raises:
            Stopped: the run is over.
            Timeout: the server was silent for too long.
        """
        while True:
            message = self._take()
            if message.round > self.round:
                self.round = message.round
                self._next = message
                return
            self._drop(message, f"belongs to round {message.round}, which is over")

    def send(self, kind: str, tensors: Mapping[str, Tensor], **details: Detail) -> None:
        self._transport.send(kind, self.round, tensors, details)

    def receive(self, kind: str, like: Mapping[str, Tensor] | None = None) -> Message:
        while True:
            message = self._take()
            if message.round > self.round:
                self._next = message
                raise Overtaken(f"round {message.round} began during round {self.round}")
            if message.kind != kind or message.round != self.round:
                expected = f"{kind!r} of round {self.round}"
                reason = f"{message.kind!r} of round {message.round}, expected {expected}"
            else:
                objection = None if like is None else difference(message.tensors, like)
                if objection is None:
                    return message
                reason = objection
            self._drop(message, reason)

    def _take(self) -> Message:
        message, self._next = self._next, None
        while message is None or message.kind == WELCOME:
            message = self._transport.receive(self._timeout_s)
        if message.kind == STOP:
            raise Stopped
        return message

    def _drop(self, message: Message, reason: str) -> None:
        size = message.message_bytes
        self._report({"event": "dropped", "peer": "server", "bytes": size, "reason": reason})
