"""Parts of a run of programs: names, endings, flows, rounds by output, and rates of a link."""

import os
import signal
import socket
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from made_events import typed

from testbed.exec import endings, flows, jobs, name_server
from testbed.exec import rounds as rounds_module
from testbed.exec.output import (
    MOST_AT_ONCE,
    MOST_BEHIND,
    MOST_LINE_BYTES,
    MOST_SHOWN,
    Line,
    Output,
)
from testbed.exec.rounds import Rounds
from testbed.network.profiles import load
from testbed.network.topology import plan
from testbed.record.events import Event, Flow
from testbed.record.summary import SummaryBuilder
from testbed.report import programs, rates
from testbed.report.page import doubts, programs_page
from testbed.report.read import Reading, Story
from testbed.run.ledger import RunFailed


def test_a_name_that_is_asked_for_is_refused_with_its_question() -> None:
    question = b"\4pypi\3org\0\0\1\0\1"
    query = b"\xab\xcd\1\0\0\1\0\0\0\0\0\1" + question + b"\0\0)\x10\0\0\0\0\0\0\0"
    assert name_server.asked(query) == "pypi.org"
    answer = name_server.refusal(query)
    assert answer[:2] == query[:2] and answer[12:] == question
    assert answer[2] & 0x80 and answer[3] & 0x0F == 3
    # One question, and no other records.
    assert answer[4:12] == b"\0\1\0\0\0\0\0\0"


def test_a_nodes_address_has_its_name_and_is_no_look_up_outside() -> None:
    question = b"\0011\0010\0010\00210\7in-addr\4arpa\0\0\x0c\0\1"
    query = b"\xab\xcd\1\0\0\1\0\0\0\0\0\0" + question
    assert name_server.asked(query) == "1.0.0.10.in-addr.arpa"
    answer = name_server.pointer(query, "server")
    assert answer[:2] == query[:2] and answer[2] & 0x80 and answer[3] & 0x0F == 0
    assert answer[4:12] == b"\0\1\0\1\0\0\0\0"
    assert answer[12:].startswith(question + b"\xc0\x0c\0\x0c\0\1")
    assert answer.endswith(b"\0\x08\6server\0")
    layout = plan([load("4g")] * 2)
    assert jobs.named(jobs.hosts(layout)) == {
        "10.0.0.1": "server",
        "10.1.0.1": "client-1",
        "10.1.0.2": "client-2",
    }


@pytest.mark.parametrize(
    ("status", "reason", "code", "how"),
    [
        (0, None, 0, "exited with 0"),
        (3 << 8, None, 3, "exited with 3"),
        (15, None, 143, "killed by SIGTERM"),
        (None, "2 No such file or directory: x", 127, "could not start: No such file or dir"),
        (None, "13 Permission denied: x", 126, "could not start: Permission denied: x"),
    ],
)
def test_exit_statuses_are_those_of_a_shell(
    status: int | None, reason: str | None, code: int, how: str
) -> None:
    assert endings.code_of(status, reason) == code
    assert endings.how_of(status, reason).startswith(how)


def message(
    family: int, state: int, port: int, peer: bytes, peer_port: int, sent: int, taken: int
) -> memoryview:
    head = struct.pack("=BBBB", family, state, 0, 0) + struct.pack("!HH", port, peer_port)
    ends = bytes(16) + peer.ljust(16, b"\0") + bytes(4) + struct.pack("=Q", port) + bytes(20)
    information = bytearray(232)
    struct.pack_into("=Q", information, 128, taken)
    struct.pack_into("=I", information, 100, 2)
    struct.pack_into("=QQ", information, 200, sent + 50, 50)
    attribute = struct.pack("=HH", 4 + len(information), 2) + bytes(information)
    return memoryview(head + ends + attribute)


def test_connections_are_read_as_the_kernel_tells_of_them() -> None:
    peer = socket.inet_aton("10.0.0.1")
    found = flows.read(message(socket.AF_INET, 7, 4000, peer, 80, 1000, 200))
    assert found is not None
    assert (found.peer, found.peer_port, found.port) == ("10.0.0.1", 80, 4000)
    assert (found.sent, found.received) == (1000, 200)
    assert (found.resent_segments, found.resent_bytes) == (2, 50)
    mapped = b"\0" * 10 + b"\xff\xff" + peer
    over_six = flows.read(message(socket.AF_INET6, 1, 4000, mapped, 80, 1, 1))
    assert over_six is not None and over_six.peer == "10.0.0.1"
    assert flows.read(message(socket.AF_INET6, 1, 4000, b"\xfe\x80", 80, 1, 1)) is None


def test_lines_come_whole_and_the_last_one_at_the_end(tmp_path: Path) -> None:
    output = Output("client-1", tmp_path)
    out, err = output.descriptors
    os.write(out, b"one\ntw")
    os.write(err, b"bad\xff\n")
    assert [(line.stream, line.text) for line in output.lines()] == [
        ("stdout", "one"),
        ("stderr", "bad\ufffd"),
    ]
    os.write(out, b"o\nthree")
    assert [line.text for line in output.lines()] == ["two"]
    assert [line.text for line in output.lines(last=True)] == ["three"]
    output.close()


def test_what_comes_too_fast_is_passed_over_and_that_is_said_once(tmp_path: Path) -> None:
    output = Output("server", tmp_path)
    out, _ = output.descriptors
    os.write(out, b"first\n")
    assert output.shown(output.lines()) == [Line("server", "stdout", "first")]
    many = MOST_SHOWN + 1
    os.write(out, many * b"y\n")
    found = output.lines()
    assert len(found) == many
    *shown, told = output.shown(found)
    assert shown == found[:MOST_SHOWN]
    assert told.text == f"[what comes too fast is not shown; all of it is in {tmp_path}]"
    os.write(out, MOST_BEHIND * b"-" + b"\nlast\n")
    texts = [line.text for line in output.lines()]
    assert texts[-1] == "last" and sum(map(len, texts)) < MOST_AT_ONCE
    assert output.lines() == []
    output.close()


def test_a_line_without_an_end_comes_in_parts(tmp_path: Path) -> None:
    output = Output("server", tmp_path)
    out, _ = output.descriptors
    os.write(out, 2 * MOST_LINE_BYTES * b"-" + b"end")
    assert [len(line.text) for line in output.lines()] == 2 * [MOST_LINE_BYTES]
    assert [line.text for line in output.lines(last=True)] == ["end"]
    os.write(out, (MOST_LINE_BYTES + 1) * b"-" + b"\n")
    assert [len(line.text) for line in output.lines()] == [MOST_LINE_BYTES, 1]
    output.close()


def test_an_expression_that_takes_for_ever_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds_module, "LINE_LIMIT_S", 0.05)
    rounds = Rounds("(a+)+$", lambda *_: None, lambda: (2, 0))
    line = Line("client-1", "stdout", 40 * "a" + "b")
    with pytest.raises(RunFailed) as refused:
        rounds.take(line)
    assert "round_regex = '(a+)+$': takes more than" in str(refused.value)
    assert "client-1 (41 characters)" in str(refused.value)
    rounds.take(line)
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


def test_rounds_are_those_of_the_first_node_that_prints_one() -> None:
    told: list[tuple[str, int]] = []

    def record(node: str, event: Event) -> None:
        told.append((event.event, event.round))  # type: ignore[attr-defined]

    rounds = Rounds(r"ROUND (\d+)", record, lambda: (2, 0))
    for node, text in (
        *(("server", "[ROUND 1]"), ("client-1", "[ROUND 7]"), ("server", "again [ROUND 1]")),
        *(("server", "nothing"), ("server", "[ROUND 2]")),
    ):
        rounds.take(Line(node, "stdout", text))
    assert rounds.open == 2
    rounds.end()
    rounds.end()
    assert rounds.open is None
    assert told == [("round_started", 1), ("round", 1), ("round_started", 2), ("round", 2)]


def built(*events: dict[str, Any]) -> SummaryBuilder:
    tally = SummaryBuilder()
    run = {
        "event": "run",
        "method": "exec",
        "profile": "4g",
        "client_names": ["client-1"],
        "client_profiles": ["4g"],
        "programs": {"server": "serve", "client-1": "fetch"},
    }
    for event in (run, *events):
        tally.take(typed({"t": 0.0, "node": "supervisor", **event}))
    return tally


def carried(node: str, **fields: Any) -> dict[str, Any]:
    return {"event": "carried", "node": node, **fields}


def test_a_flow_that_both_ends_tell_of_is_one() -> None:
    theirs = Flow("10.0.0.1", 80, False, 2, sent=10, received=1001, resent_segments=1)
    ours = Flow("10.1.0.1", 80, True, 2, sent=1000, received=11, resent_segments=3)
    for first, second in ((0, 1), (1, 0)):
        both = [
            carried("client-1", flows=[msgspec.to_builtins(theirs)]),
            carried("server", flows=[msgspec.to_builtins(ours)]),
        ]
        summary = built(both[first], both[second]).summary()
        (row,) = programs.flows(summary)
        assert (row.who, row.whom, row.connections) == ("client-1", "server:80", 2)
        assert (row.sent, row.received, row.resent) == (10, 1001, 4)
        (client,) = summary.per_client
        assert client.retransmitted.up is not None and client.retransmitted.down is not None
        assert client.retransmitted.up.segments == 1 and client.retransmitted.down.segments == 3


def test_what_meters_cannot_have_seen_is_told() -> None:
    shared = carried("server", sockets=["/run/x"], lookups=["pypi.org"])
    found = doubts.of(built(shared).summary(), "1MB", r"round (\d+)")
    assert found[0].startswith("0 bytes crossed the clients' links, which is less than the 1MB")
    said = r"there are no rounds: no line of any program's output has --round-regex='round (\d+)'"
    assert found[1] == said
    assert "at /run/x (of server)" in found[2]
    assert found[3].startswith("server looked up pypi.org: there is no internet inside")
    assert doubts.of(built().summary(), None, None) == []


def test_rates_spread_bytes_over_the_time_between_readings() -> None:
    def reading(t: float, size: int) -> Reading:
        return Reading(t, [(0, 0), (size, 0)])

    found = rates.rates([reading(0, 0), reading(1, 1000), reading(4, 4000)], 1, 0)
    assert [round(rate, 9) for _, rate in found] == [1.0, 1.0]
    assert [at for at, _ in found] == [1.0, 3.0]


def test_a_run_that_failed_says_when_bytes_stopped() -> None:
    summary = built({"event": "closed", "status": "failed", "reason": "client-1 exited with 1"})
    moments = [(3.0, 0), (4.0, 500), (5.5, 900), (9.0, 900)]
    readings = [Reading(t, [(0, size), (size, 0)]) for t, size in moments]
    story = Story(summary.summary(), {}, [], {}, [], Counter(), None, {}, readings, 0)
    said = programs_page.result(story)
    assert (
        "The run failed: client-1 exited with 1. The last bytes crossed links 2.5 s after" in said
    )
    assert said.endswith("programs began: server's at 2.5 s, client-1's at 2.5 s.")
    unheard = programs_page.result(story._replace(readings=[]))
    assert unheard.endswith("No bytes were seen to cross a link.")
