"""docs/events.md against the recorder's own table, and against events that are made up."""

import re

from documented_events import documented, undocumented
from made_run import events

from testbed.record import recorder


def recorded() -> dict[str, str]:
    """By kind, what record.py's table says of its fields."""
    assert recorder.__doc__ is not None
    _, _, body, _ = re.split(r"^=[= ]+\n", recorder.__doc__, flags=re.MULTILINE)
    found: dict[str, str] = {}
    kinds: list[str] = []
    for line in body.splitlines():
        if line[:1].strip():
            kinds = line[:14].strip().split(", ")
        for kind in kinds:
            found[kind] = found.get(kind, "") + " " + line[28:]
    return found


def test_every_kind_that_the_recorder_names_is_documented_and_no_other() -> None:
    assert documented().keys() == recorded().keys()


def test_every_field_that_is_documented_is_in_the_recorders_table() -> None:
    for kind, told in recorded().items():
        if kind == "run":
            continue  # It names the least, and the rest is the summary's.
        for path in documented()[kind]:
            assert re.search(rf"\b{path.split('.')[0]}\b", told), (kind, path, told)


def test_what_is_not_documented_is_found() -> None:
    assert undocumented(events()) == []
    odd = [
        {"t": 1, "node": "server", "event": "odd"},
        {"t": 1, "node": "server", "event": "round_started", "round": 1, "more": 2},
        {"t": 1, "node": "server", "event": "lost", "peer": 3, "reason": None},
        {"t": 1, "node": "x", "event": "certified", "fidelity": {"checks": [{"odd": 1}]}},
    ]
    assert undocumented(odd) == [
        "certified.fidelity.checks[].odd",
        "lost.peer: 3 is no string",
        "lost.reason: None is no string",
        "odd",
        "round_started.more",
    ]
