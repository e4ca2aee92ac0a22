"""Waits of the server for its clients' answers: their limits, and which messages are none."""

from typing import NamedTuple

from testbed import clock
from testbed.transport.wire import Message


class Limit(NamedTuple):
    """The limit of a wait."""

    until_s: float
    """On the run's clock."""
    reason: str
    """Why what has not come by then is missed."""


def within(round_timeout_s: float) -> Limit:
    """The limit of a wait that begins now."""
    reason = f"nothing within round_timeout_s = {round_timeout_s:g}"
    return Limit(clock.monotonic() + round_timeout_s, reason)


def objection(message: Message, kind: str, number: int) -> str | None:
    """Why a message is not what is waited for, or None."""
    if message.round != number:
        return f"belongs to round {message.round}, that of round {number} was expected"
    if message.kind != kind:
        return f"kind {message.kind!r} where {kind!r} was expected"
    return None
