"""Files of nodes on other hosts, brought into the run's folder once programs have ended.

A node at a time of each host, and of each node a few parcels, of which another is asked for once
one is on the disk: so little of it is under way, or in memory.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from testbed.exec import lines, places
from testbed.exec.hosts.own_folder import Full, Lied, OwnFolder
from testbed.exec.lines import LeftOut, Parcel
from testbed.exec.nodes import Node
from testbed.record.events import Brought
from testbed.run.hosts import waits
from testbed.run.hosts.driver import Hosts
from testbed.run.hosts.far_host import FarHost

PARCEL_LIMIT_S = 20.0
"""For a host to send the next parcel."""
LIMIT_S = 600.0
"""For all that a node has."""
PARCELS = 3
"""Asked for at once, so that one is made while another is on its way."""
_TURN_S = 0.2
_MOST_SHOWN = 80
"""Characters of a path."""
_TEXTS = {
    "bytes": f"{{count}} beyond the {places.MOST_BYTES >> 20:,} MiB of a node, such as {{first}}",
    "number": f"what comes after {places.MOST_PLACES:,} files and folders, from {{first}} on",
    "depth": f"{{count}} more than {places.MOST_DEEP} folders deep, such as {{first}}",
    "link": "{count} that lead out of the folder, such as {first}",
    "special": "{count} that are pipes, sockets, devices or mounts, such as {first}",
    "output": "{first}, whose name its output has",
    "unreadable": "{count} that could not be read, such as {first}",
}

Record = Callable[[str, Brought], None]


class _Host:
    """A host's nodes whose files have still to come."""

    def __init__(self, far: FarHost, nodes: Iterable[Node]) -> None:
        self.far, self.left = far, deque(nodes)
        self.now: tuple[Node, OwnFolder] | None = None
        """Whose parcel is waited for, and where it goes."""
        self.heard_s = self.began_s = 0.0
        """When it last sent of that node, and when that one's turn came."""


class Bringing:
    """Owns the folders that are open."""

    def __init__(self, all_hosts: Hosts, nodes: Sequence[Node], record: Record) -> None:
        """``record`` takes of each node on another host what came of it."""
        self._all, self._record = all_hosts, record
        self._hosts = {
            far.name: _Host(far, [n for n in nodes if n.job.node.host == far.name])
            for far in all_hosts.others
        }

    def run(self, cancelled: Callable[[], bool]) -> None:
        """Have all come, for as long as it is not ``cancelled``."""
        try:
            while any([self._goes_on(host) for host in self._hosts.values()]):
                if cancelled():
                    break
                waits.for_words(self._all, time.monotonic() + _TURN_S)
        finally:
            for host in self._hosts.values():
                if host.now is not None:
                    host.now[1].close()
            for host in self._hosts.values():
                self._give_up(host, "the run was interrupted")

    def take(self, far: FarHost, index: int, parcel: Parcel) -> None:
        """Write down what a node has sent, where that was asked of it."""
        host = self._hosts[far.name]
        if host.now is None or host.now[0].job.node.index != index:
            return
        node, folder = host.now
        host.heard_s = time.monotonic()
        try:
            for piece in parcel.pieces:
                folder.take(piece)
        except Full as error:
            self._end(host, [f"what had not come: {error}"])
        except Lied as error:
            self._all.lose(far, f"it sent of {node.name}'s folder {error}")
        else:
            if parcel.last:
                self._end(host, [_told(each) for each in parcel.left_out])
            else:
                node.send(lines.Bring())

    def _goes_on(self, host: _Host) -> bool:
        """Ask for the next of a host's nodes, where none is waited for; whether one is then."""
        now_s = time.monotonic()
        if host.now is not None and now_s > host.heard_s + PARCEL_LIMIT_S:
            self._all.lose(host.far, f"nothing of its nodes' files within {PARCEL_LIMIT_S:g} s")
        elif host.now is not None and now_s > host.began_s + LIMIT_S:
            self._end(host, [f"what had not come: {LIMIT_S:g} s were over"])
        if host.far.gone is not None:
            self._give_up(host, f"host {host.far.name} is gone")
        while host.now is None and host.left:
            node = host.left.popleft()
            if node.channel is None or node.channel.closed:
                self._tell(host, node, None, ["all of it: it ended before"])
                continue
            try:
                folder = OwnFolder(Path(node.job.own_folder))
            except OSError as error:
                self._tell(host, node, None, [f"all of it: {error.strerror}"])
                continue
            host.now, host.heard_s, host.began_s = (node, folder), now_s, now_s
            for _ in range(PARCELS):
                node.send(lines.Bring())
        return host.now is not None

    def _give_up(self, host: _Host, why: str) -> None:
        if host.now is not None:
            self._end(host, [f"what had not come: {why}"])
        while host.left:
            self._tell(host, host.left.popleft(), None, [f"all of it: {why}"])

    def _end(self, host: _Host, left_out: list[str]) -> None:
        assert host.now is not None
        (node, folder), host.now = host.now, None
        folder.close()
        self._tell(host, node, folder, left_out)

    def _tell(self, host: _Host, node: Node, folder: OwnFolder | None, left_out: list[str]) -> None:
        files, size = (folder.files, folder.bytes) if folder else (0, 0)
        refused = {} if folder is None else folder.refused
        left_out += [
            f"{count} that this machine did not take ({why}), such as {_shown(first)}"
            for why, (count, first) in refused.items()
        ]
        brought = Brought(host=host.far.name, files=files, bytes=size, left_out=left_out)
        self._record(node.name, brought)


def _told(left_out: LeftOut) -> str:
    return _TEXTS[left_out.why].format(count=left_out.count, first=_shown(left_out.first))


def _shown(path: bytes) -> str:
    """The path as text that may be printed, whatever it has in it."""
    return repr(os.fsdecode(path[-_MOST_SHOWN:]))
