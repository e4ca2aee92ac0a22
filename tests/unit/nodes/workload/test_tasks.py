"""Tasks: which model and data fit, and what they say of themselves."""

import functools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nodes.program import FineTuning
from nodes.workload import tasks
from nodes.workload.text.tokens import ShippedEncoder
from testbed.config_error import ConfigError
from testbed.run.config import RunConfig

TEXT: dict[str, Any] = {"model": "llama-docs", "dataset": "docs"}


@functools.cache
def ids(text: str) -> list[int]:
    return REAL(SHIPPED, text)


REAL, SHIPPED = ShippedEncoder.encode, ShippedEncoder()


@pytest.fixture(autouse=True)
def encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The documentation is the same in every test, and encoding it takes most of their time."""
    monkeypatch.setattr(ShippedEncoder, "encode", lambda _, text: ids(text).copy())


def task(clients: int = 20, **fields: Any) -> tasks.Task:
    return tasks.of(RunConfig(**fields), clients)


def test_text_is_for_models_that_read_it_and_images_for_the_others() -> None:
    with pytest.raises(ConfigError, match=r"dataset = 'digits': has images, and model llama-docs"):
        task(model="llama-docs")
    with pytest.raises(ConfigError, match=r"'docs': has text, and model vit-glyphs reads images;"):
        task(dataset="docs")
    with pytest.raises(ConfigError, match=r"unknown dataset 'doc'.*docs"):
        task(dataset="doc")


def test_fields_of_the_other_kind_are_refused() -> None:
    with pytest.raises(ConfigError, match="sequence_length = 64: dataset digits has images"):
        task(sequence_length=64)
    with pytest.raises(ConfigError, match="partition = 'natural': nobody is named as the owner"):
        task(partition="natural")
    with pytest.raises(ConfigError, match="data_path = 'x': dataset docs has texts of its own"):
        task(**TEXT, data_path="x")


@pytest.mark.parametrize("length", [7, 257])
def test_a_sequence_is_of_tokens_that_the_model_reads_at_once(length: int) -> None:
    with pytest.raises(ConfigError, match=f"sequence_length = {length}: must be 8 to 256, the"):
        task(**TEXT, sequence_length=length)


def test_a_partition_that_nobody_asked_for_is_the_datas_own() -> None:
    assert task().partition == "dirichlet"
    assert task(**TEXT).partition == "natural"
    assert task(model="llama-docs", dataset="instructions").partition == "pathological"
    # Two families each would leave some out.
    assert task(4, model="llama-docs", dataset="instructions").partition == "natural"
    asked = task(4, model="llama-docs", dataset="instructions", partition="iid")
    assert asked.partition == "iid"


@pytest.mark.parametrize("dataset", ["docs", "instructions"])
@pytest.mark.parametrize("compute", ["real", "modelled"])
def test_sizes_are_those_of_what_is_loaded(dataset: str, compute: Any) -> None:
    found = task(model="llama-docs", dataset=dataset, compute=compute, sequence_length=32)
    data = found.load(60)
    assert data.train_inputs.shape == data.train_targets.shape == (60, 32)
    assert data.train_inputs.dtype == data.train_targets.dtype == np.int64
    assert data.outputs == found.outputs == 1024 > data.train_inputs.max()
    # As many of each group as can be.
    counts = np.bincount(data.train_groups, minlength=found.groups)
    assert len(counts) == found.groups and np.ptp(counts) <= 1
    if compute == "real":
        assert len(data.test_inputs) == len(data.test_targets) == found.test_size


def test_a_run_of_text_hands_out_its_sequences_whole_clients_apart() -> None:
    program = FineTuning(RunConfig(**TEXT, method="fedavg"), 20)
    assert (program.task.partition, program.task.length) == ("natural", 128)
    program.prepare()
    groups = program._data.train_groups
    owners = [set(groups[own].tolist()) for own in program._shards]
    assert sum(map(len, owners)) == len(set().union(*owners)) == 25
    shard = program._shard(1)
    assert shard.inputs.dtype == torch.int64 and shard.inputs.shape == shard.targets.shape
    # What is to be said next is what stands there next.
    assert torch.equal(shard.inputs[:, 1:], shard.targets[:, :-1])


def test_more_clients_than_documentation_are_told_what_has_more() -> None:
    with pytest.raises(ConfigError, match=r"clients = 900: docs has \d+ training sequences, .*"):
        FineTuning(RunConfig(**TEXT), 900)


def test_glyphs_are_no_public_text() -> None:
    config = RunConfig(**TEXT, method="kdfft", options={"public_source": "glyphs"})
    with pytest.raises(ConfigError, match="public inputs that are drawn are images"):
        FineTuning(config, 4).prepare()


def test_what_a_tokenizer_drops_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = ("docs", "instructions")
    assert [task(model="llama-docs", dataset=each).told for each in ours] == [None, None]
    monkeypatch.setattr(ShippedEncoder, "dropped", lambda self, text: text.count("7"))
    for each, records in zip(ours, ("789 records", "200 records to test"), strict=True):
        said = (
            r"; [\d,]+ characters of [\d,]+ records have no token of the model's and were dropped"
        )
        assert re.fullmatch(records + said, str(task(model="llama-docs", dataset=each).told))
    lines = (json.dumps({"text": f"the {n}"}) for n in range(80))
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    own = {"model": "llama-docs", "dataset": "text", "data_path": str(tmp_path)}
    said = "; 18 characters of 17 records have no token of the model's and were dropped"
    assert said in str(task(**own, sequence_length=8).told)


def test_tokens_that_stand_for_what_a_model_does_not_know_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = set(ShippedEncoder().encode("the"))
    monkeypatch.setattr(
        ShippedEncoder, "unknown", lambda self, ids: sum(each not in known for each in ids)
    )
    said = r"; [\d,]+ of [\d,]+ tokens are the one for what the model does not know"
    for each in ("docs", "instructions"):
        assert re.search(said, str(task(model="llama-docs", dataset=each).told))
    lines = [*(f"the{' Q' * n}" for n in range(80)), "QQ", "Z"]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in lines))
    own = {"model": "llama-docs", "dataset": "text", "data_path": str(tmp_path)}
    told = str(task(**own, sequence_length=8).told)
    assert re.search(said, told) and "; 2 left out: of no token that the model knows" in told


def test_a_model_that_reads_nothing_of_the_documentation_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would learn the end of texts, and be right."""
    monkeypatch.setattr(ShippedEncoder, "unknown", lambda self, ids: len(ids))
    with pytest.raises(ConfigError, match=r"model = 'llama-docs': .* left out: of no token that"):
        task(**TEXT)


def test_texts_of_a_user_are_read_and_told_of(tmp_path: Path) -> None:
    records = [
        {"instruction": f"Add {n} and 1.", "output": str(n + 1), "user": f"u{n % 3}"}
        for n in range(60)
    ]
    records.append({"instruction": "Say " + "more " * 99, "output": "no", "user": "u0"})
    lines = "\r\n".join(json.dumps(record) for record in records)
    (tmp_path / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    own = {"model": "llama-docs", "dataset": "text", "data_path": str(tmp_path)}
    found = task(**own, sequence_length=64)
    assert found.groups == 3 and found.partition == "natural" and found.fingerprint()
    assert found.told is not None and "61 records, by instruction, output, user" in found.told
    assert "were cut" in found.told and "1 left out: no answer within the length" in found.told
    assert found.train_size == 60 - found.test_size
    program = FineTuning(RunConfig(**own, sequence_length=64), 3)
    program.prepare()
    assert sorted(len(set(program._data.train_groups[own])) for own in program._shards) == [1, 1, 1]
    (tmp_path / "test.jsonl").write_text("\n".join(lines.splitlines()[5:9]))
    assert "; 4 of the test's records are trained on too" in str(
        task(**own, sequence_length=64).told
    )


def test_plain_texts_have_no_exact_match_and_dialogues_have_one(tmp_path: Path) -> None:
    """Whose last sequence is padded, as most are."""
    kinds = {"text": {}, "prompt": {"completion": "7"}}
    for (name, more), exact in zip(kinds.items(), (False, True), strict=True):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({name: "word " * n, **more}) + "\n" for n in range(40)))
        found = task(model="llama-docs", dataset="text", data_path=str(path))
        assert ("exact_match" in found.metrics) == exact


def test_texts_of_a_user_are_somewhere() -> None:
    with pytest.raises(ConfigError, match="dataset = 'text': are texts of your own; say where"):
        task(model="llama-docs", dataset="text")
    with pytest.raises(ConfigError, match=r"'text': .*nowhere.*"):
        task(model="llama-docs", dataset="text", data_path="/nowhere at all")
    for field, value in (("template", "alpaca"), ("pack", True)):
        with pytest.raises(ConfigError, match=f"{field} = {value!r}: dataset docs has texts of"):
            task(**TEXT, **{field: value})
    with pytest.raises(ConfigError, match="pack = true: dataset digits has images"):
        task(pack=True)
