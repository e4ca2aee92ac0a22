"""Tokenizers of checkpoints: the fast ones that transformers saves, and what is refused."""

import json
from pathlib import Path
from typing import Any

import heavy
import made_causal
import pytest
from threads import threads
from tokenizers import Tokenizer

from nodes.workload import models
from nodes.workload.text.tokens import SHIPPED, Message
from testbed.config_error import ConfigError
from testbed.processes.child import Child

CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEXT = "Return the sum of two arrays."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made_causal.folder_of("llama", tmp_path)
    edit(tmp_path / "config.json", vocab_size=1024)
    saved(tmp_path, eos_token="</s>", chat_template=CHAT)
    return tmp_path


def saved(folder: Path, **fields: Any) -> None:
    own = heavy.transformers.PreTrainedTokenizerFast(tokenizer_file=str(SHIPPED), **fields)
    own.save_pretrained(folder)


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refused(folder: Path, why: str) -> None:
    with pytest.raises(ConfigError, match=f"^model = '{folder}': {why}"):
        models.encoder(str(folder))


def test_ids_are_those_of_the_checkpoints_own_tokenizer(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    path = folder / "config.json"
    path.write_text(path.read_text(), encoding="utf-8-sig")
    encoder = models.encoder(str(folder))
    path.write_text(path.read_text(encoding="utf-8-sig"))
    own = heavy.transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    assert encoder.encode(TEXT) == own(TEXT, add_special_tokens=False)["input_ids"]
    assert (encoder.begin, encoder.end) == (None, own.eos_token_id)
    said = encoder.chat([Message("user", "Sum?"), Message("assistant", TEXT)])
    assert said is not None
    asked, answered = said
    assert (asked.learnt, answered.learnt) == (False, True)
    assert own.decode(asked.ids) == "<|user|>Sum?<|assistant|>"
    assert own.decode(answered.ids) == f"{TEXT}</s>"


@pytest.mark.parametrize(
    ("model_type", "tokenizer_class"),
    [
        ("qwen2", "LlamaTokenizerFast"),  # DeepSeek-R1's distilled models
        ("qwen2", "Qwen2Tokenizer"),
        ("gpt_neox", "GPTNeoXTokenizerFast"),
        ("gemma", "GemmaTokenizer"),
    ],
)
def test_texts_are_split_as_the_file_says_whatever_its_familys_class_does(
    tmp_path: Path, model_type: str, tokenizer_class: str
) -> None:
    made_causal.folder_of(model_type, tmp_path)
    edit(tmp_path / "config.json", vocab_size=1024)
    saved(tmp_path, eos_token="</s>")
    edit(tmp_path / "tokenizer_config.json", tokenizer_class=tokenizer_class)
    own = Tokenizer.from_file(str(SHIPPED))
    encoder = models.encoder(str(tmp_path))
    for text in (TEXT, "In 2026: 12345", "Cafe\u0301, don't  WE'LL"):
        assert encoder.encode(text) == own.encode(text).ids
    assert encoder.end == own.token_to_id("</s>")


def test_an_end_that_a_familys_class_alone_names_is_taken(tmp_path: Path) -> None:
    """As of GPT-2, whose tokenizer_config.json has nothing but a length."""
    made_causal.folder_of("gpt2", tmp_path)
    edit(tmp_path / "config.json", vocab_size=1025)
    backend = Tokenizer.from_file(str(SHIPPED))
    backend.add_special_tokens(["<|endoftext|>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 1024}')
    assert models.encoder(str(tmp_path)).end == 1024


def test_encoding_leaves_no_thread(folder: Path) -> None:
    encoder = models.encoder(str(folder))
    before = threads()
    encoder.encode(TEXT * 100)
    assert not threads() - before


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_checkpoint_without_its_tokenizer_is_refused(folder: Path, file: str) -> None:
    (folder / file).write_text("")
    refused(folder, f"its {file} is empty")
    (folder / file).unlink()
    refused(folder, f"has no {file}; take what save_pretrained of a fast tokenizer writes")
    # For a model of given shapes alone it is not asked for.
    models.check(str(folder), weights=False)


def test_tokenizers_that_do_not_fit_are_refused(folder: Path) -> None:
    edit(folder / "config.json", vocab_size=1000)
    refused(folder, "its tokenizer has a token 1023, and those of the model end at 999; take")
    edit(folder / "config.json", vocab_size=1024)
    (folder / "tokenizer.json").write_text("{")
    refused(folder, "its tokenizer cannot be read")
    saved(folder)
    refused(folder, "its tokenizer has no eos_token")


def test_a_file_at_which_the_library_panics_is_refused(folder: Path) -> None:
    """Whose panic is no Exception."""
    named = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    found = {"id": "<s>", "ids": [1], "tokens": ["<s>"]}
    template = {"type": "TemplateProcessing", "single": [named, text], "pair": [named, text, text]}
    edit(
        folder / "tokenizer.json",
        post_processor={**template, "special_tokens": {"</s>": found}},
    )
    refused(folder, "its tokenizer (cannot|can not) .*")


@pytest.mark.parametrize("escaped", [False, True])
def test_a_file_at_which_the_library_would_abort_is_refused(folder: Path, escaped: bool) -> None:
    """In a child, which it would end."""
    path = folder / "tokenizer.json"
    model = json.loads(path.read_text())["model"]
    edit(path, model=model | {"continuing_subword_prefix": "a"})
    if escaped:
        path.write_text(path.read_text().replace("continuing_", r"\u0063ontinuing_"))
    child = Child("encoder", lambda: refused(folder, "continuing_subword_prefix = 'a' in its tok"))
    assert child.ended(60) == "exited with 0"


def test_pieces_that_begin_with_their_prefix_are_merged(folder: Path) -> None:
    words = {"</s>": 0, "a": 1, "##b": 2, "ab": 3}
    model = {"type": "BPE", "vocab": words, "merges": [["a", "##b"]]}
    edit(
        folder / "tokenizer.json",
        model=model | {"continuing_subword_prefix": "##"},
        added_tokens=[],
        pre_tokenizer=None,
    )
    assert models.encoder(str(folder)).encode("ab") == [3]


def test_code_of_a_tokenizers_own_is_never_run(folder: Path) -> None:
    (folder / "own.py").write_text("raise SystemExit('was run')")
    edit(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["own.Own", "own.Own"]},
        tokenizer_class="Own",
    )
    refused(folder, "its tokenizer cannot be read: .*custom code")
