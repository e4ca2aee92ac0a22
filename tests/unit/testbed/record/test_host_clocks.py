"""Times of several hosts in one record: by one clock, however far apart theirs are."""

import json
from pathlib import Path

import pytest

from testbed.record.events import Message, Reduced
from testbed.record.host_clocks import HostClock, HostClocks, since_began
from testbed.record.recorder import Recorder

S = 1_000_000_000
HOST_OF = {"server": "a", "client-1": "b", "client-2": "c"}
AHEAD = {"b": HostClock(-1234.0, 1e-5), "c": HostClock(0.25, 2e-5)}
"""Of c the driver's clock is ahead, of b it is 1234 s behind."""


def message(peer: str, sent_s: float, received_s: float) -> Message:
    return Message(
        peer=peer,
        kind="model",
        round=1,
        payload_bytes=10,
        message_bytes=20,
        sent_ns=round(sent_s * S),
        received_ns=round(received_s * S),
    )


def times(event: Message) -> tuple[float, float]:
    return event.sent_ns / S, event.received_ns / S


@pytest.mark.parametrize(
    ("node", "peer", "sent_s", "received_s"),
    [
        ("server", "client-1", 5.0 + 1234.0, 5.1),
        ("client-1", "server", 5.0, 5.1 + 1234.0),
        ("client-1", "client-2", 5.0 - 0.25, 5.1 + 1234.0),
        ("client-2", "client-1", 5.0 + 1234.0, 5.1 - 0.25),
    ],
)
def test_a_message_is_sent_by_its_senders_clock_and_received_by_its_receivers(
    node: str, peer: str, sent_s: float, received_s: float
) -> None:
    clocks = HostClocks(HOST_OF)
    clocks.clocks = AHEAD
    event = message(peer, sent_s, received_s)
    clocks.correct(node, event)
    assert times(event) == pytest.approx((5.0, 5.1), abs=1e-9)


def test_all_of_an_all_reduce_is_by_its_clients_clock() -> None:
    clocks = HostClocks(HOST_OF)
    clocks.clocks = AHEAD
    own = [round((second + 1234) * S) for second in (1, 2, 3)]
    event = Reduced(
        round=1,
        members=2,
        began_ns=own[0],
        connected_ns=own[1],
        ended_ns=own[2],
        received={},
        reason=None,
    )
    clocks.correct("client-1", event)
    assert (event.began_ns, event.connected_ns, event.ended_ns) == (S, 2 * S, 3 * S)


def test_what_a_host_lacks_is_what_its_clock_has_drifted_since_the_run_began() -> None:
    # Theirs is 1234 s ahead; since then it has gained 3 ms, at a dilation of 2.
    found = since_began(1234.003, 1e-5, -1234.0, 2.0)
    assert found.behind_s == pytest.approx(-0.0015)
    assert found.error_s == pytest.approx(5e-6)


def test_a_record_has_the_drivers_times_and_nothing_sent_after_it_came(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, 0.0)
    recorder.clocks = HostClocks(HOST_OF)
    recorder.write("server", message("client-1", 5.0, 5.1))
    recorder.clocks.clocks = AHEAD
    recorder.write("server", message("client-1", 5.0 + 1234.0, 5.1))
    # Clocks are known to some 10 µs, and the way may take less.
    recorder.write("server", message("client-1", 5.1 + 1234.0 + 1e-5, 5.1))
    recorder.close()
    lines = map(json.loads, (tmp_path / "events.jsonl").read_text().splitlines())
    ways_s = [(line["received_ns"] - line["sent_ns"]) / S for line in lines]
    assert ways_s == pytest.approx([0.1, 0.1, 0.0], abs=1e-9)
