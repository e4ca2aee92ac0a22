"""The host's part of the certificate: made runs of which is known who waited for what."""

import made_programs
import made_run
import msgspec
import pytest
from made_events import RUN, at, typed
from made_host import CALM, ROUND_S, made, real
from msgspec.structs import replace

from testbed.record import host_load
from testbed.record.events import Fidelity, UpDown
from testbed.record.run_summary import Host, Judged, Resent, ResentUpDown, Summary
from testbed.record.summary import SummaryBuilder


def test_a_machine_that_kept_up_passes_and_says_who_was_nearest() -> None:
    found = host_load.judge(made(real("client-1", 1, 0.02), real("client-2", 1, 0.12)), CALM, 1.5)
    assert found.verdict == "pass"
    assert found.reason == "client-2 was late for 3.0 % of the rounds' time, packets 0.3 ms late"
    assert (found.latest, found.late_share) == ("client-2", 0.03)
    assert (found.links_late_ms, found.busy_cores) == (0.3, 1.5)


def test_a_client_that_waited_for_a_core_fails_it() -> None:
    found = host_load.judge(made(real("client-1", 0.1, 0.02), real("client-2", 0.1, 1.64)), CALM)
    assert found.verdict == "fail"
    assert found.reason.startswith(
        "client-2 waited 41 % of the rounds' time for a core (2 clients on 2 cores)"
    )


@pytest.mark.parametrize(("late_s", "verdict"), [(0.19, "pass"), (0.21, "fail")])
def test_five_percent_of_the_rounds_are_allowed(late_s: float, verdict: str) -> None:
    assert host_load.judge(made(real("client-1", 1, late_s)), CALM).verdict == verdict


@pytest.mark.parametrize(
    "summary",
    [
        made(real("client-1", 1, 1, ratio=2), device="pi"),
        made(
            {"node": "client-1", "flops": 5, "modelled_s": 1, "late_s": 1},
            mode="modelled",
            device="phone",
        ),
    ],
    ids=["stretched", "modelled"],
)
def test_a_device_that_the_machine_was_behind_fails_it_in_its_own_words(
    summary: Summary,
) -> None:
    reason = host_load.judge(summary, CALM).reason
    assert reason.startswith("client-1 was behind its device for 25 % of the rounds' time")


def test_the_server_counts_too() -> None:
    found = host_load.judge(made(real("server", 0.1, 1.0), device="pi"), CALM)
    assert found.reason.startswith("server waited 25 % of the rounds' time for a core")


@pytest.mark.parametrize(
    ("stopped", "reason"),
    [
        ({"client-1": 0.22}, "client-1 stood still for 0.2 s, as by a signal or a debugger"),
        ({"server": 9.5, "client-1": 3}, "server stood still for 9.5 s, as by a signal or a debug"),
        ({"supervisor": 30}, "the run itself stood still for 30.0 s, as by a signal"),
    ],
)
def test_who_stood_still_for_longer_than_one_may_be_late_fails_it(stopped, reason) -> None:
    summary = made(real("client-1", 1, 0), stopped=stopped)
    assert summary.stopped == stopped
    found = host_load.judge(summary, CALM)
    assert found.verdict == "fail" and found.reason.startswith(reason)
    assert (
        host_load.judge(made(real("client-1", 1, 0), stopped={"server": 0.18}), CALM).verdict
        == "pass"
    )


@pytest.mark.parametrize(("seconds", "verdict"), [(0.19, "pass"), (0.21, "fail")])
def test_a_node_of_programs_that_stood_still_for_a_twentieth_of_its_time_fails_it(
    seconds: float, verdict: str
) -> None:
    found = made_programs.events()
    found.insert(-1, at(5, "supervisor", "stopped", peer="client-2", seconds=seconds))
    summary = made_run.summary(found)
    assert summary.stopped == {"client-2": seconds}
    judged = host_load.judge(summary, {})
    assert judged.verdict == verdict
    told = "client-2 stood still for 0.2 s, as by a signal or a debugger"
    assert (judged.reason == told) == (verdict == "fail")


def test_links_that_let_packets_go_late_fail_it() -> None:
    found = host_load.judge(made(real("client-1", 1, 0.0)), {"lateness_p99_ms": 4.0})
    assert found.verdict == "fail"
    assert found.reason == (
        "one packet of a hundred left its link 4.0 ms late or more, of which 2 are allowed"
    )
    assert found.dilation_needed == 3.4


@pytest.mark.parametrize(
    ("facts", "cure"),
    [
        ({"links": "netem"}, "--dilation=3.4"),
        ({"links": "userspace"}, "--dilation=elastic"),
        ({"links": "loopback"}, "--dilation=elastic"),
        ({"links": "userspace", "elastic": True}, "--dilation=3.4"),
        ({"links": "userspace", "dilation": 1.5}, "--dilation=3.4"),
        ({"links": "userspace", "link_facts": {"host": "a"}}, "--dilation=3.4"),
        ({"links": "userspace", "link_facts": {"host": "a"}, "dilation": 4.0}, None),
    ],
)
def test_what_gives_nodes_time_is_an_elastic_clock_where_there_can_be_one(facts, cure) -> None:
    given = replace(made(real("client-1", 1, 0.0)), **facts)
    host = Host("fail", "late", dilation_needed=3.4)
    given = replace(given, fidelity=replace(given.fidelity, host=host))
    assert host_load.cure(given) == cure


def test_where_the_nodes_themselves_had_time_the_trial_finds_what_to_type() -> None:
    given = replace(made(real("client-1", 1, 0.0)), links="userspace", elastic=True)
    host = Host("fail", "crowded", dilation_needed=1.0)
    given = replace(given, fidelity=replace(given.fidelity, host=host))
    assert host_load.cure(given) == "--dilation=auto"


def test_links_that_the_kernel_shapes_say_nothing_of_lateness() -> None:
    found = host_load.judge(made(real("client-1", 1, 0.0)), {})
    assert (found.verdict, found.links_late_ms) == ("pass", None)
    assert found.reason == "client-1 was late for 0.0 % of the rounds' time"


def test_what_is_not_known_is_not_judged() -> None:
    unknown = host_load.judge(made(real("client-1", 1, None)), CALM)
    assert (unknown.verdict, "does not say" in unknown.reason) == ("skipped", True)
    none = host_load.judge(made(real("client-1", 1, 0), rounds=0), CALM)
    assert (none.verdict, none.reason) == ("skipped", "no round was finished")


# How much dilation would be enough


def test_twenty_clients_on_two_cores_need_ten_and_a_little() -> None:
    """Each computes for 0.1 s in a round and waits for a core 0.9 s; the network takes 0.2 s."""
    rows = [real(f"client-{n}", 0.2, 1.8) for n in (1, 2)]
    summary = made(*rows)
    for entry in summary.rounds:
        entry.seconds = 1.2
    assert 12 <= host_load.enough(summary, CALM) <= 18


def test_a_machine_that_keeps_up_needs_none() -> None:
    assert host_load.enough(made(real("client-1", 1, 0.0)), CALM) == 1


def test_with_enough_a_node_is_late_for_no_more_than_what_is_aimed_at() -> None:
    """Whatever it was busy for takes it as long again, in seconds that are as much longer."""
    for late_s in (0.5, 1.0, 3.9):
        row = real("client-1", 0.1, late_s)
        dilation = host_load.enough(made(row), CALM)
        busy_s = row["cpu_s"] + late_s
        rounds_s = 2 * ROUND_S - late_s
        late_then_s = busy_s / dilation - row["cpu_s"]
        assert late_then_s <= host_load.AIMED_SHARE * max(rounds_s, 0.1) + 1e-9


def test_what_a_dilated_run_found_counts_its_own_dilation() -> None:
    one = host_load.enough(made(real("client-1", 0.1, 1.0)), CALM)
    assert host_load.enough(made(real("client-1", 0.1, 1.0), dilation=3.0), CALM) == pytest.approx(
        3 * one, abs=2
    )


def test_a_device_faster_than_a_core_needs_its_factor() -> None:
    found = host_load.enough(made(real("client-1", 1, 0.0, ratio=1 / 30), device="phone"), CALM)
    assert 30 < found <= 60


@pytest.mark.parametrize("late_s", [0.0, 2 * ROUND_S])
def test_a_device_too_fast_for_the_record_is_one_that_no_dilation_shows(late_s: float) -> None:
    row = {**real("client-1", 1, late_s), "device_s": 0.0}
    summary = replace(made(row, device="1e9"), links="netem")
    host = host_load.judge(summary, {**CALM, "lateness_p99_ms": 4.0})
    assert host.dilation_needed >= 1e6
    given = replace(summary, fidelity=replace(summary.fidelity, host=host))
    assert host_load.cure(given) is None


# In the summary


LINKS = {"verdict": "pass", "reason": "all 6 checks hold", "checks": []}


@pytest.mark.parametrize(
    ("links", "own", "whole"),
    [
        ("pass", "pass", "pass"),
        ("pass", "fail", "fail"),
        ("fail", "pass", "fail"),
        ("skipped", "pass", "skipped"),
        ("skipped", "fail", "fail"),
    ],
)
def test_the_whole_is_the_worse_part(links: str, own: str, whole: str) -> None:
    told = msgspec.convert({**LINKS, "verdict": links}, Fidelity)
    host = msgspec.convert({"verdict": own, "reason": "the host"}, Host)
    found = host_load.combined(told, host, Judged("pass", "nobody"))
    assert found.verdict == whole
    assert (found.links.verdict, found.links.reason) == (links, LINKS["reason"])
    assert found.host.verdict == own
    assert found.reason in (LINKS["reason"], "the host")


def test_a_run_that_did_not_end_has_no_verdict_on_its_host() -> None:
    assert made().fidelity.host.verdict == "skipped"


def test_what_was_judged_stands_in_the_summary() -> None:
    tally = SummaryBuilder()
    tally.take(typed({"t": 0.0, "node": "supervisor", **RUN}))
    tally.take(typed(at(1, "supervisor", "certified", seconds=1, fidelity=LINKS, counters=[])))
    figures = dict.fromkeys(Host.__struct_fields__)
    told = figures | {"verdict": "fail", "reason": "client-1 waited", "late_share": 0.5}
    tally.take(typed(at(2, "supervisor", "host", **told)))
    fidelity = tally.summary().fidelity
    assert (fidelity.verdict, fidelity.reason) == ("fail", "client-1 waited")
    assert msgspec.to_builtins(fidelity.host) == told
    assert fidelity.links.verdict == "pass"


@pytest.mark.parametrize(
    ("elastic", "segments", "lost", "verdict"),
    [(True, 8, 0, "fail"), (True, 6, 0, "pass"), (True, 8, 2, "pass"), (False, 8, 0, "pass")],
)
def test_packets_that_stood_still_must_not_be_sent_again(elastic, segments, lost, verdict) -> None:
    """Of 1,000,000 bytes on the wire."""
    given = made(real("client-1", 1, 0.0))
    client = replace(
        given.per_client[0],
        retransmitted=ResentUpDown(up=Resent(segments, 1448 * segments)),
        losses=UpDown(lost, 0),
    )
    wire = replace(given.bytes, wire=UpDown(400_000, 600_000))
    found = host_load.judge(replace(given, elastic=elastic, per_client=[client], bytes=wire), CALM)
    assert found.verdict == verdict
    assert ("TCP sent 1.2 % of all bytes again" in found.reason) == (verdict == "fail")


@pytest.mark.parametrize(("crowded_share", "verdict"), [(0.6, "pass"), (0.7, "fail")])
def test_an_elastic_clock_must_not_go_on_while_others_have_the_cores(crowded_share, verdict):
    given = made(real("client-1", 1, 0.0))
    rounds_s = sum(entry.seconds for entry in given.rounds)
    found = host_load.judge(given, CALM | {"crowded_ms": 1000 * crowded_share * rounds_s})
    assert found.verdict == verdict
    assert ("70 % of the rounds' time more programs were" in found.reason) == (verdict == "fail")


def test_a_host_that_is_gone_fails_it() -> None:
    gone = {"b": "it closed the connection"}
    found = host_load.judge(made(real("client-1", 1, 0.0)), {}, gone=gone)
    assert found.verdict == "fail"
    assert found.reason == "host b is gone: it closed the connection"
