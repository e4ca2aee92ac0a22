"""One plan over several hosts: what nodes see is what they see on one, and the rest is told."""

import contextlib
import hashlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from several_hosts import MIDDLE_PORT, Hosts, host, layout, may_set_clocks, middle, underlay
from stations import echo, ping, send_stream, take_stream

from testbed import clock
from testbed.links.interface import LinkError
from testbed.links.tunnel.meeting import Meeting, listen, meet, new_token
from testbed.links.userspace import backend as userspace
from testbed.network.direction import FRAME_BYTES, Direction
from testbed.network.profiles import LinkProfile
from testbed.network.topology import plan

LINK = LinkProfile(
    name="test",
    up=Direction(rate_kbit=20_000, delay_ms=25),
    down=Direction(rate_kbit=50_000, delay_ms=20),
)
WAY_MS = 10.0
"""From host to host; there and back it is more than what a slow machine adds to a round trip."""
SLACK_MS = 8.0
ACROSS = "server=a,client-1=b,client-2=a"

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def hosts(userspace_links: None) -> Iterator[Callable[..., Hosts]]:
    """``hosts("ab", 10.0)``: so many namespaces, with so many ms from one to another."""
    with contextlib.ExitStack() as owned:

        def make(names: str, way_ms: float) -> Hosts:
            outer_plan = plan([underlay(way_ms)] * len(names))
            outer = userspace.up(outer_plan)
            owned.callback(outer.down)
            found = Hosts(outer, outer_plan, names)
            owned.callback(found.close)
            return found

        yield make


@pytest.fixture
def run(hosts: Callable[..., Hosts]) -> Run:
    """Stations of a plan on two hosts, from their begin to their results by host."""

    def carry_out(
        serving: dict[str, Any],
        asking: dict[str, Any],
        names: str = "ab",
        way_ms: float = WAY_MS,
        place: str = ACROSS,
        ahead_s: int = 0,
    ) -> dict[str, Any]:
        found = hosts(names, way_ms)
        inner = layout(names, [LINK, LINK], place)
        token = new_token()
        for name in names:
            ahead = ahead_s if name == names[-1] else 0
            found.start(
                name, host(name, found.addresses, token, inner, serving, asking, ahead_s=ahead)
            )
        found.all_ready()
        found.go()
        found.all_ready()
        return found.results()

    return carry_out


SERVER, ONE, TWO = (node.address for node in plan([LINK, LINK]).nodes)


def test_the_way_between_hosts_does_not_show_in_a_round_trip(run: Run):
    found = run({"server": echo(SERVER)}, {"client-1": ping(SERVER, 20)})
    trips = found["b"]["results"]["client-1"]
    assert min(trips) >= 25 + 20
    # Were frames sent when they leave their line, it would be 2 * WAY_MS more.
    assert min(trips) < 25 + 20 + SLACK_MS < 25 + 20 + 2 * WAY_MS
    underlay = found["a"]["facts"]["underlay"]
    assert [(path["sender"], path["receiver"]) for path in underlay] == [("a", "b"), ("b", "a")]
    assert all(path["rtt_min_ms"] >= 2 * WAY_MS for path in underlay)
    assert all(path["rate_kbit"] > 0 for path in underlay)


def test_from_client_to_client_both_lines_count_and_no_way_between(run: Run):
    found = run({"client-2": echo(TWO)}, {"client-1": ping(TWO, 20)})
    trips = found["b"]["results"]["client-1"]
    assert min(trips) >= 2 * (25 + 20)
    assert min(trips) < 2 * (25 + 20) + SLACK_MS


def test_streams_arrive_intact_and_are_counted_on_their_nodes_own_host(run: Run):
    sent, answer = (random.Random(seed).randbytes(1_000_001) for seed in (1, 2))
    taking = take_stream(SERVER, answer)
    found = run({"server": taking}, {"client-1": send_stream(SERVER, sent)})
    digests = [hashlib.sha256(data).hexdigest() for data in (sent, answer)]
    assert found["a"]["results"]["server"]["sha256"] == digests[0]
    assert found["b"]["results"]["client-1"]["sha256"] == digests[1]
    # [up, down] of [frames, bytes, ...] of each node.
    here, there = (found[name]["counters"] for name in "ab")
    assert here[1] == [[0] * 4] * 2 and there[0] == [[0] * 4] * 2
    server_up, server_down = here[0]
    client_up, client_down = there[1]
    for left, came in ((client_up, server_down), (server_up, client_down)):
        assert came[0] > 0
        assert left[0] - came[0] == sum(left[2:]) + sum(came[2:])
    assert client_up[1] > len(sent) * FRAME_BYTES / 1460
    for name, other in ("ab", "ba"):
        tunnel = found[name]["closing"]["tunnels"][other]
        assert tunnel["frames_dropped"] == 0 and tunnel["gone"] is None
        assert tunnel["frames_sent"] > 0 and tunnel["frames_received"] > 0
        assert found[name]["closing"]["frames_for_no_node_here"] == 0


def test_clocks_that_are_far_apart_change_nothing_but_their_offset(run: Run, root: None):
    if not may_set_clocks():
        pytest.skip("this kernel has no time namespaces")
    found = run({"server": echo(SERVER)}, {"client-1": ping(SERVER, 20)}, ahead_s=1234)
    trips = found["b"]["results"]["client-1"]
    assert 25 + 20 <= min(trips) < 25 + 20 + SLACK_MS
    for name, other, offset_ms in (("a", "b", 1_234_000), ("b", "a", -1_234_000)):
        tunnel = found[name]["closing"]["tunnels"][other]
        assert abs(tunnel["offset_ms"] - offset_ms) <= tunnel["offset_error_ms"]
        assert tunnel["clock_steps"] == 0
        for path in found[name]["facts"]["underlay"]:
            sign = 1 if path["sender"] == "a" else -1
            assert abs(path["offset_ms"] - sign * 1_234_000) <= path["offset_error_ms"]


def test_three_hosts_each_reach_the_others(run: Run):
    found = run(
        {"server": echo(SERVER), "client-2": echo(TWO)},
        {"client-1": ping(TWO, 5)},
        names="abc",
        way_ms=2.0,
        place="server=a,client-1=b,client-2=c",
    )
    assert min(found["b"]["results"]["client-1"]) >= 2 * (25 + 20)
    for name in "abc":
        assert sorted(found[name]["closing"]["tunnels"]) == sorted(set("abc") - {name})
        assert len(found[name]["facts"]["underlay"]) == 4


def test_a_host_whose_processes_are_killed_is_gone_within_seconds(
    hosts: Callable[..., Hosts], until: Callable[..., Any]
):
    found = hosts("ab", 0.0)
    inner, token = layout("ab", [LINK, LINK], ACROSS), new_token()

    def watch(network: userspace.UserspaceNetwork) -> Any:
        return until(network.hosts_gone, "host b is gone", 5.0), network.failure()

    for name in "ab":
        body = host(name, found.addresses, token, inner, {}, {}, watch=watch)
        found.start(name, body)
    found.all_ready()
    found.processes.pop("b").close()
    found.go()
    found.all_ready()
    gone, failure = found.results()["a"]["watched"]
    assert list(gone) == ["b"] and gone["b"]
    # What the run makes of it is for who owns the run.
    assert failure is None


def test_who_changes_what_passes_between_hosts_is_found_out(
    hosts: Callable[..., Hosts], until: Callable[..., Any]
):
    found = hosts("ab", 0.0)
    inner, token = layout("ab", [LINK, LINK], ACROSS), new_token()
    way, _ = found.addresses["a"]
    by = {"a": found.addresses, "b": {**found.addresses, "a": (way, MIDDLE_PORT)}}

    def watch(network: userspace.UserspaceNetwork) -> Any:
        return until(network.hosts_gone, "the other host is gone", 5.0)

    found.start("a", host("a", by["a"], token, inner, {}, {}, watch=watch))
    found.start("middle", middle(way), where="a")
    found.start("b", host("b", by["b"], token, inner, {}, {}, watch=watch))
    found.all_ready()
    found.go()
    found.all_ready()
    results = found.results()
    (told,) = results["a"]["watched"].values()
    assert told.startswith("what came is not what was sealed there")
    assert results["a"]["facts"]["between_hosts"] == "TLS 1.3"
    assert results["b"]["watched"] == {"a": "it closed the connection"}


def test_a_host_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(userspace, "meet", lambda meeting: meet(meeting, 0.2))
    inner = layout("ab", [LINK, LINK], ACROSS)
    with listen("127.0.0.1") as listener, listen("127.0.0.1") as other:
        nobody = other.getsockname()
        other.close()
        addresses = {"a": nobody, "b": listener.getsockname()}
        with pytest.raises(LinkError, match=r"reach host a at 127\.0\.0\.1:.* within 0\.2 s"):
            userspace.up(inner, Meeting("b", addresses, listener, new_token()))


def test_an_elastic_clock_is_refused_across_hosts():
    inner = layout("ab", [LINK, LINK], ACROSS)
    with listen("127.0.0.1") as listener, clock.elastic(3):
        addresses = {"a": listener.getsockname(), "b": listener.getsockname()}
        with pytest.raises(LinkError, match="cannot be elastic: set --dilation=1"):
            userspace.up(inner, Meeting("a", addresses, listener, new_token()))
