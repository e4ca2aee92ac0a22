"""Made events against sums worked out by hand."""

from typing import Any

import msgspec
import pytest
from made_events import NOTHING, RUN, at, finished, typed

from testbed.record.run_summary import Summary
from testbed.record.summary import MOST_DROPS, SummaryBuilder

S = 1_000_000_000

CONTRACT = {
    *("schema", "run_id", "command", "method", "model", "dataset", "profile", "links", "clients"),
    *("rounds_done", "seed", "status", "reason", "seconds", "bytes", "rounds", "metrics"),
    *("trainable_parameters", "total_parameters", "processes", "fidelity", "environment"),
}
"""The top level of summary.json in the design; scripts read it."""
ROUND = {
    *("round", "seconds", "compute_s", "transfer_s", "wait_s", "bytes", "metrics"),
    *("clients_ok", "clients_failed"),
}


def message(
    sender: str,
    receiver: str,
    number: int,
    *,
    sent_s: float = 0,
    received_s: float = 0,
    payload: int = 0,
    kind: str = "adapter",
) -> dict[str, Any]:
    """A message of which 10 bytes are header."""
    return at(
        received_s,
        receiver,
        "message",
        peer=sender,
        kind=kind,
        round=number,
        payload_bytes=payload,
        message_bytes=payload + 10,
        sent_ns=round(sent_s * S),
        received_ns=round(received_s * S),
    )


def up(client: int, number: int, **fields: Any) -> dict[str, Any]:
    return message(f"client-{client}", "server", number, **fields)


def down(client: int, number: int, **fields: Any) -> dict[str, Any]:
    return message("server", f"client-{client}", number, **fields)


def wire(number: int | None, *clients: tuple[int, int], drops: int = 0) -> dict[str, Any]:
    """Counters since the start: the server's, then each client's bytes (up, down)."""
    rows = [[[9, 999, 9, 9], [9, 999, 9, 9]]]
    rows += [[[1, up, drops, 1], [1, down, 2 * drops, 3]] for up, down in clients]
    return at(0, "supervisor", "wire", round=number, counters=rows)


def tally_of(*events: dict[str, Any]) -> SummaryBuilder:
    tally = SummaryBuilder()
    tally.take(typed({"t": 0.0, "node": "supervisor", **RUN}))
    for event in events:
        tally.take(typed(event))
    return tally


def begun(*numbers: int) -> list[dict[str, Any]]:
    return [at(0, "server", "round_started", round=number) for number in numbers]


def written(tally: SummaryBuilder) -> dict[str, Any]:
    """summary.json, of which these tests are."""
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(tally.summary()))
    return found


def summary_of(*events: dict[str, Any]) -> dict[str, Any]:
    return written(tally_of(*events))


def both(up: int, down: int) -> dict[str, int]:
    return {"up": up, "down": down}


# Links that change


def test_the_busiest_node_is_the_one_with_the_most_both_ways() -> None:
    star = (down(1, 1, payload=100), up(1, 1, payload=50), down(2, 1, payload=100))
    assert summary_of(*star)["busiest"] == {"node": "server", "sent": 200, "received": 50}
    among = [
        message("client-1", "client-2", 1, payload=300),
        message("client-2", "client-1", 1, payload=40),
    ]
    assert summary_of(*star, *among, message("client-1", "server", 1, payload=1))["busiest"] == {
        "node": "client-1",
        "sent": 351,
        "received": 140,
    }
    assert summary_of()["busiest"] is None


def test_changes_of_links_are_counted_with_their_lateness() -> None:
    quiet = {"changes": 0, "lateness_mean_ms": 0, "lateness_max_ms": 0}
    assert summary_of()["dynamics"] == quiet
    times = [(0, 0.001), (2.5, 2.504), (9, 9.001)]
    events = [at(0, "client-1", "shaped", at_s=due, actual_s=actual) for due, actual in times]
    assert summary_of(*events)["dynamics"] == {
        "changes": 3,
        "lateness_mean_ms": 2,
        "lateness_max_ms": 4,
    }


# Bytes


MESSAGES = (
    up(1, 0, kind="hello"),
    down(1, 0, kind="welcome"),
    down(1, 1, payload=1000),
    down(2, 1, payload=1000),
    up(1, 1, payload=300),
    up(2, 1, payload=400, kind="logits"),
    down(1, 2, payload=50),
    up(1, 2, payload=7),
)


def test_totals_are_over_all_messages() -> None:
    found = summary_of(*MESSAGES)["bytes"]
    assert found["payload"] == both(707, 2050)
    assert found["message"] == both(707 + 4 * 10, 2050 + 4 * 10)


def test_kinds_are_told_apart() -> None:
    assert summary_of(*MESSAGES)["bytes"]["by_kind"] == {
        "hello": both(0, 0),
        "welcome": both(0, 0),
        "adapter": both(307, 2050),
        "logits": both(400, 0),
    }


def test_rounds_are_told_apart_and_joining_is_none() -> None:
    one, two = summary_of(*begun(1, 2), *MESSAGES)["rounds"]
    assert (one["round"], two["round"]) == (1, 2)
    assert one["bytes"]["payload"] == both(700, 2000)
    assert one["bytes"]["message"] == both(720, 2020)
    assert one["bytes"]["by_kind"] == {"adapter": both(300, 2000), "logits": both(400, 0)}
    assert two["bytes"]["payload"] == both(7, 50)


def test_clients_are_told_apart() -> None:
    one, two = summary_of(*MESSAGES)["per_client"]
    assert (one["name"], one["profile"]) == ("client-1", "4g")
    assert (two["name"], two["profile"]) == ("client-2", "3g")
    assert one["bytes"]["payload"] == both(307, 1050)
    assert two["bytes"]["payload"] == both(400, 1000)
    assert two["bytes"]["by_kind"] == {"adapter": both(0, 1000), "logits": both(400, 0)}


def test_bytes_so_far_are_those_of_the_summary() -> None:
    tally = tally_of(*MESSAGES, wire(1, (5, 6), (7, 8)))
    assert tally.bytes() == tally.summary().bytes


def test_a_round_gets_the_wire_bytes_that_were_new_in_it() -> None:
    found = summary_of(
        *begun(1, 2),
        finished(1, 1, 1),
        wire(1, (100, 1000), (200, 2000)),
        finished(2, 2, 1),
        wire(2, (150, 1500), (260, 2700)),
        wire(None, (151, 1502), (263, 2704)),
    )
    one, two = found["rounds"]
    assert one["bytes"]["wire"] == both(300, 3000)
    assert two["bytes"]["wire"] == both(110, 1200)
    # What crossed after the last round is in the total only; the server's own link is in none.
    assert found["bytes"]["wire"] == both(414, 4206)


def test_wire_bytes_and_drops_of_a_client_are_the_last_that_were_read() -> None:
    _, two = summary_of(wire(1, (1, 2), (3, 4)), wire(2, (5, 6), (7, 8), drops=4))["per_client"]
    assert two["bytes"]["wire"] == both(7, 8)
    assert two["queue_drops"] == both(4, 8) and two["losses"] == both(1, 3)


# Time


def spans(*events: dict[str, Any]) -> tuple[float, float, float]:
    """Computing, on the way and waiting, of round 1."""
    first = summary_of(*begun(1), *events)["rounds"][0]
    return first["compute_s"], first["transfer_s"], first["wait_s"]


SLOW = (
    # client-2: 2 s down, 5 s of work, 3 s up, done at 11.
    down(2, 1, sent_s=1, received_s=3),
    up(2, 1, sent_s=8, received_s=11),
)
FAST = (
    down(1, 1, sent_s=1, received_s=2),
    up(1, 1, sent_s=9, received_s=10),
)


def test_spans_are_those_of_the_client_that_came_last() -> None:
    # Of the round's 12 s, 5 + (2 + 3) are accounted for.
    assert spans(*FAST, *SLOW, finished(1, 13, 12)) == (5, 5, 2)


def test_spans_do_not_depend_on_the_order_of_the_events() -> None:
    assert spans(*reversed((*SLOW, *FAST)), finished(1, 13, 12)) == (5, 5, 2)


def test_each_instant_of_many_exchanges_counts_once() -> None:
    exchanges = (
        down(1, 1, sent_s=0, received_s=1),
        up(1, 1, sent_s=3, received_s=4),
        down(1, 1, sent_s=4.5, received_s=5),
        down(1, 1, sent_s=4.5, received_s=6),
        # Work begins when the last of both is there; a second message up adds none.
        up(1, 1, sent_s=7, received_s=8),
        up(1, 1, sent_s=7, received_s=9),
    )
    compute_s = (3 - 1) + (7 - 6)
    transfer_s = 1 + 1 + 1.5 + 2
    assert spans(*exchanges, finished(1, 10, 12)) == (compute_s, transfer_s, 3.5)


def test_spans_end_with_the_round() -> None:
    assert spans(*SLOW, finished(1, 13, 9)) == (5, 4, 0)


def test_a_round_without_messages_is_all_waiting() -> None:
    assert spans(finished(1, 13, 4)) == (0, 0, 4)


def test_seconds_run_from_the_first_round_to_the_end_of_the_last() -> None:
    found = summary_of(
        at(2.5, "server", "round_started", round=1),
        finished(1, 4, 1.5),
        at(5, "server", "round_started", round=2),
        finished(2, 7, 2),
        at(9, "supervisor", "closed", status="ok", reason=None, links={}),
    )
    here = {"host_startup": 2.5, "host_total": 9, "held": 0}
    own = {"startup": 2.5, "calibration": 0, "training": 4.5, "total": 9}
    assert found["seconds"] == own | here


CERTIFIED: dict[str, Any] = {
    "seconds": 0.1,
    "counters": [[[0] * 4] * 2] * 3,
    "fidelity": {"verdict": "pass", "reason": "all hold", "checks": []},
}


def resumed(t: float, number: int) -> dict[str, Any]:
    return at(t, "supervisor", "resumed", round=number, at_s=t, lost=NOTHING)


def test_a_resumed_run_that_ends_in_its_first_round_has_trained_what_it_had() -> None:
    before = [at(2, "server", "joined", clients=2), finished(1, 4, 1.5)]
    again = [at(9, "server", "joined", clients=2), at(9.5, "server", "round_started", round=2)]
    ended = at(12, "supervisor", "closed", status="interrupted", reason="SIGTERM", links={})
    tally = tally_of(*before, resumed(6, 1), *again, ended)
    assert (tally.trained_s, tally.summary().seconds.training) == (2, 2)
    # And goes on from there, once more and to a round's end.
    for event in (resumed(12, 1), *again, finished(2, 11, 1.5), finished(3, 13, 2)):
        tally.take(typed(event))
    assert (tally.trained_s, tally.summary().seconds.training) == (6, 6)


def test_a_resumed_run_without_a_round_has_trained_since_it_began_again() -> None:
    tally = tally_of(at(2, "server", "joined", clients=2), resumed(6, 0))
    assert tally.summary().seconds.training == 0
    tally.take(typed(at(9, "server", "joined", clients=2)))
    tally.take(
        typed(at(12, "supervisor", "closed", status="interrupted", reason="SIGTERM", links={}))
    )
    assert (tally.trained_s, tally.summary().seconds.training) == (0, 3)


def test_of_a_dilated_run_the_machines_seconds_stand_beside_the_emulated() -> None:
    tally = SummaryBuilder()
    tally.take(typed({"t": 0.0, "node": "supervisor", **RUN, "dilation": 4.0}))
    tally.take(typed(at(2.5, "server", "round_started", round=1)))
    tally.take(typed(finished(1, 4, 1.5)))
    found = written(tally)
    assert found["dilation"] == 4
    assert found["seconds"] == {
        **{"startup": 2.5, "calibration": 0, "training": 1.5, "total": 4},
        **{"host_startup": 10, "host_total": 16, "held": 0},
    }


def test_what_an_elastic_clock_stood_still_stands_beside_the_emulated() -> None:
    tally = SummaryBuilder()
    tally.take(typed({"t": 0.0, "node": "supervisor", **RUN, "elastic": True}))
    tally.take(typed(at(2, "supervisor", "certified", held_s=0.5, **CERTIFIED)))
    tally.take(typed(at(2.5, "server", "round_started", round=1)))
    tally.take(typed(finished(1, 4, 1.5)))
    tally.take(typed(at(4, "supervisor", "wire", round=1, counters=[[[0] * 4] * 2] * 3, held_s=7)))
    found = written(tally)
    assert (found["dilation"], found["elastic"]) == (1, True)
    assert found["seconds"] == {
        **{"startup": 2.5, "calibration": 0.1, "training": 1.5, "total": 4},
        **{"host_startup": 3, "host_total": 11, "held": 7},
    }
    # A process of a resumed run begins to count anew.
    tally.take(typed(resumed(5, 1)))
    assert tally.summary().seconds.held == 7
    again = at(6, "supervisor", "wire", round=1, counters=[[[0] * 4] * 2] * 3, held_s=2)
    tally.take(typed(again))
    assert (tally.summary().seconds.held, tally.summary().seconds.host_total) == (9, 15)


# Facts


def test_every_key_of_the_contract_is_there() -> None:
    found = summary_of(*MESSAGES, finished(1, 1, 1))
    assert found["schema"] == 1
    assert found.keys() >= CONTRACT
    assert all(entry.keys() >= ROUND for entry in found["rounds"])
    assert found["seconds"].keys() == {
        *("startup", "calibration", "training", "total", "host_startup", "host_total", "held")
    }
    for level in (found["bytes"], *(entry["bytes"] for entry in found["rounds"])):
        assert level.keys() == {"payload", "message", "wire", "by_kind"}
    assert found["metrics"].keys() == {"initial", "final"}
    assert found["fidelity"].keys() >= {"verdict", "checks"}


def test_an_empty_tally_has_every_key_too() -> None:
    assert written(SummaryBuilder()).keys() >= CONTRACT


def test_the_run_names_itself() -> None:
    found = summary_of(
        at(1, "supervisor", "links", facts={"backend": "userspace", "congestion": "cubic"}),
        at(2, "server", "ready", trainable_parameters=1234, total_parameters=300_000),
        at(2, "client-2", "ready", samples=71, round_flops=9_000),
        at(9, "supervisor", "closed", status="ok", reason=None, links={"late": 3}),
    )
    assert {key: found[key] for key in ("run_id", "method", "seed", "clients", "links")} == {
        "run_id": "20251121-4g-2",
        "method": "fedpeft",
        "seed": 7,
        "clients": 2,
        "links": "userspace",
    }
    assert (found["trainable_parameters"], found["total_parameters"]) == (1234, 300_000)
    assert found["per_client"][1]["samples"] == 71
    assert found["per_client"][1]["round_flops"] == 9_000
    assert found["link_facts"] == {"backend": "userspace", "congestion": "cubic", "late": 3}
    assert found["environment"]["cores"] == 2
    assert (found["status"], found["reason"]) == ("ok", None)


def test_metrics_are_those_before_the_first_and_after_the_last_round() -> None:
    found = summary_of(
        at(1, "server", "evaluated", metrics={"accuracy": 0.1}),
        finished(1, 2, 1, metrics={"accuracy": 0.5}),
        finished(2, 3, 1, metrics={"accuracy": 0.9}),
    )
    assert found["metrics"] == {"initial": {"accuracy": 0.1}, "final": {"accuracy": 0.9}}
    assert [entry["metrics"]["accuracy"] for entry in found["rounds"]] == [0.5, 0.9]


def test_a_lost_client_says_why() -> None:
    lost = at(3, "supervisor", "lost", peer="client-2", reason="was killed by SIGKILL")
    one, two = summary_of(lost)["per_client"]
    assert (one["lost"], two["lost"]) == (None, "was killed by SIGKILL")


def test_a_missed_update_stands_in_its_round() -> None:
    missed = at(3, "server", "missed", peer="client-2", round=1, reason="too late")
    ended = finished(1, 4, 1, clients_ok=1, clients_failed=1)
    one, two = summary_of(missed, ended, finished(2, 5, 1))["rounds"]
    assert one["missed"] == [{"client": "client-2", "reason": "too late"}]
    assert (one["clients_ok"], one["clients_failed"]) == (1, 1)
    assert two["missed"] == []


def _without_updates(*events: dict[str, Any]) -> str | None:
    tally = SummaryBuilder()
    for event in (at(0, "supervisor", **RUN), *events):  # type: ignore[arg-type]
        tally.take(typed(event))
    return tally.without_updates()


def test_rounds_in_which_nobody_did_its_part_came_to_nothing() -> None:
    missed = at(3, "server", "missed", peer="client-2", round=1, reason="too late")
    nobody = {"clients_ok": 0, "clients_failed": 2}
    first, second = finished(1, 4, 1, **nobody), finished(2, 5, 1, **nobody)
    assert _without_updates(missed, first) == (
        "no update was taken in the round; the first: client-2: too late"
    )
    assert _without_updates(first, second) == "no update was taken in any of 2 rounds"


def test_one_update_in_one_round_is_a_result_and_no_round_is_none_to_speak_of() -> None:
    nobody = finished(1, 4, 1, clients_ok=0, clients_failed=2)
    assert _without_updates(nobody, finished(2, 5, 1, clients_ok=1, clients_failed=1)) is None
    assert _without_updates() is None
    begun = at(2, "server", "round_started", round=1)
    assert _without_updates(begun) is None


def test_dropped_messages_and_connections_are_listed() -> None:
    found = summary_of(
        at(1, "server", "dropped", peer="client-1", bytes=7, reason="header: no"),
        at(1, "server", "connection", congestion="cubic"),
        at(1, "client-1", "connection", congestion="cubic"),
        at(1, "client-2", "connection", congestion=None),
    )
    assert found["dropped_messages"] == [
        {"node": "server", "peer": "client-1", "reason": "header: no", "count": 1, "bytes": 7}
    ]
    assert found["connections"] == {"cubic": 2, "None": 1}
    assert (found["congestion"], found["congestion_asked"]) == ("cubic", None)
    assert found["bytes"]["message"] == both(0, 0)


def test_dropped_messages_are_counted_by_reason_in_so_many_rows() -> None:
    same = {"peer": "client-1", "reason": "header: no"}
    found = summary_of(
        at(1, "server", "dropped", bytes=7, **same),
        at(1, "server", "dropped", bytes=50, count=9, **same),
        *(
            at(1, "server", "dropped", peer="client-2", bytes=1, reason=f"round {number}")
            for number in range(2 * MOST_DROPS)
        ),
    )["dropped_messages"]
    assert found[0] == {"node": "server", **same, "count": 10, "bytes": 57}
    assert len(found) == MOST_DROPS + 1
    assert found[-1] | {"count": MOST_DROPS + 1} == {
        **{"node": "server", "peer": "others", "reason": "various"},
        **{"count": MOST_DROPS + 1, "bytes": MOST_DROPS + 1},
    }


def test_what_only_grows_is_never_less_in_a_later_reading() -> None:
    usage = {"pid": 42, "private_mb": 9.0, "peak_private_mb": 20.0}
    found = summary_of(
        at(1, "client-1", "usage", **usage, cpu_s=2.0, run_delay_s=0.5),
        at(2, "client-1", "usage", **usage | {"peak_private_mb": None}, cpu_s=1.9, run_delay_s=0.1),
        at(3, "client-1", "usage", **usage, cpu_s=2.5, run_delay_s=None),
    )["processes"]
    assert [(row["cpu_s"], row["run_delay_s"], row["peak_private_mb"]) for row in found] == [
        (2.5, 0.5, 20.0)
    ]
    # Another process begins from nothing.
    again = {"pid": 43, "private_mb": 1.0, "cpu_s": 0.1, "run_delay_s": 0.0}
    (row,) = summary_of(
        at(1, "client-1", "usage", **usage, cpu_s=2.0, run_delay_s=0.5),
        at(2, "client-1", "usage", **again),
    )["processes"]
    assert (row["cpu_s"], row["run_delay_s"], row["peak_private_mb"]) == (0.1, 0.0, 20.0)


def test_a_process_is_listed_once_with_what_it_last_used() -> None:
    usage = {"pid": 42, "private_mb": 9.0, "cpu_s": 1.0, "run_delay_s": 0.1}
    found = summary_of(
        at(1, "client-1", "usage", **usage),
        at(2, "client-1", "usage", **usage | {"cpu_s": 2.0}),
    )
    peak = {"peak_private_mb": None, "peak_accelerator_mb": None}
    assert found["processes"] == [{"node": "client-1", **usage, "cpu_s": 2.0, **peak}]


def test_the_peak_of_a_process_is_the_greatest_of_its_rounds() -> None:
    usage = {"pid": 42, "private_mb": 9.0, "cpu_s": 1.0, "run_delay_s": 0.1}
    told = [
        at(n, "client-1", "usage", **usage, peak_private_mb=peak)
        for n, peak in enumerate((12.0, 30.0, 11.0))
    ]
    assert summary_of(*told)["processes"][0]["peak_private_mb"] == 30.0


def test_what_was_computed_adds_up_by_node_and_the_hosts_rate_is_there() -> None:
    rows = [
        at(1, "client-1", "computed", round=n, cpu_s=0.5, device_s=1.5, late_s=late_s)
        for n, late_s in enumerate((0.25, 0.5))
    ]
    unknown = at(1, "client-2", "computed", round=1, cpu_s=0.5, device_s=1.5, late_s=None)
    found = summary_of(at(0, "server", "host_rate", gflops=33.5), *rows, unknown)["compute"]
    assert found["host_gflops"] == 33.5
    assert found["nodes"] == [
        {"node": "client-1", "cpu_s": 1.0, "device_s": 3.0, "late_s": 0.75},
        {"node": "client-2", "cpu_s": 0.5, "device_s": 1.5, "late_s": None},
    ]


def test_a_summary_before_the_end_says_interrupted_and_holds_what_there_is() -> None:
    found = summary_of(
        at(2, "server", "round_started", round=1),
        *MESSAGES,
        finished(1, 4, 2),
        at(5, "server", "round_started", round=2),
    )
    assert found["status"] == "interrupted" and "was not closed" in found["reason"]
    assert found["rounds_done"] == 1
    one, two = found["rounds"]
    assert (one["finished"], one["seconds"]) == (True, 2)
    assert (two["finished"], two["seconds"]) == (False, None)
    assert found["seconds"]["training"] == 2 and found["seconds"]["total"] == 5


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_a_run_that_was_closed_gives_its_own_reason(status: str) -> None:
    closed = at(5, "supervisor", "closed", status=status, reason="no client is left", links={})
    found = summary_of(closed)
    assert (found["status"], found["reason"]) == (status, "no client is left")


def test_an_unknown_event_changes_nothing_but_the_time() -> None:
    before, after = summary_of(), summary_of(at(3, "server", "novelty", peer="nobody"))
    for clock in ("total", "startup", "host_total", "host_startup"):
        assert after["seconds"].pop(clock) == 3 and before["seconds"].pop(clock) == 0
    assert after == before


def test_a_summary_is_read_as_it_was_written() -> None:
    tally = tally_of(*MESSAGES, finished(1, 1, 1), wire(1, (1, 2), (3, 4)))
    found = tally.summary()
    assert msgspec.json.decode(msgspec.json.encode(found), type=Summary) == found


def test_a_message_of_a_round_that_never_began_makes_none() -> None:
    found = summary_of(*begun(1), up(1, 1, payload=5), up(1, 10**6, payload=7))
    assert [entry["round"] for entry in found["rounds"]] == [1]
    assert found["bytes"]["payload"]["up"] == 12


def test_what_probing_sent_is_not_the_runs() -> None:
    certificate = {"verdict": "pass", "reason": "all hold", "checks": []}
    probed = wire(None, (40, 400), (50, 500))["counters"]
    found = summary_of(
        at(1, "supervisor", "certified", seconds=0.5, fidelity=certificate, counters=probed),
        *begun(1),
        finished(1, 2, 1),
        wire(1, (100, 1000), (200, 2000)),
    )
    assert found["fidelity"]["checks"] == certificate["checks"]
    links = {key: certificate[key] for key in ("verdict", "reason")}
    assert found["fidelity"]["links"] == links
    assert found["seconds"]["calibration"] == 0.5
    assert found["bytes"]["wire"] == both(300 - 90, 3000 - 900)
    assert found["rounds"][0]["bytes"]["wire"] == both(300 - 90, 3000 - 900)
    assert found["per_client"][1]["bytes"]["wire"] == both(150, 1500)


def test_operations_of_a_round_are_the_mean_of_those_told() -> None:
    rows = [
        at(n, "client-1", "computed", round=n, flops=flops, cpu_s=0.5, device_s=1.5, late_s=0)
        for n, flops in enumerate((100, 300), start=1)
    ]
    found = summary_of(at(0, "client-1", "ready", samples=9, round_flops=100), *rows)
    assert found["per_client"][0]["round_flops"] == 200
    assert found["compute"]["nodes"][0]["flops"] == 400
