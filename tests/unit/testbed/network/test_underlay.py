"""What a plan asks of the network between its hosts, and what of that network shows."""

from testbed.network.direction import Direction
from testbed.network.hosts import Host, placed
from testbed.network.profiles import LinkProfile
from testbed.network.schedule import State
from testbed.network.topology import Plan, plan
from testbed.network.underlay import Path, missing, refusal, shows

HOSTS = [Host("a", 1, 0), Host("b", 1, 0)]


def link(up_mbit: float | None, down_mbit: float | None, delay_ms: float = 10) -> LinkProfile:
    up, down = (None if rate is None else 1000 * rate for rate in (up_mbit, down_mbit))
    return LinkProfile(
        name="test",
        up=Direction(rate_kbit=up, delay_ms=delay_ms),
        down=Direction(rate_kbit=down, delay_ms=delay_ms),
    )


def spread(
    *links: LinkProfile, server: LinkProfile | None = None, place: str = "client-1:4=b"
) -> Plan:
    return placed(plan(list(links), server), HOSTS, place=f"server=a,{place}")


def path(sender: str, receiver: str, mbit: float, rtt_ms: float = 0.2) -> Path:
    return Path(sender, receiver, rtt_ms, rtt_ms, rtt_ms, 1000 * mbit, 0.0, 0.1)


def paths(mbit: float, rtt_ms: float = 0.2) -> list[Path]:
    return [path("a", "b", mbit, rtt_ms), path("b", "a", mbit, rtt_ms)]


def test_what_all_clients_send_at_once_must_fit_with_the_tunnels_own():
    layout = spread(*[link(10, 20)] * 4)
    assert refusal(layout, paths(100)) is None
    # 4 x 20 Mbit/s down are 84 with 5 % for the tunnel, 4 x 10 up are 42.
    said = refusal(layout, paths(83))
    assert said is not None and said.startswith(
        "the network from a to b carries 83 Mbit/s, as measured, and the 4 nodes on b may receive "
        "80 Mbit/s, which is 84 Mbit/s with 5 % for the tunnel. "
    )
    assert refusal(layout, [path("a", "b", 100), path("b", "a", 42)]) is None
    assert refusal(layout, [path("a", "b", 100), path("b", "a", 41)]) is not None


def test_the_servers_own_link_bounds_what_is_asked():
    layout = spread(*[link(100, 100)] * 4, server=link(50, 50))
    assert refusal(layout, paths(60)) is None
    said = refusal(layout, paths(50))
    assert said is not None and "server on a may send 50 Mbit/s" in said


def test_clients_beside_the_server_ask_for_nothing():
    assert refusal(spread(*[link(100, 100)] * 4, place="client-1:4=a"), paths(1)) is None


def test_links_without_a_rate_ask_for_none():
    assert refusal(spread(*[link(None, None)] * 4), paths(1)) is None


def test_a_schedules_fastest_state_counts():
    later = link(100, 100)
    scheduled = LinkProfile(
        name="test",
        up=link(1, 1).up,
        down=link(1, 1).down,
        schedule=(State(5.0, later.up, later.down), State(6.0, Direction(outage=True), later.down)),
    )
    layout = spread(scheduled, place="client-1=b")
    assert refusal(layout, paths(50)) is not None
    assert refusal(layout, paths(110)) is None


def test_among_clients_all_lines_count():
    layout = spread(*[link(10, 10)] * 4, place="client-1:2=a,client-3:4=b")
    # Client to client: 2 x 10 Mbit/s each way; the server, without a rate, is bounded by these.
    assert refusal(layout, paths(22), among_clients=True) is None
    assert refusal(layout, paths(20), among_clients=True) is not None


def test_the_underlay_shows_where_it_takes_longer_than_the_lines_delays():
    layout = spread(*[link(10, 10, delay_ms=3)] * 2, place="client-1:2=b")
    assert shows(layout, paths(100, rtt_ms=6)) == []
    said = shows(layout, paths(100, rtt_ms=6.5))
    assert said == [
        "from server (a) to client-1 (b) the network of the hosts takes up to 3.25 ms, the links' "
        "own delay is 3 ms",
        "from client-1 (b) to server (a) the network of the hosts takes up to 3.25 ms, the links' "
        "own delay is 3 ms",
    ]


def test_jitter_hides_nothing():
    jittery = LinkProfile(
        name="test", up=Direction(delay_ms=10, jitter_ms=9), down=Direction(delay_ms=10)
    )
    assert len(shows(spread(jittery, place="client-1=b"), paths(100, rtt_ms=4))) == 1


def test_pairs_that_nobody_measured_are_named():
    assert missing("abc", [path("a", "b", 1), path("b", "a", 1), path("c", "a", 1)]) == [
        *(("a", "c"), ("b", "c"), ("c", "b"))
    ]


def test_a_path_in_words():
    found = Path("a", "b", 0.1, 0.123, 0.3, 941_000, 0, 0)
    assert found.words() == "a to b: 0.123 ms there and back (0.1 to 0.3), 941 Mbit/s"
