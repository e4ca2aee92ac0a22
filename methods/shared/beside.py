"""Options that count beside certain values of others alone, and the refusal of such in vain."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, get_type_hints

import msgspec


class Beside(NamedTuple):
    """An annotation of an option: when it changes something. Void where there is no such other."""

    other: str
    values: tuple[object, ...]
    counts: bool
    """Whether it counts with these values alone, or with all but these."""

    def allows(self, value: object) -> bool:
        return (value in self.values) == self.counts

    def __str__(self) -> str:
        if self.values == (None,):
            return f"goes without {self.other} alone"
        values = f"{self.other} = {' or '.join(map(_text, self.values))}"
        return f"goes with {values} alone" if self.counts else f"does not go with {values}"


def only_with(other: str, *values: object) -> Beside:
    return Beside(other, values, counts=True)


def not_with(other: str, *values: object) -> Beside:
    return Beside(other, values, counts=False)


def refuse_idle(config: msgspec.Struct, given: Iterable[str], defaults: Mapping[str, Any]) -> None:
    """Raises ValueError at an option of ``given`` that changes nothing beside the others.

    ``defaults``: those in place of the options' own. What is a default's is let be, so that a run
    takes all options as its record has them.
    """
    hints = get_type_hints(type(config), include_extras=True)
    own = {each.name: each.default for each in msgspec.structs.fields(config)} | dict(defaults)
    for name in given:
        value = getattr(config, name)
        if value == own[name]:
            continue
        for rule in getattr(hints[name], "__metadata__", ()):
            if isinstance(rule, Beside) and rule.other in own:
                there = getattr(config, rule.other)
                if not rule.allows(there):
                    raise ValueError(
                        f"{name} = {_text(value)} {rule}, and {rule.other} = {_text(there)}: it "
                        "would change nothing; leave it out"
                    )


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)
