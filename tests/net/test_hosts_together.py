"""Around a run on two hosts: its certificate, rows, clocks, and who could have a part in it."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import captured
import pytest
from machines import LIMIT_S, Machines, said
from several_hosts import may_set_clocks
from test_runs_on_hosts import FAST

LINKS = (
    "--clients=3",
    "--profile=4g",
    "--links=userspace",
    "--rounds=2",
    *FAST,
    "--method=fedpeft",
)
PLACE = "--place=server=a,client-1=a,client-2:3=b"
AHEAD_S = 1234
OFF_S = 0.5
"""How far clocks may be found apart between rounds, on a machine with other work."""
pytestmark = pytest.mark.timeout(3 * LIMIT_S)


@pytest.fixture
def machines(userspace_links: None, root: None, tmp_path: Path) -> Iterator[Callable[[], Machines]]:
    made: list[Machines] = []

    def make() -> Machines:
        made.append(Machines(2, tmp_path))
        return made[-1]

    yield make
    for each in made:
        each.close()


def carried_out(found: Machines, *more: str) -> dict[str, Any]:
    """The summary of a run on both."""
    run = found.launch(PLACE, *LINKS, *more)
    text = said(run)
    assert run.returncode == 0, text
    return found.summary()


def test_links_are_probed_and_each_host_has_a_row(machines: Callable[[], Machines]) -> None:
    found = machines()
    found.agent(1)
    summary = carried_out(found)
    checks = summary["fidelity"]["checks"]
    own = [check["name"] for check in checks if check["link"] in ("a to b", "b to a")]
    assert own == ["hosts' network, asked", "hosts' network, hidden"] * 2
    assert {c["link"] for c in checks if c["name"] == "rate"} == {f"client-{n}" for n in (1, 2, 3)}
    for check in checks:
        if check["name"] in ("round trip", "rate"):
            # A busy host may break the gates; it cannot bring a wrong link this near.
            assert 0.4 * check["expected"] < check["measured"] < 2 * check["expected"], check
    a, b = summary["hosts"]
    assert (a["name"], a["nodes"], b["name"], b["nodes"]) == ("a", 2, "b", 2)
    assert a["rtt_ms"] is None and b["rtt_ms"] > 0.5 and b["rate_to_kbit"] > 0
    assert a["busy_cores"] > 0 and b["busy_cores"] > 0 and b["frames"] > 0
    (page,) = (found.folder / "out").glob("*/report.html")
    assert "The hosts" in page.read_text()


def test_times_are_right_with_clocks_that_are_far_apart(
    machines: Callable[[], Machines],
) -> None:
    if not may_set_clocks():
        pytest.skip("this kernel has no time namespaces")
    found = machines()
    found.agent(1, ahead_s=AHEAD_S)
    began_s = time.time()
    summary = carried_out(found, "--pcap")
    (told,) = found.events("hosts")
    assert [round(part["ahead_s"]) for part in told["hosts"]] == [0, -AHEAD_S]
    (run,) = found.events("run")
    messages = found.events("message")
    assert {event["node"] for event in messages} == {"server", "client-1", "client-2", "client-3"}
    for event in messages:
        way_s = (event["received_ns"] - event["sent_ns"]) / 1e9
        # The way takes what a delay of 4g and its jitter do, less what clocks may be wrong by.
        assert 0.005 < way_s < LIMIT_S
        assert 0 < (event["received_ns"] - run["origin_ns"]) / 1e9 < summary["seconds"]["total"]
    for name in ("client-1", "client-2", "client-3"):
        (path,) = (found.folder / "out").glob(f"*/captures/{name}.pcap")
        times_s = [packet.time_ns / 1e9 for packet in captured.read(path)]
        assert began_s < min(times_s) and max(times_s) < time.time()
    clocks = found.events("host_clock")
    assert {event["host"] for event in clocks} == {"b"} and len(clocks) == 2
    assert all(abs(event["behind_s"]) < OFF_S and event["error_s"] < OFF_S for event in clocks)
    assert summary["hosts"][1]["clock_error_ms"] == pytest.approx(
        1000 * max(event["error_s"] for event in clocks), abs=1e-5
    )


def test_the_doctor_says_who_could_have_a_part(machines: Callable[[], Machines]) -> None:
    found = machines()
    told = f"--token-file={found.token}"

    def lines() -> list[dict[str, Any]]:
        asked = found.start(0, "doctor", "--hosts=" + ",".join(found.addresses), told, "--json")
        text = said(asked)
        return [each for each in json.loads(text) if each["what"].startswith("host ")]

    assert [each["ok"] for each in lines()] == [True, False]
    found.agent(1)
    here, there = lines()
    assert here["ok"] and there["ok"] and "ms there and back" in there["found"]
