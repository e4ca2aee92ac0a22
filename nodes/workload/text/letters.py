"""Characters of a text that a tokenizer drops unsaid, since it has no token for them.

Only a BPE does so, without a token for what it does not know: other models refuse such a text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # Most runs read no text.
    from tokenizers import Tokenizer

NOWHERE = "\uffff"
"""No character: no vocabulary has it but by its bytes."""


class Letters:
    """Which characters a tokenizer has a token for, looked up once for each."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        from tokenizers.models import BPE
        from tokenizers.pre_tokenizers import ByteLevel

        self._tokenizer = tokenizer
        self._model = tokenizer.model
        self._dropped: dict[str, bool] = {}
        self._drops = isinstance(self._model, BPE) and self._model.unk_token is None
        if self._drops and not self._is_dropped(NOWHERE):
            # It has bytes; of most tokenizers all, and no text need be looked through.
            letters = map(self._is_known, ByteLevel.alphabet())
            self._drops = not (all(letters) or self._has(range(256)))

    def dropped(self, text: str) -> int:
        """How many characters of a text are dropped, or some byte of each."""
        if not self._drops:
            return 0
        return sum(
            count for each, count in Counter(self._normal(text)).items() if self._is_dropped(each)
        )

    def _normal(self, text: str) -> str:
        normalizer = self._tokenizer.normalizer
        return text if normalizer is None else str(normalizer.normalize_str(text))

    def _is_dropped(self, character: str) -> bool:
        found = self._dropped.get(character)
        if found is None:
            splitter, pieces = self._tokenizer.pre_tokenizer, [character]
            if splitter is not None:
                pieces = [piece for piece, _ in splitter.pre_tokenize_str(character)]
            found = not all(self._is_known(letter) for piece in pieces for letter in piece)
            self._dropped[character] = found
        return found

    def _is_known(self, letter: str) -> bool:
        """Whether the model has it, be it within a word or at its end."""
        model, known = self._model, self._tokenizer.token_to_id
        prefix, suffix = model.continuing_subword_prefix or "", model.end_of_word_suffix or ""
        forms = {letter, prefix + letter, letter + suffix, prefix + letter + suffix}
        if any(known(form) is not None for form in forms):
            return True
        return bool(model.byte_fallback) and self._has(letter.encode())

    def _has(self, values: Iterable[int]) -> bool:
        """Whether each byte has a token of its own."""
        return all(self._tokenizer.token_to_id(f"<0x{each:02X}>") is not None for each in values)
