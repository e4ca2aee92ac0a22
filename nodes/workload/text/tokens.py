"""Ids of texts and dialogues: by the shipped tokenizer, or by one of `transformers`.

No call here starts a thread, as `encode_batch` would, and a tokenizer of `transformers` when it is
called: nodes are forked from the process that encodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from nodes.workload.text.letters import NOWHERE, Letters
from testbed import memory_limit, time_limit
from testbed.config_error import ConfigError, excerpt

if TYPE_CHECKING:  # Most runs read no text.
    from tokenizers import Tokenizer

PAD, BEGIN, END, USER, ASSISTANT = SPECIAL = ("<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>")
"""Of the shipped tokenizer, in the order of their ids."""
SHIPPED = Path(__file__).parents[1] / "weights" / "llama-docs.tokenizer.json"
UNKNOWN = "of no token that the model knows"
"""Why a record is left out that has no ids."""
WITHOUT = "for texts of your own --template=alpaca does without it"
"""Ends a refusal of what a chat template makes."""


TODAY = datetime(2024, 7, 26)
"""What chat templates are told that it is, so that ids are the same on any day: the day that those
of Llama 3 name where nobody tells them."""
DIALOGUE_LIMIT_S = 10.0
"""Of this process's computing, for what a chat template makes of a dialogue."""
DIALOGUE_LIMIT_BYTES = 1 << 30
"""Of memory, for the same: 64 for each byte of the longest line that a file may have."""
LONGEST_DIALOGUE = 1 << 25
"""Characters of what it makes, which the tokenizer takes memory for: twice that line's."""


class Message(NamedTuple):
    """Turn of a dialogue."""

    role: str
    """"system", "user" or "assistant"."""
    content: str


class Segment(NamedTuple):
    """Ids of a dialogue in a row that are all learnt, or all only read."""

    ids: list[int]
    learnt: bool


class Encoder(Protocol):
    """A model's tokenizer, as far as texts need it."""

    @property
    def begin(self) -> int | None:
        """Id that stands before a text; None: nothing does."""

    @property
    def end(self) -> int:
        """Id that stands after a text."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text alone; the name of a special token in it is text like any other."""

    def chat(self, messages: Sequence[Message]) -> list[Segment] | None:
        """Ids of a whole dialogue, of which what the assistant says is learnt, and how it ends.

        None: the model has no form for dialogues. ConfigError for one that does not fit its form.
        """

    def dropped(self, text: str) -> int:
        """How many characters of a text become no token."""

    def unknown(self, ids: Sequence[int]) -> int:
        """How many of a text's ids say only that the model knows none for what is there."""


def dialogue(prompt: str) -> str:
    """A prompt as the shipped model is asked it: what follows is its answer."""
    return f"{BEGIN}{USER}{prompt}{ASSISTANT}"


def dated(template: str) -> str:
    """A chat template that is told TODAY where it asks what day it is."""
    if "strftime_now" not in template:
        return template
    codes = (f"|replace('%{each}', '{TODAY.strftime(f'%{each}')}')" for each in "aAbBdHIjmMpSyY")
    # What is passed to a template is made plain data, and its own macros come before functions.
    body = f"{{{{ format{''.join(codes)} }}}}"
    return f"{{% macro strftime_now(format) %}}{body}{{% endmacro %}}{template}"


def document(encoder: Encoder, text: str) -> list[int]:
    """Ids of a text with what stands before it, and without its end."""
    begin = [] if encoder.begin is None else [encoder.begin]
    return begin + encoder.encode(text)


def is_unknown(encoder: Encoder, ids: list[int]) -> bool:
    """Whether none of a document's ids says anything of its text."""
    own = ids[encoder.begin is not None :]
    return encoder.unknown(own) == len(own)


class ShippedEncoder:
    """The tokenizer of the shipped language model."""

    def __init__(self, file: Path = SHIPPED) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(file))
        self._tokenizer.encode_special_tokens = True
        numbers: dict[str, int] = self._tokenizer.get_vocab()
        self.begin, self.end = numbers[BEGIN], numbers[END]
        self._user, self._assistant = numbers[USER], numbers[ASSISTANT]

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def chat(self, messages: Sequence[Message]) -> list[Segment]:
        """Ids as `dialogue` has them, once more for each turn; a system's message is plain text."""
        segments = [Segment([self.begin], False)]
        for role, content in messages:
            ids = self.encode(content)
            if role == "assistant":
                segments += [Segment([self._assistant], False), Segment([*ids, self.end], True)]
            else:
                segments.append(Segment([self._user, *ids] if role == "user" else ids, False))
        return segments

    def dropped(self, text: str) -> int:
        return 0  # It has a token for each byte.

    def unknown(self, ids: Sequence[int]) -> int:
        return 0


@contextmanager
def no_panic() -> Iterator[None]:
    """A panic of the tokenizers' library, which is no Exception, becomes a ValueError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(str(error)) from error


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id of whatever a tokenizer has no token for; None: it has none for that."""
    try:
        with no_panic():
            found = tokenizer.model.tokenize(NOWHERE)
    except Exception:  # It has no other class of errors.
        return None
    # By bytes it would be several.
    return found[0].id if len(found) == 1 else None


class TransformersEncoder:
    """A fast tokenizer of `transformers` and the chat template that it has."""

    def __init__(self, tokenizer: Any, name: str) -> None:
        """``tokenizer``: a PreTrainedTokenizerFast; ``name`` of its model begins a refusal.

        ConfigError where it is none, or ends no text.
        """
        from tokenizers import Tokenizer

        self._where = f"model = {name!r}: its tokenizer"
        if not isinstance(getattr(tokenizer, "backend_tokenizer", None), Tokenizer):
            raise ConfigError(
                f"{self._where} is a {type(tokenizer).__name__}, which says of no token where in "
                "the text it lies; take a model with tokenizer.json"
            )
        if tokenizer.eos_token_id is None:
            raise ConfigError(f"{self._where} has no eos_token, which is to end each text")
        self._templates = tokenizer
        self._tokenizer: Tokenizer = tokenizer.backend_tokenizer
        # A tokenizer.json may have been saved with either.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._letters = Letters(self._tokenizer)
        self.end: int = tokenizer.eos_token_id
        found = unknown_id(self._tokenizer)
        # Of one that also ends texts nobody could tell which it is.
        self._unknown = None if found == self.end else found
        try:
            first = self._encoded("a", begun=True).ids[:1]
        except ConfigError:  # It may know no such letter.
            first = self._encoded("", begun=True).ids[:1]
        self.begin: int | None = next(
            (each for each in first if each == tokenizer.bos_token_id), None
        )

    def encode(self, text: str) -> list[int]:
        self._tokenizer.encode_special_tokens = True
        try:
            return list(self._encoded(text).ids)
        finally:
            self._tokenizer.encode_special_tokens = False

    def _encoded(self, text: str, *, begun: bool = False) -> Any:
        """``begun``: with what the tokenizer puts before and after a text."""
        with self._reading(text):
            return self._tokenizer.encode(text, add_special_tokens=begun)

    def dropped(self, text: str) -> int:
        with self._reading(text):
            return self._letters.dropped(text)

    def unknown(self, ids: Sequence[int]) -> int:
        return 0 if self._unknown is None else ids.count(self._unknown)

    @contextmanager
    def _reading(self, text: str) -> Iterator[None]:
        """ConfigError in place of whatever the tokenizer raises for a text."""
        try:
            with no_panic():
                yield
        except Exception as error:  # It has no other class of errors.
            raise ConfigError(
                f"{self._where} cannot encode {excerpt(repr(text))}: {error}; take one with a "
                "token for what it does not know"
            ) from error

    def chat(self, messages: Sequence[Message]) -> list[Segment] | None:
        """The template's text, encoded at once as the model would be asked, special tokens too.

        Learnt is what a turn of the assistant adds to the text that asks for it.
        """
        if not self._templates.chat_template:
            return None
        whole = self._rendered(messages)
        spans = list(self._spans(messages, whole))
        if not any(start < end for start, end in spans):
            raise ConfigError(
                f"{self._where}: its chat template leaves out what the assistant says; {WITHOUT}"
            )
        if self.dropped(whole):
            # The library's offsets are wrong behind a character that it drops.
            return list(self._apart(whole, spans))
        found = self._encoded(whole)
        segments: list[Segment] = []
        for number, (first, _) in zip(found.ids, found.offsets, strict=True):
            learnt = any(start <= first < end for start, end in spans)
            if not segments or segments[-1].learnt != learnt:
                segments.append(Segment([], learnt))
            segments[-1].ids.append(number)
        return segments

    def _apart(self, whole: str, spans: list[tuple[int, int]]) -> Iterator[Segment]:
        """Parts of a text, each encoded by itself; those in ``spans`` are learnt."""
        edges = [0, *(edge for span in spans for edge in span), len(whole)]
        for place, (start, end) in enumerate(pairwise(edges)):
            if ids := list(self._encoded(whole[start:end]).ids):
                yield Segment(ids, place % 2 == 1)

    def _spans(self, messages: Sequence[Message], whole: str) -> Iterator[tuple[int, int]]:
        """First characters and ends of what the assistant says, in the whole text."""
        for place, message in enumerate(messages):
            if message.role != "assistant":
                continue
            if not place:
                raise ConfigError(
                    f"{self._where}: its chat template cannot be asked by nothing, and the "
                    "dialogue begins with the assistant; take dialogues that a system or a user "
                    f"begins; {WITHOUT}"
                )
            before = self._rendered(messages[:place], asks=True)
            is_last = place == len(messages) - 1
            after = whole if is_last else self._rendered(messages[: place + 1])
            if not after.startswith(before):
                # It asks by the beginning of a thought, which the data have not.
                before = self._rendered(messages[:place])
            if not (after.startswith(before) and whole.startswith(after)):
                several = sum(each.role == "assistant" for each in messages) > 1
                fewer = "take dialogues of one turn; " if several else ""
                raise ConfigError(
                    f"{self._where}: its chat template writes turn {place + 1} of a dialogue in "
                    "another way when another follows or is asked for, so that what is to be "
                    f"learnt cannot be told; {fewer}{WITHOUT}"
                )
            yield len(before), len(after)

    def _rendered(self, messages: Sequence[Message], *, asks: bool = False) -> str:
        """``asks``: with what makes the model answer at its end."""
        turns = [message._asdict() for message in messages]
        try:
            with (
                memory_limit.taking(DIALOGUE_LIMIT_BYTES),
                time_limit.computing(DIALOGUE_LIMIT_S),
            ):
                text: str = self._templates.apply_chat_template(
                    turns,
                    chat_template=dated(self._templates.get_chat_template()),
                    tokenize=False,
                    add_generation_prompt=asks,
                )
            if len(text) > LONGEST_DIALOGUE:
                raise ValueError(f"writes {len(text):,} characters, over {LONGEST_DIALOGUE:,}")
        except Exception as error:  # It is a program, and has every error that those have.
            roles = ", ".join(message.role for message in messages)
            raise ConfigError(
                f"{self._where}: its chat template refuses a dialogue of {roles}: {error}; "
                f"{WITHOUT}"
            ) from error
        return text
