"""Placement of nodes on hosts: by cores and memory, by hand, and what is refused."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.config_error import ConfigError
from testbed.network.hosts import Host, Needs, of_host, placed, written
from testbed.network.profiles import LinkProfile
from testbed.network.topology import Plan, plan

GB = 10**9
LINK = LinkProfile(name="any")


def layout(clients: int) -> Plan:
    return plan([LINK] * clients)


def hosts(*cores: int, memory_bytes: int = 100 * GB) -> list[Host]:
    return [Host(name, n, memory_bytes) for name, n in zip("abcdef", cores, strict=False)]


def clients_of(found: Plan) -> dict[str, int]:
    return dict(Counter(node.host for node in found.clients))


def test_clients_go_by_cores_and_the_server_to_the_first_host():
    found = placed(layout(30), hosts(2, 8, 5))
    assert found.server.host == "a"
    assert clients_of(found) == {"a": 4, "b": 16, "c": 10}
    assert [node.name for node in found.nodes] == [node.name for node in layout(30).nodes]


def test_a_hosts_clients_follow_each_other():
    found = placed(layout(6), hosts(1, 2))
    assert written(found) == "server=a,client-1:2=a,client-3:6=b"
    assert [node.name for node in of_host(found, "a")] == ["server", "client-1", "client-2"]


def test_memory_bounds_what_cores_would_have():
    few = [Host("a", 4, 100 * GB), Host("b", 4, 3 * GB)]
    found = placed(layout(20), few, Needs(client=GB // 2, server=GB, shared=GB))
    assert clients_of(found) == {"a": 16, "b": 4}


def test_by_hand_comes_first_and_the_rest_is_dealt_out():
    found = placed(layout(10), hosts(4, 4), place="server=b, client-2:5=a ,client-9=a")
    assert found.server.host == "b"
    where = {node.name: node.host for node in found.clients}
    assert {name for name, host in where.items() if host == "a"} == {
        *("client-2", "client-3", "client-4", "client-5", "client-9")
    }


@given(
    st.lists(st.integers(1, 64), min_size=1, max_size=6),
    st.integers(1, 60),
)
def test_what_is_written_places_the_same_again(cores: list[int], clients: int):
    found = placed(layout(clients), hosts(*cores))
    again = placed(layout(clients), hosts(*reversed(cores)), place=written(found))
    assert [node.host for node in again.nodes] == [node.host for node in found.nodes]


@given(st.lists(st.integers(1, 64), min_size=1, max_size=6), st.integers(1, 200))
def test_no_host_has_more_for_its_cores_than_another_with_one_more_would(
    cores: list[int], clients: int
):
    machines = hosts(*cores)
    counts = clients_of(placed(layout(clients), machines))
    for a in machines:
        for b in machines:
            had, next_one = counts.get(a.name, 0) / a.cores, (counts.get(b.name, 0) + 1) / b.cores
            assert had <= next_one + 1e-12


@pytest.mark.parametrize(
    ("place", "word"),
    [
        ("server", "'server': write server=HOST"),
        ("", "write server=HOST"),
        ("server=a,,", "write server=HOST"),
        ("client-1:3=d", "there is no host 'd'"),
        ("client-0=a", "the run's clients are client-1:4"),
        ("client-2:5=a", "the run's clients are client-1:4"),
        ("client-3:2=a", "counted upwards"),
        ("clients=a", "'clients' names no nodes"),
        ("client-1:2=a,client-2=b", "client-2 is placed already, on a"),
        ("server=a,server=a", "server is placed already, on a"),
        ("client-99999999999=a", "names no nodes"),
    ],
)
def test_a_placement_that_is_none_is_refused(place: str, word: str):
    with pytest.raises(ConfigError, match="place = ") as error:
        placed(layout(4), hosts(1, 1), place=place)
    assert word in str(error.value)


@pytest.mark.parametrize(
    ("machines", "word"),
    [
        ([], "there is none"),
        ([Host("a", 1, GB), Host("a", 2, GB)], "there are two of that name"),
        ([Host("a=b", 1, GB)], "a name has letters"),
        ([Host("a", 0, GB)], "cores = 0: must be 1 or more"),
    ],
)
def test_hosts_that_are_none_are_refused(machines: list[Host], word: str):
    with pytest.raises(ConfigError, match=word):
        placed(layout(1), machines)


def test_too_little_memory_is_refused_with_the_sum():
    few = hosts(4, 4, memory_bytes=4 * GB)
    needs = Needs(client=GB // 2, server=2 * GB, shared=GB)
    with pytest.raises(ConfigError) as error:
        placed(layout(20), few, needs)
    assert str(error.value) == (
        "20 clients of 0.5 GB each do not fit into the hosts' memory: a has room for 2 more, with "
        "4 GB free; b has room for 6 more, with 4 GB free. Take fewer clients, or more hosts"
    )
    with pytest.raises(ConfigError) as error:
        placed(layout(20), few, needs, "client-1:9=b")
    assert "host b has 4 GB free, and what is placed there takes" in str(error.value)
    assert "1 GB that nodes share + 9 clients x 0.5 GB = 5.5 GB" in str(error.value)


def test_a_driver_without_room_for_the_server_is_refused():
    machines = [Host("a", 4, GB), Host("b", 4, 100 * GB)]
    with pytest.raises(ConfigError, match=r"host a has 1 GB free.*2 GB for the server"):
        placed(layout(2), machines, Needs(client=1, server=2 * GB))
