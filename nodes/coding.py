"""Decoding of messages that have arrived, by a node's coder, and their bytes on record."""

from collections.abc import Mapping
from typing import Literal

import msgspec
from torch import Tensor

from methods import Accept
from methods.payload.coder import Base, Coder
from nodes.checks import objection
from testbed.record.events import Report, Staged, StageSize
from testbed.transport.wire import Message


def decoded(
    coder: Coder,
    way: Literal["up", "down"],
    client: str,
    message: Message,
    like: Mapping[str, Tensor] | None,
    accept: Accept | None,
    base: Base | None,
    report: Report,
) -> tuple[Message, str | None]:
    """The message as it was before it was coded, and why it cannot be taken.

    What is neither like something nor to be accepted is taken as it came.
    """
    if like is None:
        return message, accept and objection(message.tensors, None, accept)
    try:
        tensors, sizes = coder.decode(
            way, message.kind, message.round, message.tensors, like, base, client
        )
    except ValueError as error:
        return message, str(error)
    if not sizes:
        return message, objection(message.tensors, like, accept)
    told = [StageSize(stage, size) for stage, size in sizes]
    report(Staged(peer=message.sender, kind=message.kind, round=message.round, sizes=told))
    return msgspec.structs.replace(message, tensors=tensors), objection(tensors, like, accept)
