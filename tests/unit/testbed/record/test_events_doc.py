"""docs/events.md against the kinds of events, and against events that are made up."""

from documented_events import documented, undocumented
from made_run import events

from testbed.record.events import KINDS


def test_every_kind_is_documented_and_no_other() -> None:
    assert documented().keys() == {kind.__struct_config__.tag for kind in KINDS}


def test_every_field_of_a_kind_is_documented_by_what_it_holds() -> None:
    for kind in KINDS:
        found = documented()[str(kind.__struct_config__.tag)]
        own = {path.partition(".")[0].partition("[")[0] for path in found}
        assert own == set(kind.__struct_fields__) - {"t", "node"}


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
