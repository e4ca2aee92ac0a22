"""Jobs: of each node the command, environment, folder and what it waits for. Pure data."""

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from testbed.exec.kept import kept_paths
from testbed.network.topology import Node, Plan
from testbed.processes.environment import for_others

INTERFACE = "wire0"
SHELL = "/bin/sh"
HOSTS = "/etc/hosts"


class Port(NamedTuple):
    """A TCP port that a node is to listen on."""

    node: str
    number: int

    def __str__(self) -> str:
        return f"{self.node}:{self.number}"


class Job(NamedTuple):
    """A node's program, before it runs."""

    node: Node
    text: str
    """The command as its user wrote it."""
    words: tuple[str, ...]
    """The program and its arguments."""
    environment: dict[str, str]
    folder: str
    """Where it starts."""
    own_folder: str
    """The node's in the run's folder, with its output."""
    after: Port | None = None
    """It starts once this port is listened on."""

    def kept_paths(self) -> tuple[str, ...]:
        """Paths of private folders that the program is to find."""
        return kept_paths((self.folder, self.own_folder), self.words, self.environment)


def job(
    layout: Plan,
    node: Node,
    command: str | tuple[str, ...],
    original: Mapping[str, str],
    own: Mapping[str, str],
    folders: Sequence[str],
    run_folder: Path,
    after: Port | None = None,
) -> Job:
    """The job of ``node``.

    ``command``: a line for a shell, or words, in which ``$WIRETUNE_RANK`` and the others are
    replaced. ``folders``: where it starts, each relative to the one before; likewise.
    ``original``: the environment that the user has; ``own``: what was asked for beside.
    """
    own_folder = run_folder / "nodes" / node.name
    told = _told(layout, node, own_folder)
    folder = os.path.abspath(os.path.join("", *(_replaced(each, told) for each in folders)))
    environment = {**_interfaces(node), **for_others(original), **told, "PWD": folder}
    if "HOSTNAME" in original:
        environment["HOSTNAME"] = node.name
    environment |= own
    text, words = _command(command, told)
    return Job(node, text, words, environment, folder, str(own_folder), after)


def _command(
    command: str | tuple[str, ...], told: Mapping[str, str]
) -> tuple[str, tuple[str, ...]]:
    """The command as text, and its words."""
    if isinstance(command, str):
        return command, (SHELL, "-c", command)
    words = tuple(_replaced(word, told) for word in command)
    return shlex.join(words), words


def _told(layout: Plan, node: Node, own_folder: Path) -> dict[str, str]:
    """Variables that say where a program is."""
    found = {
        "NODE": node.name,
        "RANK": str(node.index),
        "SIZE": str(len(layout.nodes)),
        "ADDRESS": node.address,
        "SERVER": layout.server.address,
        "ADDRESSES": ",".join(each.address for each in layout.nodes),
        "INTERFACE": INTERFACE,
        "DIR": str(own_folder),
    }
    return {f"WIRETUNE_{name}": value for name, value in found.items()}


def _interfaces(node: Node) -> dict[str, str]:
    """Variables by which libraries go over the links, where a user has not said otherwise."""
    return {
        "GLOO_SOCKET_IFNAME": INTERFACE,
        "NCCL_SOCKET_IFNAME": INTERFACE,
        "NCCL_P2P_DISABLE": "1",
        "NCCL_SHM_DISABLE": "1",
        "NCCL_NET": "Socket",
        "NCCL_HOSTID": node.name,
    }


def _replaced(text: str, told: Mapping[str, str]) -> str:
    """The text with the variables of ``told`` replaced, and no others."""

    def value(found: re.Match[str]) -> str:
        return told.get(found[1] or found[2], found[0])

    return re.sub(r"\$(?:(WIRETUNE_[A-Z]+)|\{(WIRETUNE_[A-Z]+)\})", value, text)


def hosts(layout: Plan) -> str:
    """The hosts file of all nodes."""
    lines = ["127.0.0.1 localhost", *(f"{each.address} {each.name}" for each in layout.nodes)]
    return "".join(f"{line}\n" for line in lines)


def named(text: str) -> dict[str, str]:
    """Nodes by address, of the hosts file of all."""
    _, *lines = text.splitlines()
    return dict(line.split(" ", 1) for line in lines)


def name_service(lines: Iterable[str]) -> str:
    """An nsswitch.conf whose hosts are those of the hosts file, and else by DNS."""
    kept = [line for line in lines if not line.lstrip().startswith("hosts:")]
    return "".join(f"{line}\n" for line in [*kept, "hosts: files dns"])
