"""What a driver makes of what its hosts say, and of hosts that say nothing any more."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import agreed
import msgspec
import pytest

from testbed.links.interface import Counters, LinkCounters, LinkError
from testbed.links.tunnel.meeting import listen
from testbed.network import hosts
from testbed.network.profiles import LinkProfile
from testbed.network.topology import Plan, plan
from testbed.record import events
from testbed.run.hosts import waits, whole
from testbed.run.hosts.driver import Hosts
from testbed.run.hosts.far_host import FarHost
from testbed.run.hosts.line import Refused
from testbed.run.hosts.messages import (
    Answer,
    Begin,
    Count,
    Counted,
    Give,
    Logged,
    Order,
    Said,
    Severed,
    Up,
)
from testbed.run.hosts.whole import HostsNetwork, HostsZygote
from testbed.run.states import StatePiece
from testbed.run.zygote import Forked, NodeFailed, Prepared, Reaped

LIMIT_S = 20.0
KEY, TOKEN = b"k" * 32, b"t" * 32
NOTHING = LinkCounters(Counters(0, 0, 0, 0), Counters(0, 0, 0, 0))


class Local:
    """The driver's own network or zygote."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair()
        self.channel = self
        self.socket = ours
        self.facts = {"backend": "userspace", "underlay": []}
        self.gone: dict[str, str] = {}

    def fileno(self) -> int:
        return self.socket.fileno()

    def drain(self) -> list[object]:
        return []

    def down(self) -> None:
        pass

    def close(self) -> None:
        self.socket.close()
        self.theirs.close()

    def failure(self) -> None:
        return None

    def hosts_gone(self) -> dict[str, str]:
        return self.gone

    def counters(self) -> list[LinkCounters]:
        return [NOTHING._replace(up=Counters(7, 8, 0, 0)), *[NOTHING] * 3]


class Made:
    """A driver on host a with the server and client-1, and the far ends of b and c."""

    def __init__(self, owned: contextlib.ExitStack, place: str) -> None:
        names = "abc"
        machines = [hosts.Host(name, 1, 0) for name in names]
        self.plan: Plan = hosts.placed(plan([LinkProfile(name="x")] * 3), machines, place=place)
        self.far, self.ends = [], {}
        for name in names[1:]:
            ours, theirs = tcp(owned)
            line, self.ends[name] = agreed.lines(ours, theirs, Answer, Order)
            far = FarHost.__new__(FarHost)
            far.__dict__.update(
                name=name,
                address=("127.0.0.1", 1),
                line=line,
                channels={},
                running=set(),
                facts=None,
                is_ready=False,
                counters=None,
                awaits_counters=False,
                closing=None,
                gone=None,
                ahead_s=0.0,
            )
            self.far.append(far)
        listener = owned.enter_context(listen("127.0.0.1"))
        self.hosts = Hosts(machines[0], self.far, {"b": 1, "c": 2}, listener, TOKEN)
        owned.callback(self.hosts.close)
        self.hosts.begin(self.plan)
        self.local = Local()
        owned.callback(self.local.close)
        self.zygote = HostsZygote(self.hosts, lambda log: self.local)
        owned.callback(self.zygote.down)
        self.network = HostsNetwork(self.hosts, self.local, self.plan)

    def spawn_all(self) -> None:
        self.channels = {
            node.index: self.zygote.spawn(node, self.network.endpoint(node))
            for node in self.plan.nodes
            if node.host != "a"
        }

    def heard(self, count: int) -> list[object]:
        """So many words of the zygotes."""
        found: list[object] = []
        while len(found) < count:
            found += self.zygote.channel.drain()
        return found


def tcp(owned: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    listener = owned.enter_context(socket.create_server(("127.0.0.1", 0)))
    one = owned.enter_context(socket.create_connection(listener.getsockname()))
    return one, owned.enter_context(listener.accept()[0])


@pytest.fixture
def owned() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


PLACE = "server=a,client-1=a,client-2=b,client-3=c"


def test_a_nodes_words_come_by_its_channel_before_its_end(owned: contextlib.ExitStack):
    made = Made(owned, PLACE)
    made.spawn_all()
    made.ends["b"].send(Prepared(None))
    made.ends["b"].send(Forked(2, 4711))
    made.ends["b"].send(Said(2, events.Failed(traceback="last words")))
    made.ends["b"].send(Reaped(2, 4711, "exited with 1"))
    assert made.heard(2) == [Forked(2, 4711), Reaped(2, 4711, "exited with 1")]
    channel = made.channels[2]
    assert channel.closed
    assert [event.traceback for event in channel.drain()] == ["last words"]
    assert channel.drain() == [] and not made.channels[3].closed


def test_who_is_on_a_host_that_is_gone_has_ended_by_that(owned: contextlib.ExitStack):
    made = Made(owned, PLACE)
    made.spawn_all()
    made.ends["b"].close()
    assert made.heard(1) == [Reaped(2, 0, "host b is gone")]
    assert made.hosts.gone() == {"b": "it closed the connection"}
    assert [(event.host, event.reason) for event in made.hosts.news()] == [
        ("b", "it closed the connection")
    ]
    assert made.hosts.news() == []
    # The run goes on.
    assert made.network.failure() is None


def test_what_is_logged_elsewhere_is_so_here_by_host_and_node(
    owned: contextlib.ExitStack, tmp_path: Path
):
    made = Made(owned, PLACE)
    made.spawn_all()
    log = owned.enter_context((tmp_path / "nodes.log").open("wb", buffering=0))
    made.hosts.log = log.fileno()
    made.ends["b"].send(Logged("one\ntwo\n", 2))
    made.ends["b"].send(Logged("its own\n"))
    made.ends["b"].send(Forked(2, 1))
    made.heard(1)
    assert (tmp_path / "nodes.log").read_text().splitlines() == [
        "host b: client-2: one",
        "host b: client-2: two",
        "host b: its own",
    ]


def test_an_agent_that_cannot_go_on_says_why(owned: contextlib.ExitStack):
    made = Made(owned, PLACE)
    made.spawn_all()
    made.ends["c"].send(Refused("the link process was killed by SIGKILL"))
    assert made.heard(1) == [Reaped(3, 0, "host c is gone")]
    assert made.hosts.gone() == {"c": "the link process was killed by SIGKILL"}


def test_the_links_own_word_of_a_host_counts_too(owned: contextlib.ExitStack):
    made = Made(owned, PLACE)
    made.spawn_all()
    made.local.gone["b"] = "no word from it for 3 s"
    assert made.network.failure() is None
    assert made.heard(1) == [Reaped(2, 0, "host b is gone")]


def test_without_the_servers_host_no_run_goes_on(owned: contextlib.ExitStack):
    made = Made(owned, "server=b,client-1=a,client-2=b,client-3=c")
    made.spawn_all()
    made.ends["b"].close()
    made.heard(2)
    assert made.network.failure() == (
        "host b is gone, which has the server: it closed the connection"
    )


@pytest.mark.parametrize(
    ("place", "says", "of", "gone"),
    [
        (PLACE, "b", "a", "b"),
        (PLACE, "b", "c", None),
        ("server=c,client-1=a,client-2=b,client-3=c", "b", "c", "b"),
        ("server=b,client-1=a,client-2=b,client-3=c", "b", "c", "c"),
    ],
)
def test_of_two_hosts_that_are_cut_the_one_without_the_server_is_gone(
    owned: contextlib.ExitStack, place: str, says: str, of: str, gone: str | None
):
    made = Made(owned, place)
    made.spawn_all()
    made.ends[says].send(Severed(of, f"host {of} is gone"))
    made.ends[says].send(Forked(2, 1))
    made.heard(1)
    assert list(made.hosts.gone()) == ([] if gone is None else [gone])


@pytest.mark.parametrize("among_clients", [False, True])
def test_of_two_hosts_without_the_server_that_are_cut_one_is_gone_if_clients_speak(
    owned: contextlib.ExitStack, among_clients: bool
):
    made = Made(owned, "server=a,client-1=b,client-2=c,client-3=c")
    made.hosts.among_clients = among_clients
    made.spawn_all()
    # One that says so alone may have lost a host that is gone.
    made.ends["c"].send(Severed("b", "no word from it for 3 s"))
    made.ends["c"].send(Forked(2, 1))
    made.heard(1)
    assert made.hosts.news() == [] and made.hosts.gone() == {}
    made.ends["b"].send(Severed("c", "it closed the connection"))
    made.ends["b"].send(Forked(1, 1))
    made.heard(1)
    cut, *gone = made.hosts.news()
    assert cut == events.HostsCut(hosts=["b", "c"], reason="it closed the connection")
    # It has the fewer clients.
    reason = "cut from host c: it closed the connection"
    assert gone == ([events.HostGone(host="b", reason=reason)] if among_clients else [])
    assert made.network.failure() is None


def test_links_that_lose_a_host_end_the_wait_for_its_word(
    owned: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(whole, "COUNT_LIMIT_S", 2.0)
    made = Made(owned, PLACE)
    made.ends["c"].send(Counted([NOTHING] * 4))
    made.local.gone["b"] = "no word from it for 3 s"
    made.local.theirs.send(b"!")
    made.network.counters()
    assert made.hosts.gone() == {"b": "no word from it for 3 s"}


def test_what_the_drivers_own_nodes_write_is_named_too(owned: contextlib.ExitStack, tmp_path: Path):
    made = Made(owned, PLACE)
    log = owned.enter_context((tmp_path / "nodes.log").open("wb", buffering=0))
    made.hosts.log = log.fileno()
    local, into = owned.enter_context(contextlib.closing(Local())), list[int]()

    def forks(descriptor: int) -> Local:
        into.append(os.dup(descriptor))
        return local

    zygote = HostsZygote(made.hosts, forks)
    forked = [Forked(1, os.getpid())]
    local.drain = lambda: forked
    os.write(into[0], b"one\ntwo\nand its la")
    assert zygote.channel.drain() == forked
    os.write(into[0], b"st words")
    local.down = lambda: os.close(into[0])
    zygote.down()
    assert (tmp_path / "nodes.log").read_text().splitlines() == [
        "host a: client-1: one",
        "host a: client-1: two",
        "host a: client-1: and its last words",
    ]


def test_counters_are_those_of_each_nodes_own_host(owned: contextlib.ExitStack):
    made = Made(owned, PLACE)
    made.spawn_all()
    for number, end in enumerate(made.ends.values(), start=2):
        rows = [NOTHING] * 4
        rows[number] = NOTHING._replace(down=Counters(number, 10 * number, 0, 0))
        # On its way already as the question is asked.
        end.send(Counted(rows))
    found = made.network.counters()
    assert found[0].up == Counters(7, 8, 0, 0)
    assert [row.down for row in found[2:]] == [Counters(2, 20, 0, 0), Counters(3, 30, 0, 0)]
    assert any(isinstance(order, Count) for order in made.ends["b"].read())


def test_links_that_do_not_come_up_are_a_hosts(owned: contextlib.ExitStack):
    made = Made(owned, PLACE)
    made.ends["b"].send(Up({"underlay": []}))
    made.ends["c"].send(Refused("no /dev/net/tun"))
    with pytest.raises(LinkError, match=r"host c: no /dev/net/tun"):
        waits.for_links(made.hosts, made.local.facts)


def test_a_host_that_is_gone_ends_every_wait_before_nodes_start(owned: contextlib.ExitStack):
    """Whether it is for the driver's own part, or for another host's."""
    for wait in (
        lambda made: waits.for_own(made.hosts, made.local, LIMIT_S),
        lambda made: waits.for_links(made.hosts, made.local.facts),
        lambda made: made.zygote.wait_ready(LIMIT_S),
    ):
        made = Made(owned, PLACE)
        made.ends["b"].close()
        with pytest.raises((LinkError, NodeFailed), match="host b: it closed the connection"):
            wait(made)
        assert list(made.hosts.gone()) == ["b"]


def test_the_drivers_own_part_is_had_once_it_is_there(owned: contextlib.ExitStack):
    made = Made(owned, PLACE)
    assert not waits.for_own(made.hosts, made.local, 0.01)
    made.ends["b"].send(Prepared(None))
    made.local.theirs.send(b"!")
    assert waits.for_own(made.hosts, made.local, LIMIT_S)


def test_a_node_that_a_host_gone_before_is_to_start_has_ended_by_that(owned: contextlib.ExitStack):
    made = Made(owned, PLACE)
    made.ends["b"].close()
    assert made.zygote.channel.drain() == []
    made.spawn_all()
    assert made.heard(1) == [Reaped(2, 0, "host b is gone")]
    assert made.channels[2].closed


@pytest.mark.parametrize("secure", [True, False])
def test_what_hosts_say_to_one_another_is_sealed_unless_it_is_not_to_be(
    owned: contextlib.ExitStack, secure: bool
):
    made = Made(owned, PLACE)
    listener = owned.enter_context(listen("127.0.0.1"))
    them = Hosts(made.hosts.own, [], {}, listener, TOKEN, secure=secure)
    owned.callback(them.close)
    assert them.begin(made.plan).secure == secure


class States:
    """What a driver keeps, and has to give."""

    run = "1a2b"

    def __init__(self) -> None:
        self.taken: list[tuple[str, StatePiece]] = []

    def take(self, node: str, piece: StatePiece) -> events.Event | None:
        self.taken.append((node, piece))
        return events.Saved(round=piece.round, bytes=piece.size) if len(self.taken) == 2 else None

    def stored(self, node: str) -> Iterator[bytes]:
        yield from [b"state of ", node.encode()] if node != "client-3" else []


def test_states_pass_both_ways_and_are_told_of_by_their_node(owned: contextlib.ExitStack):
    made = Made(owned, PLACE)
    made.hosts.states = states = States()
    made.hosts.begin(made.plan)
    words: list[msgspec.Struct] = []
    while sum(isinstance(word, Begin) for word in words) < 2:
        words += made.ends["b"].read()
    gives = [word for word in words if isinstance(word, Give)]
    assert [give.node for give in gives] == [2, 2]
    assert b"".join(give.data for give in gives) == b"state of client-2"
    # The first began without states.
    assert [word.run for word in words if isinstance(word, Begin)] == [None, "1a2b"]
    made.spawn_all()
    for data in (b"new ", b"state"):
        made.ends["b"].send(Said(2, StatePiece(7, 9, data)))
    made.ends["b"].send(Reaped(2, 4711, "exited with 0"))
    made.heard(1)
    assert states.taken == [
        ("client-2", StatePiece(7, 9, b"new ")),
        ("client-2", StatePiece(7, 9, b"state")),
    ]
    assert [event.round for event in made.channels[2].drain()] == [7]
