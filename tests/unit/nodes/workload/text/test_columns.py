"""Columns: which sets of them are read, and what of a value is refused with its field."""

from typing import Any

import pytest

from nodes.workload.text.columns import Dialogue, Form, form_of, read
from nodes.workload.text.files import Record
from nodes.workload.text.tokens import Message
from testbed.config_error import ConfigError

ASKED = [Message("user", "q"), Message("assistant", "a")]


def said(fields: dict[str, Any]) -> Any:
    return read(Record("a.jsonl: line 7", fields), form_of(fields, "data")).content


@pytest.mark.parametrize(
    ("fields", "content"),
    [
        ({"text": "t"}, "t"),
        ({"text": "t", "label": 3}, "t"),
        ({"prompt": "q", "completion": "a"}, Dialogue((*ASKED,))),
        ({"question": "q", "answer": "a"}, Dialogue((*ASKED,))),
        ({"instruction": "q", "input": "", "output": "a"}, Dialogue((*ASKED,))),
        ({"instruction": "q", "input": None, "output": "a"}, Dialogue((*ASKED,))),
        ({"instruction": "q", "input": "c", "output": "a", "text": "x"}, Dialogue((*ASKED,), "c")),
        ({"instruction": "q", "context": "c", "response": "a"}, Dialogue((*ASKED,), "c")),
        ({"input": "q", "output": "a"}, Dialogue((*ASKED,))),
        (
            {"system_prompt": "s", "question": "q", "response": "a"},
            Dialogue((Message("system", "s"), *ASKED)),
        ),
        (
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
            Dialogue((*ASKED,)),
        ),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            Dialogue((*ASKED,)),
        ),
        ({"messages": None}, Dialogue(())),
        ({"text": None}, ""),
    ],
)
def test_a_record_says_what_its_columns_hold(fields: dict[str, Any], content: Any) -> None:
    assert said(fields) == content


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        (["review", "label"], "data has columns review, label; it needs text; or messages, or"),
        ([], "data has columns none; it needs"),
        (["prompt", "chosen", "rejected"], "it needs"),
        (["instruction"], "it needs"),
        (["prompt", "answer", "response"], "answer, response, each of which may be .*; keep one"),
        (["messages", "conversations"], "has columns messages, conversations; keep one of them"),
    ],
)
def test_columns_that_say_nothing_or_too_much_are_refused(columns: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        form_of(columns, "data")


@pytest.mark.parametrize("name", ["client", "client_id", "group", "user"])
def test_whose_a_record_is_stands_in_a_column(name: str) -> None:
    form = form_of(["text", name], "data")
    assert form == Form(text="text", client=name) and str(form) == f"text, {name}"
    for value, client in ((7, "7"), ("ann", "ann")):
        assert read(Record("line 1", {"text": "t", name: value}), form).client == client


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"text": 3}, "text = 3: must be text"),
        ({"text": float("nan")}, "text = NaN: must be text"),
        ({"text": ["a"]}, r'text = \["a"\]: must be text'),
        ({"text": {"bytes": "b'x'"}}, "text = {.*: must be text"),
        ({"text": "a\ud800b"}, r"text has '\\ud800' at character 2, which is half of one"),
        ({"text": "t", "user": None}, "user = null: must be a name or a whole number"),
        ({"text": "t", "user": " "}, 'user = " ": must be a name'),
        ({"text": "t", "user": True}, "user = true: must be a name"),
        ({"text": "t", "user": 1.5}, "user = 1.5: must be a name"),
        ({"prompt": "q", "completion": 1}, "completion = 1: must be text"),
        ({"instruction": "q", "input": 1, "output": "a"}, "input = 1: must be text"),
        ({"messages": "hi"}, 'messages = "hi": must be a list of messages'),
        ({"messages": ["hi"]}, r'messages\[0\] = "hi": must have role and content, or from'),
        ({"messages": [[]]}, r"messages\[0\] = \[\]: must have role"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\] = .*: must have role and content"),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            r'messages\[0\]\.role = "tool": known are assistant, gpt, human',
        ),
        ({"messages": [{"role": None, "content": "x"}]}, r"messages\[0\]\.role = null: known"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            r"messages\[0\]\.content = .*image.*: must be text",
        ),
    ],
)
def test_a_value_of_another_kind_is_refused_with_its_field(
    fields: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=f"^a.jsonl: line 7: {reason}"):
        said(fields)


def test_a_long_value_is_shown_in_part() -> None:
    with pytest.raises(ConfigError, match=r"text = \[1, 1.*…: must be text") as caught:
        said({"text": [1] * 10_000})
    assert len(str(caught.value)) < 200


def test_a_record_that_lacks_a_column_of_the_others_is_refused() -> None:
    form = form_of(["text", "user"], "data")
    with pytest.raises(ConfigError, match="line 9 has columns body, user, and no text, which"):
        read(Record("line 9", {"body": "t", "user": 1}), form)
    with pytest.raises(ConfigError, match="line 9 has columns text, and no user, which others"):
        read(Record("line 9", {"text": "t"}), form)
    # What may be empty may be missing.
    form = form_of(["instruction", "input", "output"], "data")
    found = read(Record("line 9", {"instruction": "q", "output": "a"}), form)
    assert found.content == Dialogue((*ASKED,))
