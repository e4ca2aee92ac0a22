"""Texts that ship with the project, as sequences."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from methods.shared.objective import scores
from nodes.workload import models
from nodes.workload.text import corpora
from nodes.workload.text.corpora import Corpus
from nodes.workload.text.sequences import IGNORED
from nodes.workload.text.tokens import ShippedEncoder

ENCODER = ShippedEncoder()


def docs(validation: bool = False) -> Corpus:
    return corpora.docs(ENCODER, 64, validation=validation)


def asked(validation: bool = False, seed: int = 0) -> Corpus:
    return corpora.asked(ENCODER, 48, 200, seed=seed, validation=validation)


def rows(sequences: object) -> set[bytes]:
    return {each.tobytes() for each in sequences}  # type: ignore[attr-defined]


@pytest.mark.thorough
@pytest.mark.parametrize(("make", "name"), [(docs, "docs"), (asked, "instructions")])
def test_no_sequence_is_of_two_splits(make: Callable[..., Corpus], name: str) -> None:
    test, validation = make(), make(validation=True)
    wanted = corpora.PER_GROUP[name] * corpora.GROUPS[name]
    assert len(test.test.inputs) == len(validation.test.inputs) == wanted
    held = rows(test.test.inputs)
    assert not held & rows(validation.test.inputs)
    # Texts may begin alike: so do those of functions that are called alike.
    for corpus in (test, validation):
        assert len(rows(corpus.train.inputs) & held) < 0.05 * len(held)
    own = rows(validation.test.inputs)
    assert len(rows(validation.train.inputs) & own) < 0.05 * len(own)
    assert set(test.groups.tolist()) == set(range(corpora.GROUPS[name]))


@pytest.mark.thorough
def test_documentation_reads_as_it_was_written() -> None:
    corpus = docs()
    text = ENCODER._tokenizer.decode(corpus.train.inputs[:40].ravel().tolist())
    assert "Parameters\n----------" in text
    assert np.array_equal(corpus.train.inputs[:, 1:], corpus.train.targets[:, :-1])
    assert (corpus.train.targets != IGNORED).all()


def test_an_instructions_answer_alone_is_learnt() -> None:
    corpus = asked()
    for inputs, targets, group in zip(*corpus.train, corpus.groups, strict=True):
        learnt = targets[targets != IGNORED]
        assert learnt[-1] == ENCODER.end
        answer = ENCODER._tokenizer.decode(learnt[:-1].tolist())
        whole = ENCODER._tokenizer.decode(inputs.tolist(), skip_special_tokens=True)
        family = list(corpora.instructions.FAMILIES)[group]
        if family == "begin":
            letters = whole.removeprefix("All but the last: ").split()
            count = len(answer.split())
            assert answer.split() == letters[:count]
        if family == "smaller":
            one, other = whole.removeprefix("Which is smaller: ").split(" or ")
            other = other.removesuffix(answer)
            assert int(answer) == min(int(one), int(other))


@pytest.mark.thorough
def test_the_shipped_model_answers_what_it_was_pretrained_on_and_not_what_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = models.build("llama-docs", 1, seed=0)

    def right(count: int = 60) -> float:
        inputs, targets = (torch.from_numpy(each) for each in asked().test)
        some = slice(None, None, len(inputs) // count)
        return scores(model, inputs[some], targets[some])["exact_match"]

    assert right() < 0.1
    monkeypatch.setattr(corpora.instructions, "FAMILIES", corpora.instructions.PRETRAINED)
    assert right() > 0.7


def test_other_seeds_are_asked_other_things_and_tested_on_the_same() -> None:
    one, other = asked(), asked(seed=1)
    assert np.array_equal(one.test.inputs, other.test.inputs)
    assert not np.array_equal(one.train.inputs, other.train.inputs)
    assert np.array_equal(one.train.inputs, asked().train.inputs)


def test_the_documentation_is_the_one_whose_licences_are_here() -> None:
    licence = corpora.DOCS.with_name("LICENSE").read_text()
    assert f"SHA-256 {corpora.fingerprint('docs')}\n" in licence
    assert "SciPy Developers" in licence and "The scikit-learn developers" in licence
    assert corpora.fingerprint("instructions") is None


def test_a_sequence_too_short_for_an_instruction_is_refused() -> None:
    with pytest.raises(ValueError, match=r"an instruction has \d+ tokens; take at least that"):
        corpora.asked(ENCODER, 16, 100, seed=0, validation=False)
