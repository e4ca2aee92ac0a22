"""The strangers' part of the certificate, from what was dropped and what the relay ended."""

from typing import Any

import pytest
from made_events import RUN, at, typed

from testbed.record import strangers, trust
from testbed.record.run_summary import Dropped, Summary
from testbed.record.summary import SummaryBuilder


def dropped(peer: str, reason: str, count: int = 1, size: int = 0) -> Dropped:
    return Dropped(node="server", peer=peer, reason=reason, count=count, bytes=size)


def told(*events: dict[str, Any], **links: object) -> Summary:
    tally = SummaryBuilder()
    tally.take(typed({"t": 0.0, "node": "supervisor", **RUN}))
    for event in events:
        tally.take(typed(event))
    tally.take(typed(at(9, "supervisor", "closed", status="ok", reason=None, links=links)))
    return tally.summary()


def test_what_members_sent_in_vain_is_no_strangers() -> None:
    found = strangers.judge([dropped("client-1", "header: torn", 7, 99)], {"strangers": 0})
    assert (found.verdict, found.reason) == ("pass", "nobody spoke who is not of the run")


@pytest.mark.parametrize("facts", [{}, {"strangers": "many"}, {"strangers": -1}, {"strangers": []}])
def test_facts_of_other_links_are_none(facts: dict[str, Any]) -> None:
    assert strangers.judge([], facts).verdict == "pass"


def test_strangers_are_counted_with_their_bytes() -> None:
    rows = [dropped("mallory", "stranger", 3, 70), dropped("stranger", "no key", 2)]
    found = strangers.judge(rows, {"strangers": 4, "strangers_bytes": 1130})
    assert found.verdict == "fail"
    assert found.reason == (
        "strangers called: 5 times nodes turned them away, 4 of their connections said nothing; "
        "1,200 bytes or more are theirs"
    )


def test_the_certificate_fails_by_them_and_the_last_line_says_so() -> None:
    one = at(5, "server", "dropped", peer="mallory", bytes=70, reason="stranger")
    for found in (told(one), told(strangers=1, strangers_bytes=70)):
        assert found.fidelity.verdict == found.fidelity.strangers.verdict == "fail"
        assert found.fidelity.reason == found.fidelity.strangers.reason
        assert trust.line(found).startswith("trust: bytes no; minutes no: ")
        assert "70 bytes or more are theirs" in trust.line(found)
    assert told().fidelity.strangers.verdict == "pass"
