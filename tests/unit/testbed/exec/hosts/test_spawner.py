"""What a driver makes of what programs on other hosts say and write, and of hosts that are gone."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.exec import lines
from testbed.exec.hosts.messages import Answer, Left, Order, Tell, Told, Wrote
from testbed.exec.hosts.spawner import HostsSpawner
from testbed.links.tunnel.meeting import listen
from testbed.network import hosts
from testbed.network.profiles import LinkProfile
from testbed.network.topology import plan
from testbed.run.hosts.driver import Hosts
from testbed.run.hosts.far_host import FarChannel, FarHost
from testbed.run.hosts.line import Line
from testbed.run.hosts.messages import Spawn
from testbed.run.zygote import Reaped

KEY, TOKEN = b"k" * 32, b"t" * 32
LAYOUT = hosts.placed(
    plan([LinkProfile(name="x")] * 2),
    [hosts.Host(name, 1, 0) for name in "ab"],
    place="server=a,client-1=a,client-2=b",
)


class Local:
    """The driver's own spawner."""

    def __init__(self) -> None:
        self.socket, self.theirs = socket.socketpair()
        self.channel = self

    def fileno(self) -> int:
        return self.socket.fileno()

    def drain(self) -> list[object]:
        return []


class Made:
    """A driver on host a, the far end of b's line, and client-2 on b."""

    def __init__(self, owned: contextlib.ExitStack, folder: Path) -> None:
        listener = owned.enter_context(socket.create_server(("127.0.0.1", 0)))
        ours = owned.enter_context(socket.create_connection(listener.getsockname()))
        theirs = owned.enter_context(listener.accept()[0])
        far = FarHost.__new__(FarHost)
        far.__dict__.update(name="b", address=("127.0.0.1", 1), channels={}, running=set())
        far.__dict__.update(closing=None, gone=None, line=Line(ours, KEY, Answer, calls=True))
        self.end = Line(theirs, KEY, Order, calls=False)
        tunnels = owned.enter_context(listen("127.0.0.1"))
        self.hosts = Hosts(hosts.Host("a", 1, 0), [far], {"b": 1}, tunnels, TOKEN)
        owned.callback(self.hosts.close)
        local = Local()
        owned.enter_context(local.socket)
        owned.enter_context(local.theirs)
        self.spawner = HostsSpawner(self.hosts, local)  # type: ignore[arg-type]
        self.files = [owned.enter_context((folder / name).open("wb")) for name in ("out", "err")]
        out, err = (file.fileno() for file in self.files)
        channel = self.spawner.spawn(LAYOUT.nodes[2], (), (out, err))
        assert isinstance(channel, FarChannel)
        self.channel = channel

    def heard(self, count: int) -> list[object]:
        """The first words of the node that come, so many of them at least."""
        found: list[object] = []
        while len(found) < count:
            self.spawner.channel.drain()
            found += self.channel.drain()
        return found


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    with contextlib.ExitStack() as owned:
        yield Made(owned, tmp_path)


def test_a_node_elsewhere_is_started_told_and_heard(made: Made, tmp_path: Path) -> None:
    made.channel.send(lines.Signal(15))
    assert [made.end.receive(Spawn, 10), made.end.receive(Tell, 10)] == [
        Spawn(2),
        Tell(2, lines.Signal(15)),
    ]
    made.end.send(Told(2, lines.Up([])))
    made.end.send(Wrote(2, 0, b"one\n"))
    made.end.send(Wrote(2, 1, b"\xff"))
    made.end.send(Told(2, lines.Began(7)))
    assert made.heard(2) == [lines.Up([]), lines.Began(7)]
    # What it has written before it said so is there.
    assert (tmp_path / "out").read_bytes() == b"one\n"
    assert (tmp_path / "err").read_bytes() == b"\xff"
    assert not made.channel.closed


def test_a_node_that_is_left_says_no_more_and_is_not_lost_with_its_host(made: Made) -> None:
    made.end.send(Left(2))
    while not made.channel.closed:
        made.spawner.channel.drain()
    made.end.close()
    while not made.hosts.gone():
        assert made.spawner.channel.drain() == []


def test_who_runs_on_a_host_that_is_gone_is_lost_by_that(made: Made) -> None:
    made.end.close()
    found: list[object] = []
    while not found:
        found = list(made.spawner.channel.drain())
    assert found == [Reaped(2, 0, "host b is gone")]
    assert made.channel.closed


def test_words_of_nodes_that_were_not_started_are_nobodys(made: Made, tmp_path: Path) -> None:
    made.end.send(Wrote(1, 0, b"x"))
    made.end.send(Told(99, lines.Began(1)))
    made.end.send(Told(2, lines.Began(7)))
    assert made.heard(1) == [lines.Began(7)]
    assert (tmp_path / "out").read_bytes() == b""
