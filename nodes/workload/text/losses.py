"""Losses of texts on their way to a model: what its tokenizer drops, or has no own token for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nodes.workload.text.tokens import Encoder


@dataclass
class Lost:
    """Characters and tokens of records, of which a model reads the rest."""

    characters: int = 0
    """That its tokenizer drops."""
    records: int = 0
    """That have any such."""
    unknown: int = 0
    """Tokens that stand for whatever the model has none of."""
    tokens: int = 0

    def count(self, encoder: Encoder, ids: Sequence[int], *said: str) -> None:
        """Add what is lost of a record's texts, and of what they became."""
        dropped = sum(map(encoder.dropped, said))
        self.characters += dropped
        self.records += dropped > 0
        self.unknown += encoder.unknown(ids)
        self.tokens += len(ids)

    def told(self) -> str:
        """Words for a user, to go on with; none where nothing is lost."""
        said = ""
        if self.characters:
            said = (
                f"; {self.characters:,} characters of {self.records:,} records have no token of "
                "the model's and were dropped"
            )
        if self.unknown:
            said += (
                f"; {self.unknown:,} of {self.tokens:,} tokens are the one for what the model "
                "does not know"
            )
        return said
