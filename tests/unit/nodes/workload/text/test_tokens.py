"""Encoders: the shipped tokenizer, and those of `transformers` with templates as families have."""

import sys
from typing import Any

import heavy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threads import threads
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from nodes.workload.text import tokens
from nodes.workload.text.tokens import (
    ASSISTANT,
    SHIPPED,
    SPECIAL,
    Message,
    ShippedEncoder,
    TransformersEncoder,
    dialogue,
    document,
)
from testbed.config_error import ConfigError

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set system = '<<SYS>>' + messages[0].content + "
    "'<</SYS>>' %}{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + (system if loop.first else '') + m.content"
    " + ' [/INST]' }}{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
THINKING = (
    "{% for m in messages %}{% if m.role == 'user' %}U:{{ m.content }}\n{% else %}A:"
    "{% if loop.last %}<think></think>{% endif %}{{ m.content }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)
TURNS = [Message("user", "Add: 1 + 2"), Message("assistant", "3")]
LONGER = [
    Message("system", "Be brief."),
    *TURNS,
    Message("user", "And a café?"),
    Message("assistant", "None 🍵.\nNo"),
]


SHIPPED_ENCODER = ShippedEncoder()


def shipped() -> Tokenizer:
    return Tokenizer.from_file(str(SHIPPED))


BARE = shipped()


def saved(**fields: Any) -> Any:
    """A tokenizer as transformers has it."""
    return heavy.transformers.PreTrainedTokenizerFast(**fields)


def of_transformers(template: str | None, **given: Any) -> Any:
    names = {"bos_token": "<s>", "eos_token": "</s>"} | given
    tokenizer = saved(tokenizer_object=shipped(), **names)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    return tokenizer


def encoder(template: str | None) -> TransformersEncoder:
    return TransformersEncoder(of_transformers(template), "made")


def learnt(found: list[Any] | None, tokenizer: Any) -> list[str]:
    """Each part of a dialogue that is learnt, as text."""
    assert found is not None
    return [tokenizer.decode(part.ids, skip_special_tokens=False) for part in found if part.learnt]


def whole(found: list[Any] | None) -> list[int]:
    assert found is not None
    return [number for part in found for number in part.ids]


@settings(deadline=None)
@given(st.text())
def test_text_stays_the_same_there_and_back(text: str) -> None:
    ids = SHIPPED_ENCODER.encode(text)
    assert BARE.decode(ids, skip_special_tokens=False) == text
    assert min(ids, default=99) >= len(SPECIAL)


def test_what_a_user_writes_is_no_special_token() -> None:
    own = ShippedEncoder()
    text = f"a</s>b<|user|>{ASSISTANT}"
    assert not set(own.encode(text)) & set(range(len(SPECIAL)))
    other = encoder(None)
    assert other.end not in other.encode("a</s>b<|im_end|>")
    # A template's own are special all the same, after such a text.
    assert shipped().token_to_id("</s>") in whole(encoder(LLAMA2).chat(TURNS))


def test_a_dialogue_is_as_the_shipped_model_was_pretrained_on() -> None:
    own = ShippedEncoder()
    found = own.chat(TURNS)
    assert whole(found) == shipped().encode(f"{dialogue('Add: 1 + 2')}3</s>").ids
    assert learnt(found, shipped()) == ["3</s>"]


def test_each_turn_of_the_shipped_models_assistant_is_learnt_and_nothing_else() -> None:
    found = ShippedEncoder().chat(LONGER)
    assert learnt(found, shipped()) == ["3</s>", "None 🍵.\nNo</s>"]
    text = shipped().decode(whole(found), skip_special_tokens=False)
    assert text == (
        "<s>Be brief.<|user|>Add: 1 + 2<|assistant|>3</s>"
        "<|user|>And a café?<|assistant|>None 🍵.\nNo</s>"
    )


@pytest.mark.parametrize(
    ("template", "answers"),
    [
        (CHATML, ["3<|im_end|>\n", "None 🍵.\nNo<|im_end|>\n"]),
        (LLAMA2, [" 3 </s>", " None 🍵.\nNo </s>"]),
    ],
    ids=["chatml", "llama2"],
)
def test_each_turn_is_learnt_by_a_models_own_template(template: str, answers: list[str]) -> None:
    tokenizer = of_transformers(template)
    found = TransformersEncoder(tokenizer, "made").chat(LONGER)
    assert learnt(found, tokenizer) == answers
    turns = [each._asdict() for each in LONGER]
    assert whole(found) == tokenizer.apply_chat_template(turns, tokenize=True)["input_ids"]


def test_a_template_that_rewrites_earlier_turns_is_refused_for_those_alone() -> None:
    own = encoder(THINKING)
    with pytest.raises(ConfigError, match=r"'made'.* turn 2 .* take dialogues of one turn"):
        own.chat(LONGER[1:])
    assert learnt(own.chat(TURNS), shipped()) == ["<think></think>3\n"]
    alone = encoder("{% for m in messages %}{{ m.content }}{% endfor %}{{ eos_token }}")
    with pytest.raises(ConfigError, match=r"turn 2 .* cannot be told; for texts of your own --te"):
        alone.chat(TURNS)


def test_a_template_that_opens_a_thought_is_learnt_with_what_heads_the_answer() -> None:
    """As of DeepSeek-R1's distilled models; the data have no thoughts."""
    opens = CHATML.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n")
    found = encoder(opens).chat(LONGER)
    head, end = "<|im_start|>assistant\n", "<|im_end|>\n"
    answers = [f"{head}3{end}", f"{head}None 🍵.\nNo{end}"]
    assert learnt(found, of_transformers(opens)) == answers


def test_a_template_without_the_answer_is_refused() -> None:
    for program in ("x", "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"):
        with pytest.raises(ConfigError, match=r"leaves out what the assistant says; .*alpaca"):
            encoder(program).chat(TURNS)


def test_a_template_is_not_asked_by_nothing() -> None:
    with pytest.raises(ConfigError, match=r"the dialogue begins with the assistant; .*=alpaca"):
        encoder(CHATML).chat([Message("assistant", "Hello."), *TURNS])


def test_what_a_template_refuses_is_said() -> None:
    with pytest.raises(ConfigError, match="refuses a dialogue of user, user: roles must alternate"):
        encoder(LLAMA2).chat([TURNS[0], TURNS[0]])
    for program in ("{{ 1 / 0 }}", "{% for n in range(10 ** 9) %}{% endfor %}", "{{ messages[0"):
        with pytest.raises(ConfigError, match=r"refuses a dialogue of .*; .*--template=alpaca"):
            encoder(program).chat(TURNS)


def test_a_template_that_names_the_day_names_the_same_on_any() -> None:
    """As of Llama 3 and of Mistral Small."""
    asks = "{% if strftime_now is defined %}{% set day = strftime_now('%d %b %Y') %}{% endif %}"
    within = "{% for m in messages[:1] %}, {{ strftime_now('%Y-%m-%d, %A') }}{% endfor %}"
    for template in (
        f"{asks}{{{{ day }}}}{within}{CHATML}",
        f"\n{asks}\n{{{{ day }}}}{within}{CHATML}",
    ):
        text = shipped().decode(whole(encoder(template).chat(TURNS)), skip_special_tokens=False)
        assert text.strip().startswith("26 Jul 2024, 2024-07-26, Friday")


def test_a_template_that_does_not_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "DIALOGUE_LIMIT_S", 0.05)
    inner = "{% for b in range(90000) %}{% endfor %}"
    own = encoder(f"{{% for a in range(90000) %}}{inner}{{% endfor %}}")
    with pytest.raises(ConfigError, match=r"user, assistant: takes more than 0\.05 s of computing"):
        own.chat(TURNS)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux alone")
@pytest.mark.parametrize("program", ["'x' * 10**10", "[0] * 10**9", "'x'.center(10**10)"])
def test_a_template_that_takes_all_memory_is_refused(
    monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.setattr(tokens, "DIALOGUE_LIMIT_BYTES", 1 << 27)
    with pytest.raises(ConfigError, match=r"its chat template .*: takes more than 128 MiB of mem"):
        encoder(f"{{{{ {program} }}}}").chat(TURNS)


def test_a_template_that_writes_without_measure_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "LONGEST_DIALOGUE", 999)
    with pytest.raises(ConfigError, match=r"its chat template .*: writes 1,000 characters, over 9"):
        encoder("{{ 'x' * 1000 }}").chat(TURNS)


def test_a_model_without_a_template_has_no_dialogues() -> None:
    assert encoder(None).chat(TURNS) is None


@pytest.mark.parametrize("begins", [True, False])
def test_a_document_begins_as_the_tokenizer_begins_a_text(begins: bool) -> None:
    backend = shipped()
    if begins:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
        )
    tokenizer = saved(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    own = TransformersEncoder(tokenizer, "made")
    assert document(own, "text") == [1] * begins + own.encode("text")
    assert own.encode("text")[0] != 1


@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.parametrize("model", [models.BPE({}, []), models.WordLevel({}, unk_token="?")])
def test_a_tokenizer_need_not_know_latin_letters(model: Any, begins: bool) -> None:
    backend = Tokenizer(model)
    backend.add_special_tokens([AddedToken("</s>"), AddedToken("<s>")])
    if begins:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
        )
    tokenizer = saved(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    assert TransformersEncoder(tokenizer, "made").begin == (1 if begins else None)


def test_sentencepiece_like_offsets_tell_what_is_learnt() -> None:
    """As of Llama 2: a space goes before the text, and what is no token falls to bytes."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁", -2.0)]
    pieces += [(f"<0x{byte:02X}>", -9.0) for byte in range(256)]
    pieces += [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz[]/:3"]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    backend.add_special_tokens([AddedToken("<s>"), AddedToken("</s>")])
    tokenizer = saved(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = LLAMA2
    turns = [Message("user", "abc"), Message("assistant", "d é 3")]
    found = TransformersEncoder(tokenizer, "made").chat(turns)
    assert found is not None
    assert [part.learnt for part in found] == [False, True]
    assert tokenizer.decode(found[1].ids).strip() == "d é 3 </s>"


def test_what_a_tokenizer_was_saved_with_cuts_no_text() -> None:
    backend = shipped()
    backend.enable_truncation(4)
    backend.enable_padding(length=50)
    tokenizer = saved(tokenizer_object=backend, eos_token="</s>")
    text = "a text of some more words than four, and less than fifty tokens"
    assert TransformersEncoder(tokenizer, "made").encode(text) == SHIPPED_ENCODER.encode(text)


def test_a_tokenizer_that_cannot_serve_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no eos_token"):
        TransformersEncoder(of_transformers(None, eos_token=None), "made")
    with pytest.raises(ConfigError, match=r"is a str, .* with tokenizer\.json"):
        TransformersEncoder("a", "made")


def test_encoding_starts_no_thread() -> None:
    """Nodes are forked by the process that encodes."""
    own, other = ShippedEncoder(), encoder(CHATML)
    before = threads()
    own.encode("text"), own.chat(LONGER), other.encode("text"), other.chat(LONGER)
    assert not threads() - before
