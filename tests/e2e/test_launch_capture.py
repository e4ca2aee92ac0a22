"""A run that captures: its files against the links' counters, and its trace."""

import json

import captured
import pytest
from running import FAST

WAYS = ("up", "down")


@pytest.fixture(scope="module")
def run(userspace_links, launch_for_module):
    run = launch_for_module(
        "--links=userspace", "--profile=4g", "--clients=2", "--rounds=2", "--pcap", *FAST
    )
    assert run.finish() == 0, run.describe()
    return run


@pytest.fixture(scope="module")
def files(run):
    """Address of each client and the packets of its file."""
    names = ["client-1", "client-2"]
    assert [path.name for path in sorted((run.folder / "captures").iterdir())] == [
        f"{name}.pcap" for name in names
    ]
    found = [captured.read(run.folder / "captures" / f"{name}.pcap") for name in names]
    return dict(zip(("10.1.0.1", "10.1.0.2"), found, strict=True))


def test_captured_bytes_are_those_of_the_counters_by_client_and_direction(run, files):
    for client, (address, packets) in zip(run.summary["per_client"], files.items(), strict=True):
        found = captured.wire(packets, address)
        for way in WAYS:
            assert found[way][1] == pytest.approx(client["bytes"]["wire"][way], rel=0.005)
            # A whole model each way and round is in there.
            assert found[way][1] > client["bytes"]["payload"][way] > 1_000_000
    captures = run.summary["captures"]
    assert captures["packets"] == sum(map(len, files.values()))
    assert (captures["dropped_packets"], captures["failure"]) == (0, None)


def test_retransmissions_stand_apart_from_other_bytes(run, files):
    for client, (address, packets) in zip(run.summary["per_client"], files.items(), strict=True):
        told, again = client["retransmitted"], captured.sent_again(packets, address)
        # What is sent again after a node's last word is not in it.
        assert told["up"]["segments"] <= again[0] and told["up"]["bytes"] <= again[1]
        assert told["down"]["bytes"] < 0.1 * client["bytes"]["wire"]["down"]
        # Almost all that is on the wire beyond messages and headers was sent again.
        frames, size = captured.wire(packets, address)["up"]
        payload = size - again[1] - 66 * frames
        assert payload == pytest.approx(client["bytes"]["message"]["up"], rel=0.01)


def test_the_trace_tells_the_same_times_as_the_summary(run):
    document = json.loads((run.folder / "trace.json").read_text())
    spans = [event for event in document["traceEvents"] if event["ph"] == "X"]
    for entry in run.summary["rounds"]:
        rows = [entry["server_spans"], *entry["spans"]]
        for pid, row in enumerate(rows):
            own = [event for event in spans if event["pid"] == pid]
            (whole,) = (event for event in own if event["name"] == f"round {entry['round']}")
            assert whole["dur"] == pytest.approx(1e6 * entry["seconds"], abs=2)
            ends = whole["ts"] + whole["dur"]
            for kind in ("receive", "compute", "send", "wait"):
                inside = [e for e in own if e["name"] == kind and whole["ts"] <= e["ts"] < ends]
                total = sum(event["dur"] for event in inside)
                assert total == pytest.approx(1e6 * row[f"{kind}_s"], abs=2)
        assert 0 < entry["ideal_s"] < entry["seconds"] * 1.01


def test_loopback_links_have_nothing_to_capture(launch):
    run = launch("--links=loopback", "--clients=2", "--pcap")
    assert run.finish() == 2
    assert not run.out.exists() and run.stdout == ""
    assert "pcap = true: loopback links have no packets of a client's own" in run.stderr
    assert run.stderr.count("\n") == 1
