"""Whether a tokenizer.json is one at which the tokenizers' library would abort this process.

A merge's second piece begins with `continuing_subword_prefix`, and the library cuts off as many
bytes unasked. That may leave half a character, and an error that quotes it aborts.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from testbed.config_error import ConfigError, excerpt

FILE = "tokenizer.json"
PREFIX = "continuing_subword_prefix"
NO_PREFIX = re.compile(rb'\s*:\s*(null|"")')
ESCAPED = re.compile(rb"\\u00[2-7]")
"""A plain letter as no writer has it: a field's name may be written so."""


def check(name: str, path: Path) -> None:
    """ConfigError for a merge whose second piece does not begin with the prefix."""
    try:
        raw = path.read_bytes()
        # Nearly every file has none: the whole is read as JSON only where one may be.
        parts = raw.split(PREFIX.encode() + b'"')
        if all(map(NO_PREFIX.match, parts[1:])) and not ESCAPED.search(raw):
            return
        model = json.loads(raw)["model"]
        prefix, merges = model.get(PREFIX), model["merges"]
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return  # Of what is no such file the library says so.
    if model.get("type", "BPE") != "BPE":
        return
    if not isinstance(prefix, str) or not isinstance(merges, list):
        return
    for place, merge in enumerate(merges):
        second = _second(merge)
        if second is not None and not second.startswith(prefix):
            raise ConfigError(
                f"model = {name!r}: {PREFIX} = {excerpt(repr(prefix))} in its {FILE}, and "
                f"merges[{place}] = {excerpt(repr(merge))}; must be null, or what the second piece "
                "of each merge begins with"
            )


def _second(merge: Any) -> str | None:
    """A merge's second piece; None where it has not two."""
    pieces = merge.split(" ") if isinstance(merge, str) else merge
    if isinstance(pieces, list) and len(pieces) == 2 and isinstance(pieces[1], str):
        return pieces[1]
    return None
