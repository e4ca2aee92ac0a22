"""Nodes of a run of programs: their folders and files, and how far each has come."""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from testbed import files
from testbed.exec.endings import Ending
from testbed.exec.isolation import View
from testbed.exec.jobs import Job, hosts, name_service
from testbed.exec.output import Output
from testbed.network.topology import Plan
from testbed.processes.channel import Channel, ChannelClosed
from testbed.run.hosts.far_host import FarChannel

_SERVICES = Path("/etc/nsswitch.conf")
_RESOLVER = "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"


class Node:
    """A node on its way from its namespaces to its program's end."""

    def __init__(self, job: Job, output: Output) -> None:
        self.job, self.output = job, output
        self.name = job.node.name
        self.channel: Channel | FarChannel | None = None
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

    @property
    def is_cut_off(self) -> bool:
        """Whether its first process is gone without a last word."""
        return self.channel is not None and self.channel.closed and not self.told

    def waits_in_vain(self, other: "Node", limit_s: float) -> str | None:
        """Why the port of ``other`` that it waits for will not be listened on, once that is so."""
        after = self.job.after
        text = f"{self.name} waits for {after}"
        if other.ending is not None:
            return f"{text}, and {other.name} {other.ending.how} before anybody listened there"
        if not other.began or time.monotonic() <= other.began_s + limit_s:
            return None
        local = after is not None and after.number in other.local
        who = "nobody but on 127.0.0.1" if local else "nobody"
        return (
            f"{text}, and {who} listens there after wait_limit_s = {limit_s:g}; have the command "
            f"of {other.name} listen on 0.0.0.0 and that port, or correct --wait-port"
        )

    def send(self, order: msgspec.Struct) -> None:
        with contextlib.suppress(ChannelClosed):
            if self.channel is not None:
                self.channel.send(order)


def surroundings(plan: Plan) -> dict[str, str]:
    """Files that nodes see as their own in /etc."""
    services = files.system_lines(_SERVICES) if _SERVICES.is_file() else []
    return {
        "hosts": hosts(plan),
        "resolv.conf": _RESOLVER,
        "nsswitch.conf": name_service(services),
    }


def views(plan: Plan, jobs: Sequence[Job], folder: Path) -> list[View]:
    """Make what nodes see of their own in ``folder``, and a folder of each in it.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir()
    seen = surroundings(plan)
    for name, text in seen.items():
        files.write(folder / name, text.encode(errors="surrogateescape"))
    shown = tuple((str(folder / name), f"/etc/{name}") for name in seen)
    for job in jobs:
        Path(job.own_folder).mkdir()
    return [View(job.node.name, shown, job.kept_paths()) for job in jobs]
