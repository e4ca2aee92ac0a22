"""Mininet's topologies as plans: TCLink's names and units, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from testbed.config_error import ConfigError
from testbed.library import mininet
from testbed.network.direction import Direction

SHAPED = {"bw": 10, "delay": "5ms", "loss": 1, "max_queue_size": 50}


class Made:
    """A Topo as mininet.topo has it, as far as it is read."""

    def __init__(self, **hosts: dict[str, Any]) -> None:
        self._hosts = hosts
        self._switches = ["s1"]
        self._links: list[tuple[str, str, dict[str, Any]]] = []

    def hosts(self) -> list[str]:
        return list(self._hosts)

    def switches(self) -> list[str]:
        return self._switches

    def add_link(self, one: str, other: str, **options: Any) -> None:
        self._links.append((one, other, {"node1": one, "node2": other, "port1": 0, **options}))

    def links(self, *, withInfo: bool) -> list[tuple[str, str, dict[str, Any]]]:
        assert withInfo
        return self._links

    def nodeInfo(self, name: str) -> dict[str, Any]:
        return self._hosts[name]


def star(**links: dict[str, Any]) -> Made:
    topo = Made(**{name: {} for name in links})
    for name, options in links.items():
        topo.add_link(name, "s1", **options)
    return topo


def test_each_host_is_a_node_behind_its_link() -> None:
    plan = mininet.plan_of(star(h1={}, h2=SHAPED))
    assert [node.name for node in plan.nodes] == ["h1", "h2"]
    assert [node.address for node in plan.nodes] == ["10.0.0.1", "10.0.0.2"]
    assert plan.server.profile is None
    line = Direction(rate_kbit=10_000, delay_ms=5, loss_percent=1, max_packets=50)
    profile = plan.clients[0].profile
    assert profile is not None and (profile.up, profile.down) == (line, line)


def test_a_queue_that_is_not_said_is_netems() -> None:
    profile = mininet.plan_of(star(h1={}, h2={"bw": 1.5})).clients[0].profile
    assert profile is not None
    assert profile.up == Direction(rate_kbit=1500, max_packets=1000)


@pytest.mark.parametrize("turned", [False, True])
def test_each_end_may_have_its_own(turned: bool) -> None:
    topo = Made(h1={}, h2={})
    topo.add_link("h1", "s1")
    ends = {"params1": {"bw": 2}, "params2": {"delay": "40ms"}}
    if turned:
        topo.add_link("s1", "h2", params1=ends["params2"], params2=ends["params1"])
    else:
        topo.add_link("h2", "s1", **ends)
    profile = mininet.plan_of(topo).clients[0].profile
    assert profile is not None
    assert (profile.up.rate_kbit, profile.up.delay_ms) == (2000, 0)
    assert (profile.down.rate_kbit, profile.down.delay_ms) == (None, 40)


def test_a_host_named_server_is_it_or_whichever_is_asked_for() -> None:
    links = {"h1": SHAPED, "h2": {}, "server": SHAPED}
    plan = mininet.plan_of(star(**links))
    assert [node.name for node in plan.nodes] == ["server", "h1", "h2"]
    assert plan.server.address == "10.0.0.3" and plan.server.profile is not None
    assert mininet.plan_of(star(**links), "h2").server.name == "h2"
    with pytest.raises(ConfigError, match="h9"):
        mininet.plan_of(star(**links), "h9")


def test_hosts_have_the_addresses_that_they_ask_for() -> None:
    topo = Made(h1={"ip": "10.0.1.7/24"}, h2={})
    topo.add_link("h1", "s1")
    topo.add_link("h2", "s1")
    assert [n.address for n in mininet.plan_of(topo).nodes] == ["10.0.1.7", "10.0.0.2"]


def test_switches_may_be_joined_by_lines_without_limits() -> None:
    topo = Made(h1={}, h2={})
    topo._switches = ["s1", "s2"]
    topo.add_link("h1", "s1")
    topo.add_link("h2", "s2")
    with pytest.raises(ConfigError, match="host h2: no switches lead from it to h1"):
        mininet.plan_of(topo)
    topo.add_link("s1", "s2")
    assert len(mininet.plan_of(topo).nodes) == 2


@pytest.mark.parametrize(
    ("links", "words"),
    [
        ([("s1", "s2", {"delay": "1ms"})], "link s1-s2: is shaped and joins two switches"),
        ([("h1", "h2", {})], "link h1-h2: joins two hosts"),
        ([("h1", "s1", {}), ("h1", "s2", {})], "link h1-s2: is a second link of h1"),
        ([("h1", "s1", {})], "host h2: has no link"),
        ([("h1", "s1", {"delay": 5})], r"link h1-s1: delay = 5: must be a text .*5ms"),
        ([("h1", "s1", {"bw": "10"})], "link h1-s1: bw = '10': must be a number, in Mbit/s"),
        ([("h1", "s1", {"loss": 100})], "link h1-s1: loss = 100"),
        ([("h1", "s1", {"bw": 1, "enable_ecn": True})], "enable_ecn = True: links here have no"),
        ([("h1", "s1", {"bw": 1, "use_tbf": True})], "use_tbf = True: links here have no"),
    ],
)
def test_what_has_no_counterpart_is_refused(links: list[Any], words: str) -> None:
    topo = Made(h1={}, h2={})
    topo._switches = ["s1", "s2"]
    for one, other, options in links:
        topo.add_link(one, other, **options)
    with pytest.raises(ConfigError, match=words):
        mininet.plan_of(topo)


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ("10.0.0.1", "host h2: ip = '10.0.0.1': is another host's"),
        ("192.168.0.1/24", "host h2: ip = '192.168.0.1/24': must be of 10.0.0.0/8"),
        ("here", "host h2: ip = 'here'"),
    ],
)
def test_addresses_are_checked(own: str, words: str) -> None:
    topo = Made(h1={}, h2={"ip": own})
    topo.add_link("h1", "s1")
    topo.add_link("h2", "s1")
    with pytest.raises(ConfigError, match=words):
        mininet.plan_of(topo)


def test_a_topology_is_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text("topos = {'mine': lambda: 'made'}\n")
    made: object = mininet.topology(f"{file}:mine")
    assert made == "made"
    for text, words in (
        (f"{file}:mina", "mine"),
        (f"{tmp_path}/no.py:mine", "must be FILE.py:NAME, of a file that is there"),
        ("net", "must be FILE.py:NAME"),
    ):
        with pytest.raises(ConfigError, match=words):
            mininet.topology(text)
    file.write_text("import mininet_is_not_here\n")
    with pytest.raises(ConfigError, match="ModuleNotFoundError"):
        mininet.topology(f"{file}:mine")


def test_a_name_that_is_too_long_for_a_file_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"must be FILE\.py:NAME, of a file that is there"):
        mininet.topology("x" * 300 + ":topo")


@pytest.mark.parametrize("text", ["", "topos = {}", "topos = 3", "topos = None"])
def test_a_file_without_topologies_is_told_what_it_lacks(tmp_path: Path, text: str) -> None:
    (tmp_path / "net.py").write_text(text)
    with pytest.raises(ConfigError, match=r"has no topologies; .* it says topos = {'NAME': CLASS}"):
        mininet.topology(f"{tmp_path}/net.py:mine")


def test_a_file_that_ends_the_program_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text("raise SystemExit(0)\n")
    with pytest.raises(ConfigError, match="SystemExit: 0"):
        mininet.topology(f"{file}:mine")


@pytest.mark.parametrize("topo", [None, Made, "h1"])
def test_what_is_no_topology_is_refused(topo: Any) -> None:
    with pytest.raises(ConfigError, match=r"is no mininet\.topo\.Topo; give one that is made"):
        mininet.plan_of(topo)


@pytest.mark.parametrize("name", ["h 2", "h2\n10.0.0.9 evil", "-h", "h" * 64, ""])
def test_a_name_that_can_be_no_hosts_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="must be letters, digits"):
        mininet.plan_of(star(**{"h1": {}, name: {}}))


def test_a_host_that_does_not_run_is_named() -> None:
    running = mininet.Running(star(h1={}, h2={}), [])
    with pytest.raises(ConfigError, match="host h1: does not run in a Mininet here"):
        mininet.MininetNetwork(running)


def test_two_lines_in_a_row_are_as_slow_and_late_as_both() -> None:
    one = Direction(rate_kbit=1000, delay_ms=5, jitter_ms=1, loss_percent=10)
    other = Direction(rate_kbit=3000, delay_ms=7, loss_percent=50, max_packets=9)
    expected = Direction(rate_kbit=1000, delay_ms=12, jitter_ms=1, loss_percent=55, max_packets=9)
    assert mininet._through(one, other) == mininet._through(other, one) == expected
