"""The spawners of all hosts as one: what the supervisor of programs on several hosts has."""

import contextlib
import os
from collections.abc import Callable, Sequence

import msgspec

from testbed.exec.hosts.bringing import Bringing, Record
from testbed.exec.hosts.messages import Left, Tell, Told, Wrote
from testbed.exec.lines import Parcel
from testbed.exec.nodes import Node as Program
from testbed.exec.spawner import Spawner
from testbed.network.topology import Node
from testbed.processes.channel import Channel
from testbed.run.hosts.driver import Hosts
from testbed.run.hosts.far_host import FarChannel, FarHost
from testbed.run.hosts.whole import HostsChannel


class HostsSpawner:
    """Owns the driver's own."""

    def __init__(self, all_hosts: Hosts, local: Spawner) -> None:
        self._hosts, self._local = all_hosts, local
        self.channel = HostsChannel(all_hosts, local.channel)
        """It tells of nodes on hosts that are gone, too."""
        self._output: dict[int, tuple[int, int]] = {}
        """Of nodes on other hosts: where what they write goes."""
        self._bringing: Bringing | None = None
        """Once programs have ended."""
        all_hosts.heard = self._take
        # As far as is known: who speaks to whom is the programs' own affair.
        all_hosts.among_clients = True

    def spawn(
        self, node: Node, namespaces: tuple[int, ...], output: tuple[int, int]
    ) -> Channel | FarChannel:
        """The same as of one host; ``output`` stays the caller's.

        Raises:
            LinkError: the driver's own spawner is gone.
        """
        far = self._hosts.of(node)
        if far is None:
            return self._local.spawn(node, namespaces, output)
        channel = FarChannel(far, node.index, Tell)
        self._output[node.index] = output
        self._hosts.spawn(far, node.index, channel)
        return channel

    def bring(
        self, programs: Sequence[Program], record: Record, cancelled: Callable[[], bool]
    ) -> None:
        """Have what programs on other hosts leave in their own folders be in the run's, and
        ``record`` what came, for as long as it is not ``cancelled``."""
        self._bringing = Bringing(self._hosts, programs, record)
        self._bringing.run(cancelled)

    def _take(self, far: FarHost, message: msgspec.Struct) -> None:
        if not isinstance(message, Told | Wrote | Left):
            return
        channel = far.channels.get(message.node)
        if channel is None:
            return
        if isinstance(message, Told) and isinstance(message.line, Parcel):
            if self._bringing is not None:
                self._bringing.take(far, message.node, message.line)
        elif isinstance(message, Told):
            channel.put(message.line)
        elif isinstance(message, Wrote):
            # A full disk takes no more of the driver's own nodes either.
            with contextlib.suppress(OSError):
                os.write(self._output[message.node][message.stream], message.data)
        else:
            far.running.discard(message.node)
            channel.end()

    def failure(self) -> str | None:
        return self._local.failure()

    def down(self) -> None:
        self._local.down()
