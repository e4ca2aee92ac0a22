"""Spans and ideal times of rounds made by hand, against arithmetic by hand."""

import itertools
from typing import Any

import msgspec
import pytest
from made_events import finished, typed

from testbed.network.capacity import Access, Line
from testbed.network.direction import FRAME_BYTES, SEGMENT_BYTES, Direction
from testbed.record.ideal_rounds import access
from testbed.record.run_summary import Spans
from testbed.record.spans import MOST_ROWS, Timeline, over_clients
from testbed.record.summary import SummaryBuilder

S = 1_000_000_000
ORIGIN_S = 1000.0
"""Of the nodes' clock, where the events' times are 0."""
FIELDS = ("receive_s", "compute_s", "send_s", "wait_s")
UNLIMITED = [[None, 0.0], [None, 0.0]]


def at(t: float, node: str, event: str, **fields: Any) -> dict[str, Any]:
    return {"t": t, "node": node, "event": event, **fields}


def message(
    sender: str, receiver: str, sent_s: float, received_s: float, size: int = 0, number: int = 1
) -> dict[str, Any]:
    return at(
        received_s,
        receiver,
        "message",
        peer=sender,
        kind="adapter",
        round=number,
        payload_bytes=size,
        message_bytes=size,
        sent_ns=round((ORIGIN_S + sent_s) * S),
        received_ns=round((ORIGIN_S + received_s) * S),
    )


def down(client: int, *times: float, **fields: int) -> dict[str, Any]:
    return message("server", f"client-{client}", *times, **fields)


def up(client: int, *times: float, **fields: int) -> dict[str, Any]:
    return message(f"client-{client}", "server", *times, **fields)


def round_of(
    *events: dict[str, Any],
    began_s: float = 0.0,
    seconds: float = 12.0,
    clients: int = 2,
    lines: list[Any] | None = None,
) -> dict[str, Any]:
    """Round 1 of the summary."""
    names = [f"client-{number}" for number in range(1, clients + 1)]
    facts = {"client_names": names, "client_profiles": clients * ["4g"], "run_id": "x"}
    tally = SummaryBuilder()
    tally.take(typed(at(0.5, "supervisor", "run", origin_ns=round(ORIGIN_S * S), **facts)))
    if lines is not None:
        tally.take(
            typed(at(0.5, "supervisor", "links", facts={"backend": "userspace"}, lines=lines))
        )
    tally.take(typed(at(began_s, "server", "round_started", round=1)))
    for event in events:
        tally.take(typed(event))
    ending = {"metrics": {}, "clients_ok": clients, "clients_failed": 0}
    tally.take(typed(at(99, "server", "round", round=1, seconds=seconds, **ending)))
    assert tally.round_summary(1) == tally.summary().rounds[0]
    found: dict[str, Any] = msgspec.to_builtins(tally.round_summary(1))
    return found


def of_client(number: int, *events: dict[str, Any], **facts: Any) -> tuple[float, ...]:
    rows = {row["client"]: row for row in round_of(*events, **facts)["spans"]}
    return tuple(rows[f"client-{number}"][field] for field in FIELDS)


FEDERATED = (
    down(1, 1, 3),
    down(2, 1, 2),
    up(2, 4, 5),
    up(1, 8, 11),
)


def test_a_client_receives_computes_sends_and_waits() -> None:
    # From 0 to 12: waits 1, receives 2, computes 5, sends 3, waits 1.
    assert of_client(1, *FEDERATED) == (2, 5, 3, 2)
    assert of_client(2, *FEDERATED) == (1, 2, 1, 8)


def test_the_server_computes_before_its_first_and_after_the_last_message() -> None:
    # Computes 1, sends until 3, waits for 4, receives until 5, waits for 8, receives, computes 1.
    found = round_of(*FEDERATED)["server_spans"]
    assert found == {"receive_s": 4, "compute_s": 2, "send_s": 2, "wait_s": 4}


def test_a_server_that_waited_in_vain_did_not_compute_then() -> None:
    missed = at(12, "server", "missed", peer="client-2", round=1, reason="nothing")
    found = round_of(down(1, 0, 1), up(1, 2, 3), missed)["server_spans"]
    assert found == {"receive_s": 1, "compute_s": 0, "send_s": 1, "wait_s": 10}


def test_the_order_of_the_events_does_not_matter() -> None:
    assert of_client(1, *reversed(FEDERATED)) == (2, 5, 3, 2)


def test_several_exchanges_add_up() -> None:
    split = (down(1, 0, 1), up(1, 2, 4), down(1, 5, 6), up(1, 9, 10))
    assert of_client(1, *split) == (1 + 1, 1 + 3, 2 + 1, 1 + 2)


def test_each_instant_counts_once() -> None:
    # The second message comes while the first is worked on until 4, and sent from then to 8.
    overlapping = (down(1, 0, 2), up(1, 4, 8), down(1, 3, 6))
    assert of_client(1, *overlapping) == (2 + 2, 2, 2, 4)
    # The later of two is what the work waited for; meanwhile the first has come.
    assert of_client(1, down(1, 0, 1), down(1, 3, 5), up(1, 6, 7)) == (1 + 2, 1, 1, 2 + 5)


def test_a_second_message_up_is_no_computing() -> None:
    assert of_client(1, down(1, 0, 1), up(1, 2, 3), up(1, 5, 6)) == (1, 1, 2, 8)


def test_messages_between_clients_are_theirs_alone() -> None:
    found = round_of(message("client-1", "client-2", 1, 4), up(2, 6, 7))
    one, two = found["spans"]
    assert [one[field] for field in FIELDS] == [0, 0, 3, 9]
    assert [two[field] for field in FIELDS] == [3, 2, 1, 6]
    assert found["server_spans"]["send_s"] == 0


def test_a_round_among_clients_counts_each_instant_once_and_has_no_ideal() -> None:
    """Client 2 has two transfers at once, for 4 s; together they would be longer than its round."""
    events = (
        *(down(1, 0, 1), down(2, 0, 1), message("client-1", "client-2", 1, 5)),
        *(message("client-2", "client-1", 1, 5), up(1, 6, 7), up(2, 8, 9)),
    )
    lines = [UNLIMITED, [[8.0, 0.0], [8.0, 0.0]], [[8.0, 0.0], [8.0, 0.0]]]
    found = round_of(*events, seconds=9.0, lines=lines)
    assert (found["compute_s"], found["transfer_s"], found["wait_s"]) == (3, 6, 0)
    assert found["ideal_s"] is None and found["measured_to_ideal"] is None


def reduced(client: int, *times: float, received: dict[str, int] | None = None) -> dict[str, Any]:
    """An all-reduce: when it began, when the group was connected, when it ended."""
    names = ("began_ns", "connected_ns", "ended_ns")
    stamps = {n: round((ORIGIN_S + t) * S) for n, t in zip(names, times, strict=True)}
    facts = {"round": 1, "members": 2, "reason": None, "received": received or {}}
    return at(times[-1], f"client-{client}", "reduced", **facts, **stamps)


BY_THEMSELVES = (
    down(1, 1, 2),
    up(1, 4, 5),
    down(1, 5, 6),
    reduced(1, 6.5, 7, 10, received={"client-2": 500}),
    up(1, 10.5, 11),
)
"""Told to begin, trains, says so, is told to reduce, reduces, says so."""


def test_an_all_reduce_is_sending_and_receiving_and_no_computing() -> None:
    # From 0 to 12: receives 1 + 1 + 3.5, computes 2 + 0.5 + 0.5, sends 1 + 0.5, waits 1 + 1.
    assert of_client(1, *BY_THEMSELVES) == (5.5, 3, 1.5, 2)
    found = round_of(*BY_THEMSELVES)
    assert (found["compute_s"], found["transfer_s"], found["wait_s"]) == (3, 7, 2)


def test_with_an_all_reduce_there_is_no_ideal() -> None:
    lines = [UNLIMITED, [[8.0, 0.0], [8.0, 0.0]], UNLIMITED]
    found = round_of(*BY_THEMSELVES, lines=lines)
    assert found["ideal_s"] is None and found["measured_to_ideal"] is None
    assert round_of(*FEDERATED, lines=lines)["ideal_s"] is not None


def test_what_an_all_reduce_carries_is_up_for_the_one_and_down_for_the_other() -> None:
    found = round_of(*BY_THEMSELVES, reduced(2, 6.5, 7, 10, received={"client-1": 300}))
    assert found["bytes"]["payload"] == found["bytes"]["message"] == {"up": 800, "down": 800}
    assert found["bytes"]["by_kind"]["allreduce"] == {"up": 800, "down": 800}


def test_what_comes_after_the_end_of_a_round_is_not_in_it() -> None:
    late = (up(1, 11, 14), up(1, 13, 15))
    assert of_client(1, down(1, 0, 1), *late) == (1, 10, 1, 0)


def test_a_round_begins_with_its_first_message_where_word_of_it_came_late() -> None:
    assert of_client(1, *FEDERATED, began_s=1.5) == (2, 5, 3, 2)
    # From 1 to 13: nothing before the first message, and 2 s after the last.
    assert round_of(*FEDERATED, began_s=1.5)["server_spans"]["compute_s"] == 2
    # Told before: it ends that much before too.
    assert of_client(1, *FEDERATED, began_s=0.5, seconds=11) == (2, 5, 3, 1)


def test_spans_are_without_a_gap_and_sum_up_to_the_round() -> None:
    found = round_of(*FEDERATED, seconds=10.123457)
    for row in (*found["spans"], found["server_spans"]):
        assert sum(row[field] for field in FIELDS) == pytest.approx(10.123457, abs=3e-6)
    timeline = Timeline()
    for event in (*FEDERATED, finished(1, 12, 12.0)):
        timeline.take(typed(event))
    for spans in timeline.rounds[1].spans().values():
        assert spans[0].began_ns == timeline.rounds[1].began_ns
        assert spans[-1].ended_ns - spans[0].began_ns == 12 * S
        for one, other in itertools.pairwise(spans):
            assert one.ended_ns == other.began_ns and one.kind != other.kind


def test_a_client_that_a_round_did_not_take_has_no_row() -> None:
    assert [row["client"] for row in round_of(down(2, 0, 1), up(2, 2, 3))["spans"]] == ["client-2"]


def test_a_round_that_has_not_ended_has_no_spans() -> None:
    timeline = Timeline()
    timeline.take(typed(down(1, 0, 1)))
    assert timeline.rounds[1].spans() == {}


def test_of_many_clients_there_are_extremes_and_the_median() -> None:
    many = MOST_ROWS + 1
    events = [down(n, 0, n / 100) for n in range(1, many + 1)]
    found = round_of(*events, clients=many)
    assert found["spans"] == []
    over = found["spans_over_clients"]
    assert [over[name]["receive_s"] for name in ("min", "median", "max")] == [0.01, 1.01, 2.01]
    few = round_of(*events[:-1], clients=many)
    assert len(few["spans"]) == MOST_ROWS and few["spans_over_clients"] is None
    assert over_clients(
        msgspec.convert(few["spans"], list[Spans])
    ).median.receive_s == pytest.approx(1.005)


# How long the round would have taken


def ideal(*events: dict[str, Any], lines: list[Any], **facts: Any) -> tuple[float, float]:
    found = round_of(*events, lines=lines, **facts)
    return found["ideal_s"], found["measured_to_ideal"]


EXCHANGE = (down(1, 1, 3, size=200_000), up(1, 8, 11, size=300_000))
LINES = [UNLIMITED, [[800.0, 20.0], [1600.0, 10.0]], UNLIMITED]


def test_the_ideal_is_bytes_over_rates_and_delays_and_computing() -> None:
    # 200 kB at 1.6 Mbit/s are 1 s, 300 kB at 0.8 Mbit/s are 3 s; then 30 ms and 5 s of work.
    assert ideal(*EXCHANGE, lines=LINES) == (9.03, round(12 / 9.03, 4))


def test_the_ideal_sends_no_more_at_once_than_a_packet_limit_lets() -> None:
    # Two packets in every 101.2112 ms at 10 Mbit/s: of five the last is alone.
    short = Direction(rate_kbit=10_000, delay_ms=100, max_packets=2)
    lines = [UNLIMITED, access(short, Direction()), UNLIMITED]
    message = (up(1, 8, 11, size=5 * 1448),)
    alone = round_of(down(1, 1, 3, size=1), *message, lines=lines)
    assert alone["ideal_s"] == pytest.approx(0.1 + 2 * 0.1012112 + 0.0012112 + 5, abs=1e-5)


def test_a_delay_counts_once_for_what_follows_in_one_direction() -> None:
    two = (down(1, 0, 1), down(1, 0, 1), up(1, 1, 2), down(1, 3, 4), up(1, 4, 5), up(1, 4, 5))
    assert ideal(*two, lines=LINES)[0] == pytest.approx(2 * 0.03)


def test_the_ideal_is_the_longest_clients() -> None:
    other = (down(2, 0, 1), up(2, 10, 11))
    assert ideal(*EXCHANGE, *other, lines=LINES)[0] == 9.03
    faster = [UNLIMITED, [[8000.0, 20.0], [16000.0, 10.0]], UNLIMITED]
    assert ideal(*EXCHANGE, *other, lines=faster)[0] == 9


def test_the_servers_line_is_on_every_path_and_shared() -> None:
    # What the server sends is down to the client: 200 kB at 0.4 Mbit/s are 4 s.
    server = [[400.0, 1.0], [None, 2.0]]
    slow = [server, *LINES[1:]]
    assert ideal(*EXCHANGE, lines=slow)[0] == pytest.approx(4 + 3 + 0.033 + 5)
    both = (down(1, 0, 1, size=200_000), down(2, 0, 1, size=400_000))
    assert ideal(*both, lines=[server, UNLIMITED, UNLIMITED])[0] == pytest.approx(12)


def test_a_link_counts_as_it_was_when_the_round_began() -> None:
    told = {"at_s": 0, "actual_s": 0, "down": {}}
    line = [[400.0 * SEGMENT_BYTES / FRAME_BYTES, 5.0], [None, 0.0]]
    shaped = at(2, "client-1", "shaped", up={"rate_kbit": 400.0}, line=line, **told)
    assert ideal(*EXCHANGE, shaped, lines=LINES)[0] == 9.03
    tally = SummaryBuilder()
    tally.take(typed(at(0, "supervisor", "run", client_names=["client-1"], client_profiles=["4g"])))
    tally.take(typed(at(0, "supervisor", "links", facts={"backend": "x"}, lines=LINES[:2])))
    tally.take(typed(shaped))
    tally.take(typed(at(3, "server", "round_started", round=1)))
    tally.take(typed(up(1, 3, 4, size=1_000_000)))
    ending = {"metrics": {}, "clients_ok": 1, "clients_failed": 0}
    tally.take(typed(at(9, "server", "round", round=1, seconds=40.0, **ending)))
    assert tally.round_summary(1).ideal_s == pytest.approx(
        8000 / 400 * FRAME_BYTES / SEGMENT_BYTES + 0.005, abs=1e-6
    )


def test_a_lines_goodput_is_its_rate_without_headers() -> None:
    found = access(Direction(rate_kbit=1514.0, delay_ms=3), Direction())
    assert found == Access(Line(1448.0, 3), Line(None, 0))


def test_without_lines_there_is_no_ideal() -> None:
    found = round_of(*EXCHANGE)
    assert (found["ideal_s"], found["measured_to_ideal"]) == (None, None)


# Asynchronous methods


def steps(*events: dict[str, Any], seconds: float) -> list[dict[str, Any]]:
    """Of an asynchronous run of two clients: rounds of so many seconds, one after the other."""
    tally = SummaryBuilder()
    facts = {"client_names": ["client-1", "client-2"], "client_profiles": 2 * ["4g"]}
    origin_ns = round(ORIGIN_S * S)
    tally.take(typed(at(0, "supervisor", "run", origin_ns=origin_ns, asynchronous=True, **facts)))
    count = 3
    begins = [at(n * seconds, "server", "round_started", round=n + 1) for n in range(count)]
    ending = {"metrics": {}, "clients_ok": 1, "clients_failed": 0}
    ends = [
        at((n + 1) * seconds, "server", "round", round=n + 1, seconds=seconds, **ending)
        for n in range(count)
    ]
    for event in sorted([*events, *begins, *ends], key=lambda event: event["t"]):
        tally.take(typed(event))
    return [msgspec.to_builtins(tally.round_summary(n + 1)) for n in range(count)]


def test_a_client_that_answers_a_later_round_was_at_work_in_all_between() -> None:
    rounds = steps(
        down(1, 0, 1, number=1),
        down(2, 0, 1, number=1),
        up(1, 8, 9, number=1),
        # Client 2 answers in the third round what the first one asked.
        up(2, 23, 24, number=1),
        seconds=10,
    )
    spans = [{row["client"]: row for row in entry["spans"]} for entry in rounds]
    assert [tuple(entry["client-2"][field] for field in FIELDS) for entry in spans] == [
        (1, 9, 0, 0),
        (0, 10, 0, 0),
        (0, 3, 1, 6),
    ]
    assert [tuple(row) for row in spans] == [("client-1", "client-2"), ("client-2",), ("client-2",)]


def test_an_asynchronous_round_has_no_ideal_and_no_slowest_client() -> None:
    rounds = steps(down(1, 0, 1), up(1, 8, 9), seconds=10)
    for field in ("ideal_s", "measured_to_ideal", "compute_s", "transfer_s", "wait_s"):
        assert rounds[0][field] is None
