"""Letters: what a tokenizer drops unsaid is counted, and moves nothing that is learnt."""

from typing import Any

import heavy
import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from nodes.workload.text.letters import Letters
from nodes.workload.text.tokens import SHIPPED, Message, TransformersEncoder, unknown_id

WORDS = {"</s>": 0, "a": 1, "b": 2, "ab": 3, "é": 4, ":": 5, "▁": 6}
BYTES = {f"<0x{byte:02X}>": 7 + byte for byte in range(256)}


def bpe(**fields: Any) -> Tokenizer:
    made = Tokenizer(models.BPE(**{"vocab": WORDS, "merges": [("a", "b")], **fields}))
    made.add_special_tokens([AddedToken("</s>")])
    return made


def test_each_character_without_a_token_is_counted() -> None:
    plain = Letters(bpe())
    assert [plain.dropped(text) for text in ("abéa", "", "axbxy a", "e\u0301")] == [0, 0, 4, 2]


def test_what_becomes_a_token_another_way_is_not() -> None:
    normal = bpe()
    normal.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    assert Letters(normal).dropped("Ae\u0301É") == 0
    spaced = bpe()
    spaced.pre_tokenizer = pre_tokenizers.Metaspace()
    assert Letters(spaced).dropped("ab ab") == 0
    split = bpe()
    split.pre_tokenizer = pre_tokenizers.Whitespace()
    assert Letters(split).dropped("ab\n a☃b") == 1
    ends = bpe(vocab=WORDS | {"y</w>": 7}, end_of_word_suffix="</w>")
    assert Letters(ends).dropped("ay") == 0


@pytest.mark.parametrize(
    "tokenizer",
    [
        bpe(vocab=WORDS | {"?": 7}, unk_token="?"),
        bpe(vocab=WORDS | BYTES, byte_fallback=True),
        Tokenizer.from_file(str(SHIPPED)),
        Tokenizer(models.WordLevel({"?": 0}, unk_token="?")),
    ],
    ids=["unknown", "bytes", "byte-level", "words"],
)
def test_tokenizers_that_drop_nothing_count_nothing(tokenizer: Tokenizer) -> None:
    assert Letters(tokenizer).dropped("ab\uffff☃ \x00y🍵") == 0
    assert tokenizer.encode("☃").ids


def test_bytes_that_lack_are_told_too() -> None:
    """As of a byte-level BPE that was trained without its whole alphabet."""
    few = bpe(vocab={"a": 0, "Ã": 1, "©": 2}, merges=[])
    few.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert Letters(few).dropped("aéè☃") == 2
    fallen = bpe(vocab=WORDS | {"<0xC3>": 7, "<0xA8>": 8}, byte_fallback=True)
    assert Letters(fallen).dropped("èö") == 1


def test_a_dropped_character_moves_nothing_that_is_learnt() -> None:
    """Of whose tokenizer the library gives offsets as if it were not in the text."""
    tokenizer = heavy.transformers.PreTrainedTokenizerFast(tokenizer_object=bpe(), eos_token="</s>")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}:{% else %}"
        "{{ m.content }}</s>{% endif %}{% endfor %}"
    )
    own = TransformersEncoder(tokenizer, "made")
    for asked in ("a", "axxxx"):
        turns = [Message("user", asked), Message("assistant", "é"), Message("user", "b")]
        found = own.chat([*turns, Message("assistant", "bxa")])
        assert [tuple(part) for part in found or []] == [
            ([1, 5], False),
            ([4, 0], True),
            ([2, 5], False),
            ([2, 1, 0], True),
        ]


@pytest.mark.parametrize(
    ("tokenizer", "found"),
    [
        (bpe(), None),
        (bpe(vocab=WORDS | {"?": 7}, unk_token="?"), 7),
        (bpe(unk_token="?"), None),
        (Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?")), 1),
        (Tokenizer(models.WordPiece({"a": 0, "?": 1}, unk_token="?")), 1),
        (Tokenizer(models.Unigram([("a", -1.0), ("?", -2.0)], unk_id=1)), 1),
        (Tokenizer(models.Unigram([("a", -1.0)])), None),
        (Tokenizer.from_file(str(SHIPPED)), None),
    ],
)
def test_the_token_for_what_is_unknown_is_found(tokenizer: Tokenizer, found: int | None) -> None:
    assert unknown_id(tokenizer) == found
    if found is not None:
        assert tokenizer.encode("☃").ids == [found]


def test_a_token_that_also_ends_texts_says_nothing() -> None:
    """As in files of GPT-2's family."""
    for end, count in (("</s>", 2), ("?", 0)):
        made = bpe(vocab=WORDS | {"?": 7}, unk_token="?")
        own = heavy.transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token=end)
        assert TransformersEncoder(own, "made").unknown([1, 7, 7]) == count
