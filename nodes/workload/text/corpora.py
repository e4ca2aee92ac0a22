"""Texts that ship with the project: documentation by sub-package, instructions by family."""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nodes.workload.splits import TEST_SEED
from nodes.workload.text import instructions
from nodes.workload.text.columns import Dialogue
from nodes.workload.text.instructions import Example
from nodes.workload.text.losses import Lost
from nodes.workload.text.sequences import Sequences, example, packed, padded
from nodes.workload.text.templates import segments
from nodes.workload.text.tokens import UNKNOWN, Encoder, Message, document, is_unknown
from testbed.seeds import derive

DOCS = Path(__file__).parent / "docs.jsonl.xz"
LENGTHS = {"docs": 128, "instructions": 48}
"""Tokens of a sequence where nobody says how many."""
GROUPS = {"docs": 25, "instructions": len(instructions.FAMILIES)}
PER_GROUP = {"docs": 4, "instructions": 20}
"""Sequences of each group that models are evaluated on, and as many of the validation split."""
PER_CLIENT = {"docs": 48, "instructions": 64}
"""Sequences of a client where nobody says how many."""


class Corpus(NamedTuple):
    """Sequences to train on, and those that models are evaluated on."""

    train: Sequences
    groups: NDArray[np.int64]
    """Of each sequence to train on."""
    test: Sequences
    told: str | None = None
    """What was read of a user's files, and what was not; of others, what the model cannot read."""


def docs(encoder: Encoder, length: int, *, validation: bool) -> Corpus:
    """Documentation, the same for every seed; a group is a sub-package, such as "scipy.stats".

    Of each group the first texts, in an order drawn once, are the test's and the next ones the
    validation's. No text is in two of these. ValueError where the model can read none.
    """
    texts: dict[str, list[str]] = {}
    lost, unknown = Lost(), 0
    for line in lzma.decompress(DOCS.read_bytes()).splitlines():
        each = json.loads(line)
        texts.setdefault(each["group"], []).append(each["text"])
    wanted = PER_GROUP["docs"]
    train, test, groups = [], [], []
    for number, group in enumerate(sorted(texts)):
        read = []
        for text in texts[group]:
            ids = document(encoder, text)
            if is_unknown(encoder, ids):
                unknown += 1
            else:
                lost.count(encoder, ids, text)
                read.append(ids)
        left = iter(read)
        held = [_filled(left, wanted * length + 1) for _ in ("test", "validation")]
        own = packed([*([] if validation else held[1]), *left], length, encoder.end)
        train.append(own)
        test.append(packed(held[validation], length, encoder.end).first(wanted))
        groups.append(np.full(len(own.inputs), number, np.int64))
    records = sum(map(len, texts.values()))
    said = f"; {unknown:,} left out: {UNKNOWN}" * (unknown > 0) + lost.told()
    tested, trained = Sequences.joined(test), Sequences.joined(train)
    if not len(trained.inputs) or not len(tested.inputs):
        raise ValueError(
            f"its tokenizer makes too little of docs, which has {records:,} records{said}"
        )
    told = f"{records:,} records{said}" if said else None
    return Corpus(trained, np.concatenate(groups), tested, told)


def _filled(documents: Iterator[list[int]], ids: int) -> list[list[int]]:
    """The next documents with so many ids, or all that are left."""
    taken: list[list[int]] = []
    while sum(map(len, taken)) < ids and (found := next(documents, None)) is not None:
        taken.append(found)
    return taken


def asked(encoder: Encoder, length: int, count: int, *, seed: int, validation: bool) -> Corpus:
    """``count`` instructions of all families in turn, drawn from ``seed``; a group is a family.

    The test's and the validation's are the same for every seed, and never trained on. ValueError
    where one is longer than a sequence.
    """
    families = list(instructions.FAMILIES)
    taken: set[Example] = set()
    splits = []
    for split in ("test", "validation"):
        splits.append(_held(split, taken))
        taken.update(splits[-1])
    each = -(-count // len(families))
    own = _drawn(families, each, derive(seed, "training instructions"), taken)
    order = np.arange(each * len(families)).reshape(len(families), each).T.ravel()[:count]
    train = _answered(encoder, [own[place] for place in order], length)
    return Corpus(train, order // each, _answered(encoder, splits[validation], length))


def asked_told(encoder: Encoder) -> str | None:
    """Losses of instructions in words, by those that models are tested on; None: there are none."""
    lost = Lost()
    tested = _held("test", set())
    for each in tested:
        ids = [number for text in each for number in encoder.encode(text)]
        lost.count(encoder, ids, *each)
    said = lost.told()
    return f"{len(tested):,} records to test{said}" if said else None


def _held(split: str, taken: set[Example]) -> list[Example]:
    """Instructions of a split that is never trained on, none of ``taken``."""
    stream = derive(TEST_SEED, "instructions", split)
    return _drawn(list(instructions.FAMILIES), PER_GROUP["instructions"], stream, taken)


def _drawn(families: list[str], each: int, seed: int, taken: set[Example]) -> list[Example]:
    return [one for family in families for one in instructions.draw(family, each, seed, taken)]


def _answered(encoder: Encoder, examples: list[Example], length: int) -> Sequences:
    made = []
    for prompt, answer in examples:
        turns = (Message("user", prompt), Message("assistant", answer))
        parts = segments(Dialogue(turns), encoder, "auto")
        found = example(parts, length)
        if found is None or found.is_truncated:
            most = sum(len(part.ids) for part in parts)
            raise ValueError(f"an instruction has {most} tokens; take at least that")
        made.append(found)
    return padded(made, length, encoder.end)


def fingerprint(name: str) -> str | None:
    """SHA-256 of a corpus' file; None where it is drawn."""
    return hashlib.sha256(DOCS.read_bytes()).hexdigest() if name == "docs" else None
