"""A driver of programs on host a, and the far end of the line to host b, which has client-2."""

import contextlib
import socket
from pathlib import Path

import agreed

from testbed.exec.hosts.messages import Answer, Order
from testbed.exec.hosts.spawner import HostsSpawner
from testbed.links.tunnel.meeting import listen
from testbed.network import hosts
from testbed.network.profiles import LinkProfile
from testbed.network.topology import plan
from testbed.run.hosts.driver import Hosts
from testbed.run.hosts.far_host import FarChannel, FarHost

TOKEN = b"t" * 32
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
        line, self.end = agreed.lines(ours, theirs, Answer, Order)
        far.__dict__.update(closing=None, gone=None, line=line)
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
