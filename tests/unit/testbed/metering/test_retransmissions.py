"""Where the summary puts what nodes say they have sent again, and what captures came to."""

import struct
from typing import Any

import msgspec
import pytest
from made_events import NOTHING, typed

from experiments.aftermath import capture_warnings
from testbed.metering import retransmissions
from testbed.record.run_summary import Captures
from testbed.record.summary import SummaryBuilder


def summary_of(*events: dict[str, Any]) -> dict[str, Any]:
    tally = SummaryBuilder()
    names = [f"client-{number}" for number in range(1, 4)]
    run = {"event": "run", "client_names": names, "client_profiles": 3 * ["4g"]}
    for event in (run, *events):
        tally.take(typed({"t": 0.0, "node": "supervisor", **event}))
    found: dict[str, Any] = msgspec.to_builtins(tally.summary())
    return found


def usage(node: str, resent: dict[str, list[int]] | None) -> dict[str, Any]:
    figures = {"pid": 1, "private_mb": 1.0, "cpu_s": 1.0, "run_delay_s": None}
    return {"node": node, "event": "usage", **figures, "retransmitted": resent}


def both(found: dict[str, Any]) -> list[Any]:
    return [client["retransmitted"] for client in found["per_client"]]


def test_a_client_has_what_it_sent_again_and_what_was_sent_again_to_it() -> None:
    one, two, three = both(
        summary_of(
            usage("server", {"10.1.0.1": [3, 3000], "10.1.0.3": [1, 7]}),
            usage("client-1", {"10.0.0.1": [5, 5000]}),
            usage("client-2", {}),
        )
    )
    assert one == {"up": {"segments": 5, "bytes": 5000}, "down": {"segments": 3, "bytes": 3000}}
    assert two == {"up": {"segments": 0, "bytes": 0}, "down": {"segments": 0, "bytes": 0}}
    # The third has said nothing of its own.
    assert three == {"up": None, "down": {"segments": 1, "bytes": 7}}


def test_between_clients_it_is_up_for_the_one_and_down_for_the_other() -> None:
    one, two, _ = both(
        summary_of(
            usage("server", {"10.1.0.2": [1, 1]}),
            usage("client-1", {"10.0.0.1": [10, 100], "10.1.0.2": [20, 200]}),
        )
    )
    assert one["up"] == {"segments": 30, "bytes": 300}
    assert two["down"] == {"segments": 21, "bytes": 201}


def test_the_last_word_of_a_node_counts() -> None:
    said = (usage("client-1", {"10.0.0.1": [n, 10 * n]}) for n in (1, 2))
    assert both(summary_of(*said))[0]["up"] == {"segments": 2, "bytes": 20}


def test_a_later_empty_word_takes_nothing_away() -> None:
    told = [usage("client-1", {"10.0.0.1": [1, 1448]}), usage("client-1", {})]
    assert both(summary_of(*told))[0]["up"] == {"segments": 1, "bytes": 1448}
    assert both(summary_of(*told, usage("client-1", None)))[0]["up"]["segments"] == 1


def test_what_processes_before_a_resumption_sent_again_counts_once() -> None:
    again = {"event": "resumed", "round": 0, "at_s": 0.0, "lost": NOTHING}
    told = [
        usage("client-1", {"10.0.0.1": [1, 10]}),
        usage("client-1", {}),
        again,
        usage("client-1", {"10.0.0.1": [2, 20]}),
        usage("client-1", {"10.0.0.1": [3, 30]}),
        again,
        again,
        usage("client-1", {}),
    ]
    assert both(summary_of(*told))[0]["up"] == {"segments": 4, "bytes": 40}


def made(cookie: int, peer: str, segments: int, taken: int) -> retransmissions.Connection:
    """As the kernel tells of it; 1,448 bytes a segment."""
    information = bytearray(232)
    struct.pack_into("=I", information, 100, segments)
    struct.pack_into("=Q", information, 128, taken)
    struct.pack_into("=Q", information, 208, 1448 * segments)
    return retransmissions.Connection(cookie.to_bytes(8), peer, bytes(information))


def test_a_connection_that_has_closed_still_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    there: list[retransmissions.Connection] = []
    monkeypatch.setattr(retransmissions, "connections", lambda: iter(there))
    monkeypatch.setattr(retransmissions, "_seen", {})
    there[:] = [made(1, "10.0.0.1", 2, 100), made(2, "10.0.0.1", 1, 10), made(3, "10.1.0.2", 0, 5)]
    assert retransmissions.by_peer() == {"10.0.0.1": [3, 4344]}
    assert retransmissions.received() == {"10.0.0.1": 110, "10.1.0.2": 5}
    # The first has closed, and another has taken its place.
    there[:] = [made(2, "10.0.0.1", 2, 30), made(4, "10.0.0.1", 1, 1)]
    assert retransmissions.by_peer() == {"10.0.0.1": [5, 7240]}
    assert retransmissions.received() == {"10.0.0.1": 131, "10.1.0.2": 5}
    there.clear()
    assert retransmissions.by_peer() == {"10.0.0.1": [5, 7240]}


def test_where_nobody_knows_nothing_is_said() -> None:
    found = both(summary_of(usage("server", None), usage("client-1", None)))
    assert found == 3 * [{"up": None, "down": None}]


@pytest.mark.parametrize(
    ("dropped", "failure", "words"),
    [
        ([0, 0, 0], None, []),
        ([0, 7, 2], None, ["lack 9 packets", "client-2, client-3"]),
        ([0, 0, 0], "write captures: No space left", ["end early: write captures: No space"]),
    ],
)
def test_captures_are_summed_up_with_what_they_lack(
    dropped: list[int], failure: str | None, words: list[str]
) -> None:
    event = {"event": "captured", "packets": [10, 20, 30], "dropped": dropped, "failure": failure}
    found = summary_of(event)["captures"]
    assert (found["packets"], found["dropped_packets"]) == (60, sum(dropped))
    said = capture_warnings(msgspec.convert(found, Captures))
    assert bool(said) == bool(words)
    assert all(word in said[0] for word in words)


def test_a_run_without_captures_has_none() -> None:
    assert summary_of()["captures"] is None
    assert capture_warnings(None) == []
