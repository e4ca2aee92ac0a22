"""Language models through the command line: the shipped one, and a user's own with own texts."""

import json
import shutil
import time
import tomllib
from pathlib import Path

import pytest
from made_causal import folder_of
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

LORA_BYTES = 4 * 4 * 2 * 8 * (128 + 128)
"""float32; four blocks, A and B of rank 8 on query and value of 128 x 128."""
SOON_S = 60.0
"""A refusal on a loaded machine; the hub's own client goes on asking for minutes."""
FLAGS = ("--links=loopback", "--profile=unlimited", "--clients=2", "--no-calibrate")


@pytest.fixture(scope="module")
def docs(launch_for_module):
    run = launch_for_module(
        *FLAGS, "--model=llama-docs", "--dataset=docs", "--rounds=2", "--train-samples=128"
    )
    assert run.finish() == 0, run.describe()
    return run


def test_documentation_is_learnt_and_adapters_alone_are_sent(docs):
    first, last = (docs.summary["metrics"][when]["perplexity"] for when in ("initial", "final"))
    assert 10 < first < 20 and last < first
    assert docs.summary["total_parameters"] == 922_752 + 16_384
    assert docs.summary["trainable_parameters"] == 16_384
    for way in ("up", "down"):
        assert docs.summary["bytes"]["by_kind"]["adapter"][way] == 2 * 2 * LORA_BYTES
    assert docs.summary["evaluated"] == {"images": 100, "of": 100, "split": "test"}


def test_what_was_left_to_a_default_is_in_its_configuration(docs):
    config = tomllib.loads((docs.folder / "config.toml").read_text())
    assert config["partition"] == "natural" and config["sequence_length"] == 128
    assert "perplexity" in docs.stdout and (docs.folder / "report.html").stat().st_size > 10_000


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> tuple[Path, Path]:
    """A small GPT-2 with a byte-level tokenizer, and questions with their answers."""
    model, data = tmp_path_factory.mktemp("own model"), tmp_path_factory.mktemp("own [1] texts")
    folder_of("gpt2", model, n_embd=32, n_head=4, n_layer=2, n_positions=64)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[:94]
    vocabulary = {word: place for place, word in enumerate(["<p>", "<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<p>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<p>",
        chat_template=(
            "{% for m in messages %}{{ '<s>' if m.role == 'user' }}{{ m.content }}"
            "{{ '</s>' if m.role == 'assistant' else '=' }}{% endfor %}"
        ),
    ).save_pretrained(model)
    records = [
        {"messages": [{"role": "user", "content": f"{n}+1"}, {"role": "assistant", "content": "x"}]}
        | {"client": f"c{n % 2}"}
        for n in range(60)
    ]
    (data / "train.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in records))
    return model, data


def test_a_model_and_texts_of_a_users_own(launch, own):
    model, data = own
    flags = (f"--model={model}", "--dataset=text", f"--data-path={data}", "--rounds=3")
    run = launch(*FLAGS, *flags, "--sequence-length=16", "--set=learning_rate=0.05")
    assert run.finish() == 0, run.describe()
    assert "texts: 60 records, by messages, client; 0 of 60 dialogues" in run.stdout
    first, last = (run.summary["metrics"][when] for when in ("initial", "final"))
    assert last["loss"] < first["loss"] and last["exact_match"] >= first["exact_match"]
    samples = sorted(row["samples"] for row in run.summary["per_client"])
    assert samples == [24, 24]


@pytest.mark.thorough
def test_a_checkpoint_in_bfloat16_is_trained_and_sent_in_it(launch, own, tmp_path):
    model, data = shutil.copytree(own[0], tmp_path / "bf16"), own[1]
    state = load_file(model / "model.safetensors")
    save_file({name: each.bfloat16() for name, each in state.items()}, model / "model.safetensors")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    flags = (f"--model={model}", "--dataset=text", f"--data-path={data}", "--rounds=2")
    run = launch(
        *FLAGS, *flags, "--sequence-length=16", "--method=fedavg", "--set=learning_rate=0.01"
    )
    assert run.finish() == 0, run.describe()
    first, last = (run.summary["metrics"][when]["loss"] for when in ("initial", "final"))
    assert last < first
    assert run.summary["bytes"]["payload"]["up"] == 2 * 2 * 2 * run.summary["total_parameters"]


def test_weights_that_are_not_finite_are_refused_before_anything_starts(launch, own, tmp_path):
    model, data = shutil.copytree(own[0], tmp_path / "diverged"), own[1]
    state = load_file(model / "model.safetensors")
    wrong = max(state)
    state[wrong].view(-1)[3] = float("nan")
    save_file(state, model / "model.safetensors")
    run = launch(*FLAGS, f"--model={model}", "--dataset=text", f"--data-path={data}")
    assert run.finish() == 2, run.describe()
    assert f"has {wrong}, which holds values that are not finite" in run.stderr
    assert not run.out.exists()


@pytest.fixture
def home(own, tmp_path, monkeypatch) -> Path:
    """The hub's cache with both, and no way to the hub but a port at which nobody listens."""
    for kind, folder in zip(("models--someone--tiny", "datasets--someone--sums"), own, strict=True):
        cached = tmp_path / "hub" / kind
        (cached / "refs").mkdir(parents=True)
        (cached / "refs" / "main").write_text("0" * 40)
        shutil.copytree(folder, cached / "snapshots" / ("0" * 40))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    return tmp_path


@pytest.mark.thorough
def test_names_of_the_hub_are_found_in_its_cache_with_no_network(launch, home, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    flags = ("--model=someone/tiny", "--dataset=text", "--data-path=someone/sums")
    run = launch(*FLAGS, *flags, "--rounds=1", "--sequence-length=16")
    assert run.finish() == 0, run.describe()
    assert "texts: 60 records, by messages, client" in run.stdout
    config = tomllib.loads((run.folder / "config.toml").read_text())
    assert (config["model"], config["data_path"]) == ("someone/tiny", "someone/sums")


@pytest.mark.parametrize("offline", ["1", pytest.param("0", marks=pytest.mark.thorough)])
@pytest.mark.parametrize(
    ("model", "data", "named", "right"),
    [
        ("someone/none", "someone/sums", "model = 'someone/none'", "--model=FOLDER"),
        ("someone/tiny", "someone/none", "data_path = 'someone/none'", "--data-path=FOLDER"),
    ],
)
def test_a_name_that_is_not_in_the_cache_is_refused_soon(
    launch, home, monkeypatch, offline, model, data, named, right
):
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    began = time.monotonic()
    run = launch(*FLAGS, f"--model={model}", "--dataset=text", f"--data-path={data}")
    assert run.finish() == 2, run.describe()
    assert time.monotonic() - began < SOON_S
    assert f"{named}: the hub cannot be reached, and nothing of it is cached: take {right}" in (
        run.stderr
    )
    assert not run.out.exists()
