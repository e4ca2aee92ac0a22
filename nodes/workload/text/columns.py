"""Columns of a user's texts: which of them are read, and what a record of them says."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from nodes.workload.text.files import Record
from nodes.workload.text.tokens import Message
from testbed.config_error import ConfigError

TEXTS = ("text",)
DIALOGUES = ("messages", "conversations")
QUESTIONS = ("instruction", "prompt", "question", "input")
"""The first of them that is there is what is asked."""
CONTEXTS = ("input", "context")
ANSWERS = ("completion", "answer", "response", "output")
SYSTEMS = ("system", "system_prompt")
CLIENTS = ("client", "client_id", "group", "user")
"""The first of them that is there says whose a record is."""
KNOWN = frozenset((*TEXTS, *DIALOGUES, *QUESTIONS, *CONTEXTS, *ANSWERS, *SYSTEMS, *CLIENTS))
SETS = (
    "text; or messages, or conversations; or one of instruction, prompt and question, with one of "
    "completion, answer, response and output"
)
ROLES = {"human": "user", "gpt": "assistant", "model": "assistant"} | {
    role: role for role in ("system", "user", "assistant")
}
"""Who speaks, as data have it."""
_SHOWN = 60
"""Characters of a value that a refusal shows."""


class Form(NamedTuple):
    """The columns that are read of a data set's records; the others are left alone."""

    text: str | None = None
    """A text by itself."""
    dialogue: str | None = None
    """A list of messages."""
    question: str | None = None
    context: str | None = None
    """Beside the question, such as what it is about; may be empty, or missing."""
    answer: str | None = None
    system: str | None = None
    """What is said before a dialogue; may be empty, or missing."""
    client: str | None = None
    """Whose a record is."""

    def __str__(self) -> str:
        return ", ".join(name for name in self if name is not None)


class Dialogue(NamedTuple):
    """Messages, and what the first question has beside it."""

    messages: tuple[Message, ...]
    context: str = ""


class Text(NamedTuple):
    """Text or dialogue of a record, and whose it is."""

    place: str
    content: str | Dialogue
    client: str

    @property
    def is_empty(self) -> bool:
        """Nothing in it is there to be learnt."""
        if isinstance(self.content, str):
            return not self.content.strip()
        return not any(role == "assistant" and text.strip() for role, text in self.content.messages)


def form_of(columns: Iterable[str], where: str) -> Form:
    """The form of records with these columns. ConfigError, that begins with ``where``, for none."""
    there = list(columns)

    def first(names: tuple[str, ...]) -> str | None:
        return next((name for name in names if name in there), None)

    system, client = first(SYSTEMS), first(CLIENTS)
    if dialogue := first(DIALOGUES):
        if all(name in there for name in DIALOGUES):
            raise ConfigError(f"{where} has columns {', '.join(DIALOGUES)}; keep one of them")
        return Form(dialogue=dialogue, system=system, client=client)
    question, answers = first(QUESTIONS), [name for name in ANSWERS if name in there]
    if question and len(answers) > 1:
        raise ConfigError(
            f"{where} has columns {', '.join(answers)}, each of which may be the answer; keep one"
        )
    if question and answers:
        context = next((name for name in CONTEXTS if name in there and name != question), None)
        return Form(
            question=question, context=context, answer=answers[0], system=system, client=client
        )
    if text := first(TEXTS):
        return Form(text=text, client=client)
    raise ConfigError(f"{where} has columns {', '.join(there) or 'none'}; it needs {SETS}")


def read(record: Record, form: Form) -> Text:
    """Text or dialogue of a record. ConfigError where a column lacks or holds another kind."""
    client = "" if form.client is None else _client(record, form.client)
    content: str | Dialogue
    if form.text is not None:
        content = _string(record, form.text)
    else:
        context, messages = "", _optional(record, form.system, "system")
        if form.dialogue is not None:
            messages += _messages(record, form.dialogue)
        else:
            assert form.question is not None and form.answer is not None
            messages.append(Message("user", _string(record, form.question)))
            messages.append(Message("assistant", _string(record, form.answer)))
            context = "".join(text for _, text in _optional(record, form.context, "user"))
        content = Dialogue(tuple(messages), context)
    return Text(record.place, content, client)


def _optional(record: Record, column: str | None, role: str) -> list[Message]:
    if column is None or column not in record.fields:
        return []
    found = _string(record, column)
    return [Message(role, found)] if found.strip() else []


def _value(record: Record, column: str) -> Any:
    if column not in record.fields:
        there = ", ".join(record.fields) or "none"
        raise ConfigError(
            f"{record.place} has columns {there}, and no {column}, which others have; all must "
            "have the same"
        )
    return record.fields[column]


def _string(record: Record, column: str) -> str:
    return _checked(_value(record, column), f"{record.place}: {column}")


def _checked(value: Any, where: str) -> str:
    """A string, "" for null."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ConfigError(f"{where} = {_short(value)}: must be text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = value[error.start]
            raise ConfigError(
                f"{where} has {half!r} at character {error.start + 1}, which is half of one"
            ) from None
    return value


def _client(record: Record, column: str) -> str:
    value = _value(record, column)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(
            f"{record.place}: {column} = {_short(value)}: must be a name or a whole number, for "
            "it says whose the record is"
        )
    return _checked(value, f"{record.place}: {column}")


def _messages(record: Record, column: str) -> list[Message]:
    value, where = _value(record, column), f"{record.place}: {column}"
    if value is None:
        return []
    if not isinstance(value, list):
        raise ConfigError(f"{where} = {_short(value)}: must be a list of messages")
    return [_message(each, f"{where}[{place}]") for place, each in enumerate(value)]


def _message(value: Any, where: str) -> Message:
    fields: Mapping[str, Any] = value if isinstance(value, dict) else {}
    names = next(
        (pair for pair in (("role", "content"), ("from", "value")) if fields.keys() >= {*pair}),
        None,
    )
    if names is None:
        raise ConfigError(
            f"{where} = {_short(value)}: must have role and content, or from and value"
        )
    role = fields[names[0]]
    if not isinstance(role, str) or role not in ROLES:
        raise ConfigError(
            f"{where}.{names[0]} = {_short(role)}: known are {', '.join(sorted(ROLES))}"
        )
    return Message(ROLES[role], _checked(fields[names[1]], f"{where}.{names[1]}"))


def _short(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
