"""How a record of dropped messages stays small, whoever sends them."""

from types import SimpleNamespace

import pytest
from made_events import Reported, typed

from testbed.record import drops
from testbed.record.drops import IN_FULL, MOST_KINDS, TELL_EVERY_S, Condensed
from testbed.record.events import Dropped, Overtaken, Usage
from testbed.record.summary import SummaryBuilder

USAGE = Usage(pid=1, private_mb=1.0, cpu_s=1.0, run_delay_s=None)


class Case:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 5.0
        self.events = Reported()
        monkeypatch.setattr(drops, "clock", SimpleNamespace(monotonic=lambda: self.now_s))
        self.report = Condensed(self.events)

    def drop(self, peer: str = "client-1", reason: str = "header: no", size: int = 1) -> None:
        self.report(Dropped(peer=peer, bytes=size, reason=reason))

    def told(self) -> list[tuple[str, int, int]]:
        """Who, how many and their bytes."""
        found = [event for event in self.events if event["event"] == "dropped"]
        return [(event["peer"], event.get("count", 1), event["bytes"]) for event in found]


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch) -> Case:
    return Case(monkeypatch)


def test_the_first_few_are_told_in_full_and_the_rest_with_the_usage(case: Case) -> None:
    for size in range(1, 11):
        case.drop(size=size)
    assert case.told() == [("client-1", 1, size) for size in range(1, IN_FULL + 1)]
    case.report(USAGE)
    assert case.told()[-1] == ("client-1", 10 - IN_FULL, sum(range(IN_FULL + 1, 11)))
    # Before the usage, so that it is in a round's record by its end; and each round begins anew.
    assert [event["event"] for event in case.events][-2:] == ["dropped", "usage"]
    case.drop(size=7)
    assert case.told()[-1] == ("client-1", 1, 7)


def test_a_flood_is_told_of_every_few_seconds(case: Case) -> None:
    for _ in range(100_000):
        case.drop()
        case.now_s += 2 * TELL_EVERY_S / 100_000
    case.report(USAGE)
    told = case.told()
    assert len(told) <= IN_FULL + 3
    assert sum(count for _, count, _ in told) == sum(size for *_, size in told) == 100_000


@pytest.mark.parametrize("what", ["peer", "reason"])
def test_ever_other_names_make_no_longer_record(case: Case, what: str) -> None:
    for number in range(10_000):
        case.drop(**{what: f"another {number}"})
    case.report(USAGE)
    told = case.told()
    assert len(told) == MOST_KINDS + 1
    assert told[-1] == ("others", 10_000 - MOST_KINDS, 10_000 - MOST_KINDS)


def test_all_of_them_are_in_the_summary(case: Case) -> None:
    for _ in range(50):
        case.drop(size=2)
    case.report(USAGE)
    tally = SummaryBuilder()
    for event in case.events:
        if event["event"] == "dropped":
            tally.take(typed({"t": 0.0, "node": "server", **event}))
    (row,) = tally.summary().dropped_messages
    assert (row.count, row.bytes) == (50, 100)


def test_other_events_pass_as_they_are(case: Case) -> None:
    case.report(Overtaken(reason="x"))
    assert case.events == [{"event": "overtaken", "reason": "x"}]
