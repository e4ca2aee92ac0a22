"""docs/summary.md against what is written of runs that are made up."""

import re
from pathlib import Path
from typing import Any

import made_run
import msgspec
from documented_events import paths_of

DOC = Path(__file__).parents[4] / "docs" / "summary.md"


def test_every_field_that_is_written_is_documented() -> None:
    known = dict.fromkeys(re.findall(r"^\| `([^`]+)`", DOC.read_text(), re.MULTILINE), "")
    found: dict[str, Any] = msgspec.to_builtins(made_run.summary(made_run.events()))
    told = {path for path, value in paths_of(found, known) if value not in (None, [], {})}
    assert told <= known.keys()
    assert {"rounds[].spans[].receive_s", "fidelity.checks[].ok", "bytes.by_kind"} <= told
