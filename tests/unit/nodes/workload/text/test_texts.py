"""Texts of a user, from files to sequences: nothing is lost, nothing is in two parts."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import heavy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel

import nodes.workload.text
from nodes.workload.text import files
from nodes.workload.text.sequences import IGNORED, Sequences
from nodes.workload.text.texts import UNKNOWN, Text, Texts, held_out, load
from nodes.workload.text.tokens import SHIPPED, ShippedEncoder, TransformersEncoder
from testbed.config_error import ConfigError

ENCODER = ShippedEncoder()
DECODE = Tokenizer.from_file(str(SHIPPED)).decode
DOCS = Path(nodes.workload.text.__file__).parent / "docs.jsonl.xz"


def written(path: Path, records: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def got(path: str, length: int = 32, **given: Any) -> Texts:
    return load(path, ENCODER, length, **{"seed": 0} | given)


def learnt(sequences: Sequences) -> list[str]:
    """What each sequence has to be learnt, as text."""
    return [
        DECODE(targets[targets != IGNORED], skip_special_tokens=False)
        for targets in sequences.targets
    ]


def pairs(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"Add: {n} + 1", "completion": str(n + 1)} | more for n in range(count)]


def test_examples_are_a_sequence_each_and_a_fifth_is_for_the_test(tmp_path: Path) -> None:
    found = got(written(tmp_path / "a.jsonl", pairs(50)))
    assert len(found.train.inputs) == 40 and len(found.test.inputs) == 10
    answers = learnt(found.train) + learnt(found.test)
    assert sorted(answers) == sorted(f"{n + 1}</s>" for n in range(50))
    assert (found.records, found.examples, found.truncated) == (50, 50, 0)
    assert found.left_out == {} and found.columns == "prompt, completion"
    assert found.names == ("",) and not found.groups.any()
    assert found.train.inputs.dtype == found.groups.dtype == np.int64


def test_the_seed_draws_the_order_and_not_the_test(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", pairs(50))
    one, same, other = got(path), got(path), got(path, seed=1)
    for mine, again in zip((*one.train, *one.test), (*same.train, *same.test), strict=True):
        assert np.array_equal(mine, again)
    assert np.array_equal(one.test.inputs, other.test.inputs)
    assert learnt(one.train) != learnt(other.train)
    assert sorted(learnt(one.train)) == sorted(learnt(other.train))
    # Nor does the order of the records draw it.
    turned = got(written(tmp_path / "b.jsonl", pairs(50)[::-1]))
    assert np.array_equal(one.test.inputs, turned.test.inputs)


def test_files_for_the_test_are_the_test(tmp_path: Path) -> None:
    written(tmp_path / "train.jsonl", pairs(6))
    some = heavy.pyarrow.Table.from_pylist(pairs(9)[6:])
    heavy.parquet.write_table(some, tmp_path / "test.parquet")
    written(tmp_path / "dev.jsonl", pairs(3))
    found = got(str(tmp_path))
    assert sorted(learnt(found.test)) == ["7</s>", "8</s>", "9</s>"]
    assert len(found.train.inputs) == 6 and found.left_alone == ("dev.jsonl",)
    assert found.fingerprint == files.fingerprint(files.find(str(tmp_path)))
    held = got(str(tmp_path), validation=True)
    assert len(held.test.inputs) == 1 and len(held.train.inputs) == 5
    assert not {*learnt(held.test)} & {*learnt(found.test), *learnt(held.train)}


def test_records_that_are_in_both_parts_are_counted(tmp_path: Path) -> None:
    """Those of a user's files are trained on and tested as they are."""
    written(tmp_path / "train.jsonl", pairs(9, user="a"))
    written(tmp_path / "test.jsonl", [*pairs(4, user="b"), *pairs(11)[9:]])
    with pytest.raises(ConfigError, match="and no user, which others have"):
        got(str(tmp_path))
    written(tmp_path / "test.jsonl", [*pairs(4, user="b"), *pairs(11, user="b")[9:]])
    assert got(str(tmp_path)).shared == 4
    assert got(str(tmp_path), validation=True).shared == 0
    written(tmp_path / "test.jsonl", [{"prompt": "?", "completion": None, "user": "b"}])
    with pytest.raises(ConfigError, match="left to test; 1 left out: empty; each part needs some"):
        got(str(tmp_path))
    (tmp_path / "test.jsonl").unlink()
    assert got(str(tmp_path)).shared == 0


def test_too_long_examples_are_cut_and_counted_or_left_out_and_counted(tmp_path: Path) -> None:
    records = [*pairs(10), {"prompt": "short", "completion": "word " * 99}]
    records += [{"prompt": "word " * 99, "completion": "a"}, {"prompt": "q", "completion": " "}]
    written(tmp_path / "train.jsonl", [*records, {"prompt": "q", "completion": None}])
    written(tmp_path / "test.jsonl", records[:2])
    found = got(str(tmp_path), 24)
    assert (found.records, found.examples, found.truncated) == (16, 14, 1)
    assert found.truncated_share == pytest.approx(1 / 14)
    assert found.left_out == {"empty": 2, "no answer within the length": 1}
    assert len(found.train.inputs) == 11 == found.examples - 2 - 1
    cut = [text for text in learnt(found.train) if "word" in text]
    assert len(cut) == 1 and not cut[0].endswith("</s>")


def test_all_turns_of_the_assistant_are_learnt(tmp_path: Path) -> None:
    turns = ["a?", "b.", "c?", "d."]
    messages = [
        {"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(turns)
    ]
    written(tmp_path / "train.jsonl", [{"conversations": messages}])
    written(tmp_path / "test.jsonl", [{"conversations": messages[:3]}])
    found = got(str(tmp_path))
    assert learnt(found.train) == ["b.</s>d.</s>"] and learnt(found.test) == ["b.</s>"]


def test_what_a_template_refuses_is_said_with_its_line(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", pairs(9))
    with pytest.raises(ConfigError, match=r"a\.jsonl: line \d: template = 'none': known are"):
        got(path, template="none")


def test_what_a_tokenizer_knows_nothing_of_is_said(tmp_path: Path) -> None:
    """In byte-level BPE there is no such text; others have a token for what they do not know."""

    def of(model: Any) -> TransformersEncoder:
        own = heavy.transformers.PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(model), eos_token="</s>"
        )
        return TransformersEncoder(own, "made")

    path = written(tmp_path / "a.jsonl", [{"text": "b" * n} for n in range(1, 31)])
    refuses = of(WordLevel({"</s>": 0, "a": 1}, unk_token="?"))
    with pytest.raises(ConfigError, match=r"line \d+: model = 'made': .* cannot encode 'b.*'"):
        load(path, refuses, 8, seed=0)
    drops = of(BPE({"</s>": 0, "a": 1}, []))
    with pytest.raises(ValueError, match="30 left out: of no token that the model knows"):
        load(path, drops, 8, seed=0)
    path = written(tmp_path / "b.jsonl", [{"text": f"{'ab'[n % 2]}{n}"} for n in range(60)])
    found = load(path, drops, 8, seed=0)
    assert found.left_out == {UNKNOWN: 30}
    digits = sum(len(str(n)) for n in range(0, 60, 2))
    assert (found.lost.characters, found.lost.records) == (digits, 30)
    asked = [{"prompt": f"a{n}", "input": "bb", "completion": "a"} for n in range(30)]
    found = load(written(tmp_path / "c.jsonl", asked), drops, 8, seed=0, template="plain")
    assert (found.lost.characters, found.lost.records) == (
        sum(len(f"{n}bb") for n in range(30)),
        30,
    )


TEXTS = st.lists(
    st.fixed_dictionaries(
        {"text": st.text("ab é", min_size=1, max_size=30), "user": st.integers(1, 3)}
    ),
    min_size=25,
    max_size=60,
)


@settings(deadline=None, max_examples=40)
@given(TEXTS, st.integers(3, 40))
def test_plain_text_is_whole_and_each_clients_own(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]], length: int
) -> None:
    kept = [record for record in records if record["text"].strip()]
    if len({record["text"] for record in kept}) < 25:
        return
    found = got(written(tmp_path_factory.mktemp("plain") / "a.jsonl", records), length)
    assert found.left_out == ({"empty": n} if (n := len(records) - len(kept)) else {})
    of_client: dict[str, Counter[int]] = {}
    for record in kept:
        ids = [*ENCODER.encode(record["text"]), ENCODER.end]
        of_client.setdefault(str(record["user"]), Counter()).update(ids)
    read: dict[str, Counter[int]] = {}
    for place, name in enumerate(found.names):
        own = found.train.targets[found.groups == place]
        read[name] = Counter(own[own != IGNORED].tolist())
    tested = Counter(found.test.targets[found.test.targets != IGNORED].tolist())
    for name, ids in read.items():
        assert not (ids - Counter({ENCODER.begin: 99})) - of_client[name]
    # All but what stands before a document is read once.
    everything = sum(read.values(), tested)
    del everything[ENCODER.begin]
    assert everything == sum(of_client.values(), Counter())


def test_natural_clients_are_named_in_order(tmp_path: Path) -> None:
    whose = ["zoe"] * 20 + [7] * 10 + [f"ann {number}" for number in range(20)]
    records = [pair | {"client": client} for pair, client in zip(pairs(50), whose, strict=True)]
    found = got(written(tmp_path / "a.jsonl", records))
    assert found.names == tuple(sorted({*map(str, whose)}))
    # Who has few texts keeps them all.
    assert np.bincount(found.groups).tolist() == [8, *[1] * 20, 16]
    assert len(found.test.inputs) == 6


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.text("ab", max_size=3), st.sampled_from(["", "x", "y"])), max_size=60),
    st.integers(0, 5),
)
def test_equal_texts_are_never_on_both_sides(said: list[tuple[str, str]], stream: int) -> None:
    texts = [Text("", content, client) for content, client in said]
    left, held = held_out(texts, stream)
    assert Counter(left) + Counter(held) == Counter(texts)
    assert not {text.content for text in left} & {text.content for text in held}
    different = len({text.content for text in texts})
    assert len({text.content for text in held}) <= different / 5
    assert held or different < 5
    assert held_out(texts[::-1], stream)[1] == held[::-1] or len({*dict(said).values()}) > 1


def test_so_many_training_sequences_as_were_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", pairs(50))
    found = got(path, train_samples=12)
    assert len(found.train.inputs) == len(found.groups) == 12
    assert {*learnt(found.train)} <= {*learnt(got(path).train)}
    assert len({*learnt(found.train)}) == 12
    with pytest.raises(ValueError, match=r"has 40 training sequences .* and 41 were asked for"):
        got(path, train_samples=41)
    few = got(path, test_samples=3)
    assert len(few.test.inputs) == 3 and len(few.train.inputs) == 40 and few.examples == 43
    assert {*learnt(few.test)} <= {*learnt(got(path).test)}
    plain = [{"text": f"{n} words of a text"} for n in range(99)]
    assert len(got(written(tmp_path / "b.jsonl", plain), 8, train_samples=5).train.inputs) == 5
    assert len(got(str(tmp_path / "b.jsonl"), 8, test_samples=2).test.inputs) == 2


def test_packed_examples_are_learnt_as_they_are_alone(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [*pairs(20, user=1), *pairs(5, user=2)])
    alone, found = got(path, 64), got(path, 64, pack=True)
    assert len(found.train.inputs) < len(alone.train.inputs) / 3
    for place in range(2):
        ends = [
            sorted(t for text in learnt(each.train) for t in text.split("</s>") if t)
            for each in (Part(alone, place), Part(found, place))
        ]
        assert ends[0] == ends[1]
    assert len(got(path, 64, pack=True, train_samples=2).train.inputs) == 2


class Part:
    """A client's training sequences."""

    def __init__(self, texts: Texts, place: int) -> None:
        own = texts.groups == place
        self.train = Sequences(texts.train.inputs[own], texts.train.targets[own])


def test_data_with_nothing_to_train_on_or_to_test_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", pairs(4))
    with pytest.raises(ConfigError, match="has 4 records, and none of them is left to test; 5"):
        got(path)
    path = written(tmp_path / "b.jsonl", [{"text": " "}, {"text": None}])
    with pytest.raises(ConfigError, match="none of them is left to train on; 2 left out: empty; 5"):
        got(path)
    path = written(tmp_path / "c.jsonl", pairs(20))
    why = "has 0 training .* of 2 tokens and 0 to test; 20 left out: no answer .*; take longer"
    with pytest.raises(ValueError, match=why):
        got(path, 2)
    path = tmp_path / "blank.jsonl"
    path.write_text("\n\n")
    with pytest.raises(ConfigError, match=r"blank\.jsonl.*: its files have no records"):
        got(path)
    path = written(tmp_path / "d.jsonl", [{}])
    with pytest.raises(ConfigError, match="has columns none; it needs text; or messages"):
        got(path)


def test_a_column_of_later_records_alone_is_seen(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [*pairs(5), *pairs(5, user="x")])
    with pytest.raises(ConfigError, match=r"line 1 has columns prompt, completion, and no user"):
        got(path)
    found = got(written(tmp_path / "b.jsonl", [*pairs(9), *pairs(9, source="x")]))
    assert found.left_alone == ("source",)


def test_the_shipped_documentation_is_such_a_file() -> None:
    found = got(str(DOCS), 256)
    assert found.columns == "text, group"
    assert len(found.names) == 25 and "scipy.stats" in found.names
    assert found.left_out == {} and found.records == 789
