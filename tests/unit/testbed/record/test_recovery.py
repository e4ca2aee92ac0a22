"""The record of a killed run: what of it counts, and the summary of one that went on."""

from __future__ import annotations

import fcntl
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_run
import pytest
from made_events import typed

from testbed.config_error import ConfigError
from testbed.record import chrome_trace
from testbed.record import recovery as module
from testbed.record.events import Event as Typed
from testbed.record.events import Message, UpDown, as_dict
from testbed.record.recorder import Recorder
from testbed.record.recovery import Killed, ReplayFilter, resumed_from
from testbed.record.run_summary import Resent
from testbed.record.spans import Timeline
from testbed.report import read

Event = dict[str, Any]
STARTUP_S = 10.0
"""From a made-up run's beginning to its first round."""


def cut(found: list[Event], after: int, more: int = 3) -> list[Event]:
    """The record of a run killed ``more`` events after a round was over."""
    at = next(n for n, e in enumerate(found) if e["event"] == "wire" and e["round"] == after)
    return found[: at + 1 + more]


def go_on(record: list[Event], after: int, rounds: int = 4, **fields: Any) -> list[Event]:
    """A killed run's record with that of its going on: a new network, whose counters begin at 0."""
    last_t = record[-1]["t"]
    lost = {level: {"up": 7, "down": 9} for level in ("payload", "message")}
    told = {"round": after, "at_s": last_t, "lost": {**lost, "seconds": 2.5}} | fields
    found = [{"t": last_t + 1, "node": "supervisor", "event": "resumed", **told}]
    begins = STARTUP_S + made_run.ROUND_S * after
    counted = made_run.WIRE * after
    for event in made_run.events(rounds=rounds)[1:]:
        number = event.get("round")
        if (number is not None and number <= after) or event["event"] == "evaluated":
            continue
        again = event["event"] in ("closed", "links", "certified", "ready")
        if number is None and not again and event["t"] <= begins:
            continue
        event = json.loads(json.dumps(event))
        if event["t"] >= STARTUP_S:
            event["t"] += last_t + STARTUP_S - begins
        else:
            event["t"] += last_t
        for name in ("sent_ns", "received_ns"):
            if name in event:
                event[name] += int((last_t + STARTUP_S - begins) * made_run.S)
        if event["event"] == "wire":
            for link in event["counters"][1:]:
                for n, way in enumerate(link):
                    link[n] = [way[0] - after, way[1] - counted, *way[2:]]
        found.append(event)
    return [*record, *found]


def counted(record: list[Event]) -> list[Event]:
    found = module.counted(io.BytesIO(b"".join(made_run.lines(record))))
    return [as_dict(event) for event in found]


UNDISTURBED = made_run.events(rounds=4)
SAME = ("bytes", "rounds_done", "metrics", "status", "reason", "fidelity", "per_client")


@pytest.mark.parametrize("more", [0, 1, 3, 6])
def test_the_summary_is_that_of_one_run(more: int) -> None:
    record = go_on(cut(UNDISTURBED, 2, more), 2)
    summary, other = made_run.summary(counted(record)), made_run.summary(UNDISTURBED)
    for field in SAME:
        assert getattr(summary, field) == getattr(other, field), field
    assert summary.rounds == other.rounds
    assert summary.seconds.startup == STARTUP_S
    assert summary.seconds.training == pytest.approx(other.seconds.training)
    (again,) = summary.resumed
    assert again.from_round == 2 and again.startup_s == pytest.approx(STARTUP_S)
    assert again.lost.seconds == 2.5 and again.verdict_before == "fail"


def test_it_may_go_on_before_its_last_round_and_again() -> None:
    record = go_on(cut(UNDISTURBED, 3, 2), 1)
    at = next(n for n, e in enumerate(record) if e["event"] == "resumed")
    over = [n for n, e in enumerate(record) if e["event"] == "wire" and n > at and e["round"] == 3]
    record = go_on(record[: over[0] + 2], 3)
    summary, other = made_run.summary(counted(record)), made_run.summary(UNDISTURBED)
    for field in (*SAME, "rounds"):
        assert getattr(summary, field) == getattr(other, field), field
    assert [again.from_round for again in summary.resumed] == [1, 3]
    assert summary.seconds.training == pytest.approx(other.seconds.training)


def test_without_a_finished_round_only_the_new_start_counts() -> None:
    at = next(n for n, e in enumerate(UNDISTURBED) if e["event"] == "wire")
    record = go_on(UNDISTURBED[: at - 1], 0)
    summary, other = made_run.summary(counted(record)), made_run.summary(UNDISTURBED)
    assert summary.rounds == other.rounds
    assert summary.seconds.startup == pytest.approx(STARTUP_S)


def test_a_client_lost_before_is_there_again() -> None:
    record = cut(UNDISTURBED, 2)
    lost = {"t": 20.0, "node": "supervisor", "event": "lost", "peer": "client-1", "reason": "x"}
    at = next(n for n, e in enumerate(record) if e["event"] == "round_started" and e["round"] == 2)
    record.insert(at, lost)
    assert made_run.summary(record).per_client[0].lost == "x"
    assert made_run.summary(counted(go_on(record, 2))).per_client[0].lost is None


def test_what_was_sent_again_adds_up() -> None:
    def usage(t: float, figures: list[int]) -> Event:
        own = {"pid": 7, "private_mb": 20.0, "cpu_s": 3.0, "run_delay_s": 1.0}
        told = {"t": t, "node": "client-1", "event": "usage", **own}
        return {**told, "retransmitted": {"10.0.0.1": figures}}

    record = cut(UNDISTURBED, 2, 0)
    record = go_on([*record, usage(record[-1]["t"], [2, 2800])], 2)
    record.insert(-1, usage(record[-2]["t"], [1, 1400]))
    found = made_run.summary(counted(record)).per_client[0].retransmitted.up
    assert found == Resent(segments=3, bytes=4200)


def test_trace_and_report_have_each_round_once(tmp_path: Path) -> None:
    folder = made_run.folder(tmp_path / "run", go_on(cut(UNDISTURBED, 2), 2))
    story = read.read(folder)
    assert [each.number for each in story.rounds] == [1, 2, 3, 4]
    assert all(each.finished for each in story.rounds)
    assert story.torn_lines == 0
    chrome_trace.write(folder)
    trace = json.loads((folder / "trace.json").read_text())["traceEvents"]
    names = [event["name"] for event in trace]
    assert [names.count(f"round {n}") for n in (1, 2, 3, 4)] == [3] * 4
    assert names.count("resumed") == 1
    assert names.count("adapter") == 2 * 2 * 2 * 4  # Begins and ends, ways, clients, rounds.


WHOLE: dict[str, Event] = {event["event"]: event for event in go_on(UNDISTURBED, 2)} | {
    "shaped": {"event": "shaped", "at_s": 1, "actual_s": 1}
}


def of_kind(kind: str, fields: Event) -> Typed:
    return typed({**WHOLE[kind], **fields})


def test_events_that_a_run_did_again_are_told_apart() -> None:
    asked = ReplayFilter([2, 1])
    told = [
        ("run", {}, True),
        ("ready", {}, True),
        ("message", {"round": 0}, True),
        ("round_started", {"round": 1}, True),
        ("wire", {"round": 1}, True),
        ("usage", {}, True),
        ("round_started", {"round": 2}, False),
        ("message", {"round": 1}, True),  # Of a client that was heard a little later.
        ("shaped", {}, False),
        ("wire", {"round": None}, False),
        ("closed", {}, False),
        ("resumed", {"round": 2}, True),
        ("links", {}, True),
        ("round_started", {"round": 3}, False),
        ("closed", {}, False),
        ("resumed", {"round": 1}, True),
        ("ready", {}, True),
        ("round_started", {"round": 2}, True),
        ("usage", {}, True),
        ("wire", {"round": None}, True),
        ("closed", {}, True),
    ]
    for event, fields, kept in told:
        assert asked.keeps(of_kind(event, fields)) is kept, (event, fields)


def test_late_answers_of_an_asynchronous_run_belong_to_the_round_they_come_in() -> None:
    late = of_kind("message", {"round": 1})
    told = [of_kind("round_started", {"round": 3}), late]
    for asynchronous in (False, True):
        asked = ReplayFilter([2])
        run = of_kind("run", {"asynchronous": asynchronous})
        assert [asked.keeps(event) for event in (run, late, *told)] == [
            *(True, True, False, not asynchronous)
        ]


def test_text_that_looks_like_it_is_no_resumption() -> None:
    lines = [
        b'{"event":"failed","t":1,"node":"server","traceback":"\\"resumed\\""}\n',
        *made_run.lines(go_on([UNDISTURBED[0]], 4)[1:2]),
    ]
    assert resumed_from([*lines, b'torn "resumed"']) == [4]


# A killed run's folder


def folder(place: Path, record: list[Event], tail: bytes = b"") -> Path:
    place.mkdir(exist_ok=True)
    (place / "events.jsonl").write_bytes(b"".join(made_run.lines(record)) + tail)
    return place


def test_what_a_killed_run_has_left(tmp_path: Path) -> None:
    record = cut(UNDISTURBED, 2, 4)
    killed = Killed(folder(tmp_path, record, b'{"t":99,"nod'))
    assert (killed.rounds, killed.last_t, killed.resumed_from) == (2, record[-1]["t"], [])
    assert killed.facts.method == "fedpeft"
    assert list(killed.events(2)) == [typed(event) for event in cut(UNDISTURBED, 2, 0)]
    # Of round 3: its start, one message down and one up; a client's usage came between.
    lost = killed.lost(2)
    assert lost.payload == UpDown(made_run.PAYLOAD, made_run.PAYLOAD)
    over = next(e for e in record if e["event"] == "wire" and e["round"] == 2)
    assert lost.seconds == record[-1]["t"] - over["t"]
    # Of a round less, round 2 is lost as well.
    assert killed.lost(1).payload.up == 3 * made_run.PAYLOAD
    assert max(getattr(e, "round", 0) or 0 for e in killed.events(1)) == 1
    killed.close()


def test_what_was_lost_once_is_not_told_again(tmp_path: Path) -> None:
    record = go_on(cut(UNDISTURBED, 2, 4), 2)
    at = next(n for n, e in enumerate(record) if e["event"] == "resumed")
    killed = Killed(folder(tmp_path, record[: at + 3]))
    assert killed.rounds == 2
    assert killed.lost(2).payload == UpDown(0, 0)
    killed.close()


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (lambda path: None, "cannot read events.jsonl (No such file"),
    "nothing": (lambda path: folder(path, []), "had not begun"),
    "no run": (lambda path: folder(path, UNDISTURBED[1:]), "had not begun"),
    "a torn beginning": (lambda path: folder(path, [], b'{"t":0,"no'), "had not begun"),
    "another version": (lambda path: folder(path, [{"x": 1}]), "not as this version writes it"),
    "no JSON": (lambda path: folder(path, [], b"text\n"), "not as this version writes it"),
    "a run that is over": (lambda path: folder(path, UNDISTURBED), "the run is over"),
    "a run of programs": (
        lambda path: folder(path, [{**UNDISTURBED[0], "programs": {"server": "true"}}]),
        "`exec -f` on its config.toml repeats them",
    ),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_cannot_go_on_is_refused(tmp_path: Path, case: str) -> None:
    make, words = REFUSED[case]
    path = tmp_path / "run"
    make(path)
    with pytest.raises(ConfigError, match="--resume") as caught:
        Killed(path)
    assert words in str(caught.value)


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_a_run_that_ended_badly_can_go_on(tmp_path: Path, status: str) -> None:
    record = [*UNDISTURBED[:-1], {**UNDISTURBED[-1], "status": status}]
    Killed(folder(tmp_path, record)).close()


def test_a_run_is_locked_while_it_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOCK_LIMIT_S", 0.0)
    recorder = Recorder(tmp_path, 0.0)
    recorder.write("supervisor", typed(UNDISTURBED[0]))
    with pytest.raises(ConfigError, match="still goes on in another process"):
        Killed(tmp_path)
    # A process that it has forked holds the lock as well.
    held = os.dup(recorder._file.fileno())
    recorder.close()
    with pytest.raises(ConfigError, match="still goes on in another process"):
        Killed(tmp_path)
    os.close(held)
    killed = Killed(tmp_path)
    again = Recorder(tmp_path, 0.0, killed)
    with pytest.raises(ConfigError, match="still goes on in another process"):
        Killed(tmp_path)
    again.close()
    Killed(tmp_path).close()


def test_a_file_system_without_locks_still_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    recorder = Recorder(tmp_path, 0.0)
    recorder.write("supervisor", typed(UNDISTURBED[0]))
    recorder.close()
    with pytest.raises(ConfigError, match="cannot lock"):
        Killed(tmp_path)


def test_a_record_goes_on_where_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1000.0
    monkeypatch.setattr("testbed.record.recorder.time.monotonic", lambda: now_s)
    record = [{**UNDISTURBED[0], "origin_ns": 5 * made_run.S}, *cut(UNDISTURBED, 2)[1:]]
    killed = Killed(folder(tmp_path, record, b'{"t":99,"nod'))
    recorder = Recorder(tmp_path, 990.0, killed)
    written = typed(made_run.message("client-1", "server", 3, 998, 999))
    assert isinstance(written, Message)
    recorder.write("server", written)
    recorder.close()
    lines = (tmp_path / "events.jsonl").read_bytes().splitlines()
    assert len(lines) == len(record) + 1 and json.loads(lines[-1]) == as_dict(written)
    # Ten seconds after the command, which came right after the last event.
    assert written.t == record[-1]["t"] + 10
    timeline = Timeline()
    timeline.take(typed({**record[0], "t": 0}))
    assert timeline.origin_ns is not None
    sent_t = (written.sent_ns - timeline.origin_ns) / made_run.S
    assert sent_t == pytest.approx(record[-1]["t"] + 8)
