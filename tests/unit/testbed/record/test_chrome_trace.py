"""trace.json of a made run: as the format has it, nested, and no other times than the spans'."""

import itertools
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec
import pytest
from made_events import typed

from testbed.record import chrome_trace
from testbed.record.spans import Timeline, seconds

S = 1_000_000_000
ORIGIN_NS = 1_000_000_000_007
NAMES = ["client-1", "client-2"]


def at(t: float, node: str, event: str, **fields: Any) -> dict[str, Any]:
    return {"t": t, "node": node, "event": event, **fields}


def message(sender: str, receiver: str, number: int, sent_s: float, taken_s: float) -> Any:
    return at(
        taken_s,
        receiver,
        "message",
        peer=sender,
        kind="adapter",
        round=number,
        payload_bytes=1000,
        message_bytes=1010,
        sent_ns=ORIGIN_NS + round(sent_s * S),
        received_ns=ORIGIN_NS + round(taken_s * S),
    )


def rounds(count: int) -> list[dict[str, Any]]:
    """Rounds of 2.7 s, 3 s after each other, of two clients."""
    told: dict[str, Any] = {"client_profiles": ["4g"] * 2, "config": {}}
    ended = {"metrics": {}, "clients_ok": 2, "clients_failed": 0}
    found = [at(0.25, "supervisor", "run", origin_ns=ORIGIN_NS, client_names=NAMES, **told)]
    for number in range(1, count + 1):
        start = 3.0 * number
        found.append(at(start, "server", "round_started", round=number))
        for place, name in enumerate(NAMES, start=1):
            found += [
                message("server", name, number, start + 0.1 * place, start + 0.4 * place),
                message(name, "server", number, start + 0.7 * place, start + 1.1 * place),
            ]
        found.append(at(start + 2.8, "server", "round", round=number, seconds=2.7, **ended))
    return found


def document_of(events: list[dict[str, Any]], **options: int) -> dict[str, Any]:
    text = msgspec.json.encode(chrome_trace.trace(map(typed, events), **options))
    found = json.loads(text)
    assert isinstance(found, dict)
    return found


def traced(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = document_of(events)["traceEvents"]
    assert isinstance(found, list)
    return found


def test_the_file_is_json_of_the_format(tmp_path: Path) -> None:
    events = rounds(2)
    lines = b"".join(msgspec.json.encode(event) + b"\n" for event in events)
    (tmp_path / "events.jsonl").write_bytes(lines)
    chrome_trace.write(tmp_path)
    document = json.loads((tmp_path / "trace.json").read_text())
    assert document == document_of(events)
    assert {path.name for path in tmp_path.iterdir()} == {"events.jsonl", "trace.json"}
    for event in document["traceEvents"]:
        assert isinstance(event["name"], str) and isinstance(event["pid"], int)
        assert event["ph"] in "MXbei"
        assert event["ph"] == "M" or event["ts"] >= 0
        assert event["ph"] != "X" or event["dur"] > 0
    assert document["otherData"].keys() == {"wiretune"}


def test_every_node_is_a_process() -> None:
    names = {
        event["pid"]: event["args"]["name"]
        for event in traced(rounds(1))
        if event["name"] == "process_name"
    }
    assert names == {0: "server", 1: "client-1", 2: "client-2"}


def test_spans_nest_in_their_rounds_and_do_not_overlap() -> None:
    tracks = defaultdict(list)
    for event in traced(rounds(3)):
        if event["ph"] == "X":
            tracks[event["pid"]].append(event)
    assert tracks.keys() == {0, 1, 2}
    for track in tracks.values():
        around = [event for event in track if event["name"].startswith("round ")]
        assert [event["name"] for event in around] == ["round 1", "round 2", "round 3"]
        for one, other in itertools.pairwise(around):
            assert one["ts"] + one["dur"] <= other["ts"]
        for whole in around:
            ends = whole["ts"] + whole["dur"]
            inside = [e for e in track if e is not whole and whole["ts"] <= e["ts"] < ends]
            # A viewer nests by order where two begin together.
            assert track.index(whole) < min(track.index(event) for event in inside)
            assert inside[0]["ts"] == whole["ts"]
            for one, other in itertools.pairwise([*inside, {"ts": ends}]):
                assert one["ts"] + one["dur"] == pytest.approx(other["ts"], abs=1e-3)


def test_durations_are_those_of_the_spans() -> None:
    timeline = Timeline()
    for event in rounds(2):
        timeline.take(typed(event))
    found: Any = defaultdict(float)
    for event in traced(rounds(2)):
        if event["ph"] == "X":
            found[event["pid"], event["ts"] // 3e6, event["name"]] += event["dur"] / 1e6
    for number, entry in timeline.rounds.items():
        for pid, node in enumerate(["server", *NAMES]):
            assert found[pid, number, f"round {number}"] == pytest.approx(2.7)
            for kind in ("receive", "compute", "send", "wait"):
                total = getattr(seconds(entry.spans()[node]), f"{kind}_s")
                assert found[pid, number, kind] == pytest.approx(total)
    # By hand: client-2 receives from 3.2 to 3.8, computes to 4.4, sends to 5.2, ends at 5.7.
    of_two = [found[2, 1, kind] for kind in ("receive", "compute", "send", "wait")]
    assert of_two == pytest.approx([0.6, 0.6, 0.8, 0.7])


def test_messages_have_their_bytes_and_times_and_are_paired() -> None:
    events = traced(rounds(1))
    begun = {event["id"]: event for event in events if event["ph"] == "b"}
    ended = {event["id"]: event for event in events if event["ph"] == "e"}
    assert begun.keys() == ended.keys() and len(begun) == 4
    for key, event in begun.items():
        assert ended[key]["ts"] > event["ts"]
        assert all(event[field] == ended[key][field] for field in ("pid", "name", "cat"))
        assert event["name"] == "adapter" and event["args"]["payload_bytes"] == 1000
    (up,) = (e for e in begun.values() if e["args"]["from"] == "client-2")
    assert (up["pid"], up["ts"], ended[up["id"]]["ts"]) == (2, 4.4e6, 5.2e6)
    assert up["args"]["to"] == "server" and up["args"]["message_bytes"] == 1010


def test_an_all_reduce_is_an_event_of_its_client() -> None:
    stamps = {"began_ns": ORIGIN_NS + 4 * S, "ended_ns": ORIGIN_NS + 5 * S}
    facts = {"round": 1, "members": 2, "received": {"client-1": 9}, "reason": None}
    found = traced([*rounds(1), at(5, "client-2", "reduced", **stamps, **facts)])
    begins, ends = (event for event in found if event["name"] == "allreduce")
    assert (begins["ph"], begins["ts"], ends["ph"], ends["ts"]) == ("b", 4e6, "e", 5e6)
    assert begins["pid"] == 2
    assert begins["args"] == facts


def test_changes_of_links_are_instants_of_their_node() -> None:
    change = at(4.5, "client-2", "shaped", at_s=1.5, actual_s=1.5, up={"rate_kbit": 9.0}, down={})
    lost = at(4.6, "supervisor", "lost", peer="client-1", reason="killed")
    found = [event for event in traced([*rounds(1), change, lost]) if event["ph"] == "i"]
    assert [(e["name"], e["pid"], e["ts"]) for e in found] == [
        ("link changes", 2, 4.5e6),
        ("lost", 1, 4.6e6),
    ]
    assert found[0]["args"]["up"] == {"rate_kbit": 9.0}


@pytest.mark.parametrize("most", [1, 20, 50])
def test_a_long_run_is_cut_to_its_first_events_and_says_so(most: int) -> None:
    whole, cut = rounds(40), document_of(rounds(40), most=most)
    events = [event for event in cut["traceEvents"] if event["ph"] != "M"]
    assert len(events) == most
    assert cut["otherData"]["truncated"] == f"only the first {most} events of the run"
    first = [event for event in traced(whole) if event["ph"] != "M"][: most // 2]
    assert [event["ts"] for event in events[: most // 2]] == [event["ts"] for event in first]


def test_a_run_that_ended_before_its_first_round_has_a_trace() -> None:
    assert [event["ph"] for event in traced(rounds(0))] == 9 * ["M"]
    assert traced([])[0]["args"] == {"name": "server"}
