"""Nodes of a run of programs: their folders and files, and how far each has come."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from testbed import files
from testbed.exec.endings import Ending
from testbed.exec.isolation import View
from testbed.exec.jobs import Job, hosts, kept_paths, name_service
from testbed.exec.output import Output
from testbed.network.topology import Plan
from testbed.processes.channel import Channel, ChannelClosed

_SERVICES = Path("/etc/nsswitch.conf")
_RESOLVER = "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"


class Node:
    """A node on its way from its namespaces to its program's end."""

    def __init__(self, job: Job, output: Output) -> None:
        self.job, self.output = job, output
        self.name = job.node.name
        self.channel: Channel | None = None
        self.up = self.asked = self.began = False
        self.began_s = 0.0
        self.ports: dict[int, bool] = {}
        """Ports that are waited for, and whether other nodes get to them."""
        self.local: set[int] = set()
        """Those that somebody listens on, be it on 127.0.0.1."""
        self.ending: Ending | None = None
        self.told = False
        """Init has said its last line."""

    @property
    def running(self) -> bool:
        return self.asked and self.ending is None

    def send(self, order: msgspec.Struct) -> None:
        with contextlib.suppress(ChannelClosed):
            if self.channel is not None:
                self.channel.send(order)


def views(plan: Plan, jobs: Sequence[Job], folder: Path) -> list[View]:
    """Make what nodes see of their own in ``folder``, and a folder of each in it.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir()
    services = files.system_lines(_SERVICES) if _SERVICES.is_file() else []
    seen = {
        "hosts": hosts(plan),
        "resolv.conf": _RESOLVER,
        "nsswitch.conf": name_service(services),
    }
    for name, text in seen.items():
        files.write(folder / name, text.encode(errors="surrogateescape"))
    shown = tuple((str(folder / name), f"/etc/{name}") for name in seen)
    for job in jobs:
        Path(job.own_folder).mkdir()
    return [View(job.node.name, shown, kept_paths(job)) for job in jobs]
