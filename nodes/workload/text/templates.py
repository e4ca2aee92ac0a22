"""Templates: a dialogue as a model reads it, and which of its ids are to be learnt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from nodes.workload.text.columns import Dialogue
from nodes.workload.text.tokens import Encoder, Message, Segment
from testbed.config_error import ConfigError

TEMPLATES = ("auto", "chat", "alpaca", "flowertune", "plain")
"""`auto`: the tokenizer's own where it has one, else `alpaca`."""
_TASK = "Below is an instruction that describes a task"
_REQUEST = "Write a response that appropriately completes the request."


class Piece(NamedTuple):
    """A part of a dialogue's text that is all learnt, or all only read."""

    text: str
    learnt: bool


def segments(dialogue: Dialogue, encoder: Encoder, template: str) -> list[Segment]:
    """A dialogue's ids, of which what the assistant says is learnt, and the end of each turn.

    ConfigError for a template that is unknown, that the tokenizer lacks, or that refuses it.
    """
    if template not in TEMPLATES:
        raise ConfigError(f"template = {template!r}: known are {', '.join(TEMPLATES)}")
    if template in ("auto", "chat"):
        found = encoder.chat(_with_context(dialogue))
        if found is not None:
            return found
        if template == "chat":
            raise ConfigError(
                "template = 'chat': the model's tokenizer has no chat template; take alpaca, "
                "flowertune or plain"
            )
        template = "alpaca"
    return list(_encoded(_PIECES[template](dialogue), encoder))


def _with_context(dialogue: Dialogue) -> list[Message]:
    messages = list(dialogue.messages)
    if dialogue.context:
        place = next(place for place, each in enumerate(messages) if each.role == "user")
        asked = f"{messages[place].content}\n\n{dialogue.context}"
        messages[place] = Message("user", asked)
    return messages


def _alpaca(dialogue: Dialogue) -> Iterator[Piece]:
    """Pieces as Stanford's Alpaca has them: one question and its answer.

    Ours is that a system's message stands in its first sentence's place, and that later turns
    repeat the headings.
    """
    beside = ", paired with an input that provides further context" if dialogue.context else ""
    head, context = f"{_TASK}{beside}. {_REQUEST}\n\n", dialogue.context
    for place, (role, content) in enumerate(dialogue.messages):
        if role == "system":
            head = f"{head if place else ''}{content}\n\n"
        elif role == "user":
            about = f"### Input:\n{context}\n\n" if context else ""
            yield Piece(f"{head}### Instruction:\n{content}\n\n{about}", False)
            head, context = "", ""
        else:
            yield Piece(f"{head}### Response:", False)
            yield Piece(content, True)
            head = "\n\n"


def _flowertune(dialogue: Dialogue) -> Iterator[Piece]:
    """Pieces as the FlowerTune benchmark has them: one question and its answer.

    Ours is the same as of Alpaca, and that the input follows the instruction, which the
    benchmark's function does not read.
    """
    head = f"{_TASK}. {_REQUEST}\n"
    for place, (role, content) in enumerate(_with_context(dialogue)):
        if role == "system":
            head = f"{head if place else ''}{content}\n"
        elif role == "user":
            yield Piece(f"{head}### Instruction:\n{content}\n", False)
            head = ""
        else:
            yield Piece(f"{head}### Response:", False)
            yield Piece(f" {content}", True)
            head = "\n"


def _plain(dialogue: Dialogue) -> Iterator[Piece]:
    """Pieces as they stand, with nothing in between."""
    for role, content in _with_context(dialogue):
        yield Piece(content, role == "assistant")


_PIECES: dict[str, Callable[[Dialogue], Iterator[Piece]]] = {
    "alpaca": _alpaca,
    "flowertune": _flowertune,
    "plain": _plain,
}


def _encoded(pieces: Iterator[Piece], encoder: Encoder) -> Iterator[Segment]:
    """Ids of each piece as part of the text since the last end, and an end after each answer.

    Where the ids of a piece would not go on from those before it, it is encoded by itself.
    """
    text, before = "", [] if encoder.begin is None else [encoder.begin]
    if before:
        yield Segment(before, False)
    ids: list[int] = []
    for piece in pieces:
        text += piece.text
        whole = encoder.encode(text)
        goes_on = whole[: len(ids)] == ids
        own = whole[len(ids) :] if goes_on else encoder.encode(piece.text)
        if piece.learnt:
            yield Segment([*own, encoder.end], True)
            text, ids = "", []
        else:
            yield Segment(own, False)
            ids = ids + own
