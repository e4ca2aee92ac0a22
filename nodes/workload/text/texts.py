"""Texts of a user as sequences for training and test, each with the client whose it is."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nodes.workload.splits import HELD_SHARE, TEST_SEED
from nodes.workload.text import columns, files, sequences
from nodes.workload.text.columns import Text
from nodes.workload.text.losses import Lost
from nodes.workload.text.sequences import Example, Sequences
from nodes.workload.text.templates import segments
from nodes.workload.text.tokens import UNKNOWN, Encoder, document, is_unknown
from testbed.config_error import ConfigError
from testbed.seeds import derive

EMPTY = "empty"
UNLEARNABLE = "no answer within the length"


@dataclass(frozen=True)
class Texts:
    """A data set of texts, encoded."""

    train: Sequences
    """In an order drawn from the seed."""
    test: Sequences
    """In an order that is the same for every seed."""
    groups: NDArray[np.int64]
    """Of each training sequence, the place in ``names`` of whose it is."""
    names: tuple[str, ...]
    """Clients that the data name and that have sequences; ("",) where they name none."""
    records: int
    """Read, of training and test."""
    left_out: Mapping[str, int]
    """Records that no sequence is of, by the reason."""
    shared: int
    """Records of the test that are among those to train on, word for word, by the user's files."""
    examples: int
    """Records that were encoded by themselves: all but plain texts, which are packed."""
    truncated: int
    """Examples that were cut at their end."""
    lost: Lost
    columns: str
    """Those that were read."""
    left_alone: tuple[str, ...]
    """Columns and files that were not."""
    fingerprint: str
    """SHA-256 of the files in order, and of their names."""

    @property
    def truncated_share(self) -> float:
        """Share of the examples; 0 of none."""
        return self.truncated / max(1, self.examples)


class _Encoding:
    """Texts on their way to sequences of one length, and the count of what did not get there."""

    def __init__(self, encoder: Encoder, length: int, template: str, *, pack: bool) -> None:
        self.encoder, self.length, self.template, self.pack = encoder, length, template, pack
        self.left_out: Counter[str] = Counter()
        self.examples = self.truncated = 0
        self.lost = Lost()

    def sequences(
        self, texts: Iterable[Text], most: int | None
    ) -> tuple[Sequences, list[str], list[Text]]:
        """Sequences of texts, whose each is, and the texts that it took for ``most`` of them.

        Those of one client lie side by side. There may be a few more than ``most``.
        """
        documents: dict[str, list[list[int]]] = {}
        examples: dict[str, list[Example]] = {}
        tokens: Counter[str] = Counter()
        taken = []
        for text in texts:
            if most is not None and self._rows(tokens, examples) >= most:
                break
            taken.append(text)
            if isinstance(text.content, str):
                with _placed(text):
                    ids = document(self.encoder, text.content)
                if is_unknown(self.encoder, ids):
                    self.left_out[UNKNOWN] += 1
                    continue
                self._count_lost(text, ids, text.content)
                documents.setdefault(text.client, []).append(ids)
                tokens[text.client] += len(ids) + 1
            elif (found := self._example(text)) is not None:
                examples.setdefault(text.client, []).append(found)
        parts = {
            client: sequences.packed_whole(own, self.length, self.encoder.end)
            for client, own in documents.items()
        } | {client: self._padded(own) for client, own in examples.items()}
        owners = [client for client, part in parts.items() for _ in part.inputs]
        empty = np.empty((0, self.length), np.int64)
        return Sequences.joined([Sequences(empty, empty), *parts.values()]), owners, taken

    def _rows(self, tokens: Counter[str], examples: Mapping[str, list[Example]]) -> int:
        """Sequences so far, at least."""
        if examples and self.pack:
            sizes = (sum(len(each.ids) for each in own) for own in examples.values())
            return sum(size // (self.length + 1) for size in sizes)
        packed = sum(max(0, size - 1) // self.length for size in tokens.values())
        return packed + sum(map(len, examples.values()))

    def _example(self, text: Text) -> Example | None:
        assert not isinstance(text.content, str)
        with _placed(text):
            parts = segments(text.content, self.encoder, self.template)
        found = sequences.example(parts, self.length)
        self.examples += 1
        if found is None:
            self.left_out[UNLEARNABLE] += 1
        else:
            self.truncated += found.is_truncated
            said = [each.content for each in text.content.messages]
            self._count_lost(text, found.ids.tolist(), *said, text.content.context)
        return found

    def _count_lost(self, text: Text, ids: list[int], *said: str) -> None:
        with _placed(text):
            self.lost.count(self.encoder, ids, *said)

    def said(self) -> str:
        """Words for what did not get there, to go on with."""
        return "".join(f"; {count:,} left out: {why}" for why, count in self.left_out.items())

    def _padded(self, examples: list[Example]) -> Sequences:
        if self.pack:
            examples = sequences.merged(examples, self.length)
        return sequences.padded(examples, self.length, self.encoder.end)


@contextmanager
def _placed(text: Text) -> Iterator[None]:
    """A ConfigError from within begins with where the text stands."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{text.place}: {error}") from error


def load(
    data_path: str,
    encoder: Encoder,
    length: int,
    *,
    seed: int,
    train_samples: int | None = None,
    test_samples: int | None = None,
    validation: bool = False,
    template: str = "auto",
    pack: bool = False,
) -> Texts:
    """A file's, a folder's or a hub repository's texts, the same for the same arguments.

    Plain texts are packed into sequences of ``length`` ids, those of a client by themselves and
    the last one padded; of dialogues each is a sequence, or as many as fit where ``pack`` asks for
    it. Where no file is for the test, it has a fifth of each client's texts, the same for every
    seed; texts that are equal are all in it or all not. ``validation``: so much of the training
    texts in the test's place.
    ``train_samples``, ``test_samples``: how many sequences of each at most are encoded, of training
    no fewer; None: all.

    ConfigError, with the file, the line and the field, for what cannot be read; ValueError for
    more sequences than there are.
    """
    found = files.find(data_path)
    train, test, form, unread = _texts(found)
    encoding = _Encoding(encoder, length, template, pack=pack)
    records = len(train) + len(test)
    train, test = _not_empty(train, encoding), _not_empty(test, encoding)
    if not found.test:
        train, test = held_out(train, TEST_SEED)
    if validation:
        train, test = held_out(train, derive(TEST_SEED, "validation texts"))
    for name, part in (("train on", train), ("test", test)):
        if not part:
            own = found.test and not validation
            right = "each part needs some" if own else f"{HELD_SHARE} different ones are the least"
            raise ConfigError(
                f"{found.where}: has {records} records, and none of them is left to {name}"
                f"{encoding.said()}; {right}"
            )
    trained_on = set(map(_digest, train)) if found.test else set()
    order = np.random.default_rng(derive(seed, "training texts")).permutation(len(train))
    trained, owners, _ = encoding.sequences((train[place] for place in order), train_samples)
    tested, _, _ = encoding.sequences(sorted(test, key=_digest), test_samples)
    rows = np.random.default_rng(derive(seed, "training sequences")).permutation(len(owners))
    rows = rows[:train_samples]
    names = sorted({owners[row] for row in rows})
    places = {name: place for place, name in enumerate(names)}
    order_of_test = np.random.default_rng(TEST_SEED).permutation(len(tested.inputs))[:test_samples]
    if not len(rows) or not len(tested.inputs) or len(rows) < (train_samples or 0):
        raise ValueError(
            f"{found.where}: has {len(rows)} training sequences of {length} tokens and "
            f"{len(tested.inputs)} to test"
            + (f", and {train_samples} were asked for" if train_samples else "")
            + encoding.said()
            + "; take longer sequences, or a shorter template" * (UNLEARNABLE in encoding.left_out)
        )
    return Texts(
        train=Sequences(trained.inputs[rows], trained.targets[rows]),
        test=Sequences(tested.inputs[order_of_test], tested.targets[order_of_test]),
        groups=np.array([places[owners[row]] for row in rows], np.int64),
        names=tuple(names),
        records=records,
        left_out=dict(encoding.left_out),
        shared=sum(_digest(text) in trained_on for text in test),
        examples=encoding.examples,
        truncated=encoding.truncated,
        lost=encoding.lost,
        columns=str(form),
        left_alone=(*unread, *map(found.name, found.left_alone)),
        fingerprint=files.fingerprint(found),
    )


def _texts(found: files.Files) -> tuple[list[Text], list[Text], columns.Form, list[str]]:
    """Texts to train on and to test, the columns that were read, and those that were not."""
    several = [
        list(files.records(found, part, columns.KNOWN)) for part in (found.train, found.test)
    ]
    if not any(several):
        raise ConfigError(f"{found.where}: its files have no records")
    # Of all records, since a column may be in later ones alone.
    there = dict.fromkeys(name for part in several for record in part for name in record.fields)
    form = columns.form_of(there, found.where)
    train, test = ([columns.read(record, form) for record in part] for part in several)
    return train, test, form, [name for name in there if name not in form]


def _not_empty(texts: list[Text], encoding: _Encoding) -> list[Text]:
    kept = [text for text in texts if not text.is_empty]
    if len(kept) < len(texts):
        encoding.left_out[EMPTY] += len(texts) - len(kept)
    return kept


def held_out(texts: Sequence[Text], stream: int) -> tuple[list[Text], list[Text]]:
    """Texts that are left, and a fifth of each client's different ones, drawn by their contents.

    Where no client has as many as five, a fifth of all. Equal texts are on one side.
    """
    first: dict[str, str] = {}
    for text in texts:
        first.setdefault(_digest(text, stream), text.client)
    by_client: dict[str, list[str]] = {}
    for digest in sorted(first):
        by_client.setdefault(first[digest], []).append(digest)
    held = {digest for own in by_client.values() for digest in own[HELD_SHARE - 1 :: HELD_SHARE]}
    held = held or set(sorted(first)[HELD_SHARE - 1 :: HELD_SHARE])
    sides: tuple[list[Text], list[Text]] = [], []
    for text in texts:
        sides[_digest(text, stream) in held].append(text)
    return sides


def _digest(text: Text, stream: int = 0) -> str:
    content = json.dumps(text.content)
    return hashlib.blake2b(f"{stream} {content}".encode(), digest_size=16).hexdigest()
