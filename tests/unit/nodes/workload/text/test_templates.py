"""Templates: the text that a model reads, to the letter, and what of it is learnt."""

import heavy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from nodes.workload.text.columns import Dialogue
from nodes.workload.text.templates import TEMPLATES, segments
from nodes.workload.text.tokens import (
    SHIPPED,
    Message,
    Segment,
    ShippedEncoder,
    TransformersEncoder,
)
from testbed.config_error import ConfigError

ENCODER = ShippedEncoder()
DECODE = Tokenizer.from_file(str(SHIPPED)).decode
ONE = (Message("user", "Add."), Message("assistant", "3"))
TURNS = (Message("system", "Be brief."), *ONE, Message("user", "More"), Message("assistant", "4"))
TASK = "Below is an instruction that describes a task"
REQUEST = "Write a response that appropriately completes the request."


class Untemplated(ShippedEncoder):
    """An encoder of a model that has no form for dialogues."""

    def chat(self, messages: object) -> None:  # type: ignore[override]
        return None


UNTEMPLATED = Untemplated()


def shown(found: list[Segment]) -> str:
    """The text, with what is learnt in brackets."""
    texts = [DECODE(part.ids, skip_special_tokens=False) for part in found]
    return "".join(
        f"[{text}]" if part.learnt else text for text, part in zip(texts, found, strict=True)
    )


@pytest.mark.parametrize(
    ("template", "dialogue", "text"),
    [
        (
            "alpaca",
            Dialogue(ONE),
            f"<s>{TASK}. {REQUEST}\n\n### Instruction:\nAdd.\n\n### Response:[3</s>]",
        ),
        (
            "alpaca",
            Dialogue(ONE, "1 and 2"),
            f"<s>{TASK}, paired with an input that provides further context. {REQUEST}\n\n"
            "### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:[3</s>]",
        ),
        (
            "alpaca",
            Dialogue(TURNS),
            "<s>Be brief.\n\n### Instruction:\nAdd.\n\n### Response:[3</s>]"
            "\n\n### Instruction:\nMore\n\n### Response:[4</s>]",
        ),
        (
            "alpaca",
            Dialogue((Message("system", "Be brief."), ONE[1])),
            "<s>Be brief.\n\n### Response:[3</s>]",
        ),
        (
            "flowertune",
            Dialogue(ONE),
            f"<s>{TASK}. {REQUEST}\n### Instruction:\nAdd.\n### Response:[ 3</s>]",
        ),
        (
            "flowertune",
            Dialogue(TURNS),
            "<s>Be brief.\n### Instruction:\nAdd.\n### Response:[ 3</s>]"
            "\n### Instruction:\nMore\n### Response:[ 4</s>]",
        ),
        ("plain", Dialogue(ONE, " 1, 2"), "<s>Add.\n\n 1, 2[3</s>]"),
        ("chat", Dialogue(ONE, "1, 2"), "<s><|user|>Add.\n\n1, 2<|assistant|>[3</s>]"),
    ],
)
def test_a_template_is_to_the_letter(template: str, dialogue: Dialogue, text: str) -> None:
    assert shown(segments(dialogue, ENCODER, template)) == text


def test_the_tokenizers_own_comes_first_and_alpaca_where_it_has_none() -> None:
    assert "<|user|>" in shown(segments(Dialogue(ONE), ENCODER, "auto"))
    assert "### Response:[3</s>]" in shown(segments(Dialogue(ONE), UNTEMPLATED, "auto"))
    with pytest.raises(ConfigError, match="has no chat template; take alpaca, flowertune or plain"):
        segments(Dialogue(ONE), UNTEMPLATED, "chat")
    with pytest.raises(ConfigError, match="template = 'llama': known are auto, chat, alpaca"):
        segments(Dialogue(ONE), ENCODER, "llama")


@settings(deadline=None)
@given(
    st.lists(st.builds(Message, st.sampled_from(["user", "assistant"]), st.text()), max_size=5),
    st.sampled_from(TEMPLATES),
)
def test_all_that_the_assistant_says_is_learnt_and_nothing_else(
    messages: list[Message], template: str
) -> None:
    found = segments(Dialogue(tuple(messages)), ENCODER, template)
    space = " " if template == "flowertune" else ""
    learnt = [DECODE(part.ids, skip_special_tokens=False) for part in found if part.learnt]
    assert learnt == [f"{space}{text}</s>" for role, text in messages if role == "assistant"]


def test_an_answer_that_would_melt_into_its_question_is_encoded_by_itself() -> None:
    assert len(ENCODER.encode("number")) < len(ENCODER.encode("num")) + len(ENCODER.encode("ber"))
    melting = Dialogue((Message("user", "num"), Message("assistant", "ber")))
    assert shown(segments(melting, ENCODER, "plain")) == "<s>num[ber</s>]"


def test_no_space_is_put_before_an_answer_that_goes_on() -> None:
    """As a tokenizer of Llama 2 does before a text that stands by itself."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in {*f"{TASK}{REQUEST}#\n:Input"} - {" "}]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    of = heavy.transformers.PreTrainedTokenizerFast
    tokenizer = of(tokenizer_object=backend, eos_token="</s>")
    encoder = TransformersEncoder(tokenizer, "made")
    one = Dialogue((Message("user", "Add."), Message("assistant", "a")))
    found = [number for part in segments(one, encoder, "alpaca") for number in part.ids]
    text = f"{TASK}. {REQUEST}\n\n### Instruction:\nAdd.\n\n### Response:a"
    assert found == [*encoder.encode(text), encoder.end]


@pytest.mark.parametrize("template", ["alpaca", "flowertune"])
def test_ids_are_those_of_the_whole_text(template: str) -> None:
    """As the templates' authors encode it, so that a model reads what it is asked with."""
    found = segments(Dialogue(ONE), ENCODER, template)
    ids = [number for part in found for number in part.ids]
    assert ids == [ENCODER.begin, *ENCODER.encode(DECODE(ids[1:-1])), ENCODER.end]
