"""Mininet's topologies: the access links that a Topo asks for, made here or held against its own.

A Topo is taken by its shape, so Mininet itself need not be installed. Links have TCLink's names and
units; what has no counterpart in a Plan is refused.
"""

import ipaddress
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

from testbed.config_error import ConfigError, known_or_named
from testbed.fidelity import checks
from testbed.fidelity.checks import Certificate
from testbed.fidelity.prober import Prober
from testbed.library.network import Network
from testbed.links.interface import Endpoint, LinkCounters
from testbed.network import direction_table
from testbed.network.direction import Direction
from testbed.network.profiles import LinkProfile
from testbed.network.topology import SERVER, SUBNET, Node, Plan
from testbed.run.config import choose

QUEUE_PACKETS = 1000
"""Of netem, and of a device, where a TCLink says nothing."""
_WITHOUT_COUNTERPART = ("enable_ecn", "enable_red", "speedup", "use_tbf", "latency_ms")
_UNLIMITED = Direction()
_READ = ("hosts", "switches", "links", "nodeInfo")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class Topo(Protocol):
    """The part of mininet.topo.Topo that is read."""

    def hosts(self) -> list[str]: ...
    def switches(self) -> list[str]: ...
    def links(self, *, withInfo: bool) -> list[tuple[str, str, dict[str, Any]]]: ...
    def nodeInfo(self, name: str) -> dict[str, Any]: ...


class Host(Protocol):
    """The part of a running mininet.node.Host that is read."""

    name: str
    pid: int | None


class Running(NamedTuple):
    """The part of a running mininet.net.Mininet that is read."""

    topo: Topo
    hosts: list[Any]


def plan_of(topo: Topo, server: str | None = None) -> Plan:
    """The hosts of a Topo, each behind its link to a switch, at the addresses Mininet gives them.

    ``server``: the host that is asked for what others probe; one named server, else the first.

    Raises:
        ConfigError: it is no Topo, or naming a host or a link, and what has no counterpart here.
    """
    for method in _READ:
        if isinstance(topo, type) or not callable(getattr(topo, method, None)):
            kind = getattr(topo, "__name__", type(topo).__name__)
            raise ConfigError(f"topology: {kind} is no mininet.topo.Topo; give one that is made")
    hosts, switches = list(topo.hosts()), set(topo.switches())
    if len(hosts) < 2:
        raise ConfigError(f"topology: has {len(hosts)} hosts; a network takes two at least")
    first = server or (SERVER if SERVER in hosts else hosts[0])
    choose("server", first, hosts)
    for name in hosts:
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"host {name!r}: must be letters, digits, '-', '_' and '.', 63 at most, for it is "
                "what others look up"
            )
    profiles = _access_links(topo, hosts, switches)
    addresses = _addresses(topo, hosts)
    nodes = []
    for index, name in enumerate([first, *(each for each in hosts if each != first)]):
        profile: LinkProfile | None = profiles[name]
        if not index and profile == LinkProfile(name=name):
            profile = None
        nodes.append(Node(index, name, addresses[name], profile))
    return Plan(tuple(nodes))


def _access_links(topo: Topo, hosts: list[str], switches: set[str]) -> dict[str, LinkProfile]:
    found: dict[str, LinkProfile] = {}
    islands = {name: {name} for name in switches}
    at: dict[str, str] = {}
    for one, other, info in topo.links(withInfo=True):
        what = f"link {one}-{other}"
        ends = [{**info, **(info.get(key) or {})} for key in ("params1", "params2")]
        shaped = [_direction(f"{what}: ", end) for end in ends]
        if one in switches and other in switches:
            if shaped != [_UNLIMITED, _UNLIMITED]:
                raise ConfigError(
                    f"{what}: is shaped and joins two switches; only hosts' own links may be, for "
                    "no other line can be shared here but the server's"
                )
            whole = islands[one] | islands[other]
            islands |= dict.fromkeys(whole, whole)
            continue
        if one not in switches and other not in switches:
            raise ConfigError(f"{what}: joins two hosts; put a switch between them")
        host, switch, (up, down) = (
            (one, other, shaped) if other in switches else (other, one, shaped[::-1])
        )
        if host in found:
            raise ConfigError(f"{what}: is a second link of {host}; a node has one")
        found[host], at[host] = LinkProfile(name=host, up=up, down=down), switch
    for host in hosts:
        if host not in found:
            raise ConfigError(f"host {host}: has no link to a switch")
        if at[host] not in islands[at[hosts[0]]]:
            raise ConfigError(f"host {host}: no switches lead from it to {hosts[0]}")
    return found


def _direction(prefix: str, options: Mapping[str, Any]) -> Direction:
    for key in _WITHOUT_COUNTERPART:
        if options.get(key):
            raise ConfigError(f"{prefix}{key} = {options[key]!r}: links here have no such queue")
    names = direction_table.MININET
    table = {key: options[key] for key in names if options.get(key) is not None}
    if "bw" in table:
        table.setdefault("max_queue_size", QUEUE_PACKETS)
    return direction_table.read(prefix, table, Path())


def _addresses(topo: Topo, hosts: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, name in enumerate(hosts, start=1):
        text = str(topo.nodeInfo(name).get("ip") or SUBNET[number])
        try:
            address = ipaddress.IPv4Interface(text).ip
        except ValueError as error:
            raise ConfigError(f"host {name}: ip = {text!r}: {error}") from error
        if address not in SUBNET:
            raise ConfigError(f"host {name}: ip = {text!r}: must be of {SUBNET}")
        if str(address) in found.values():
            raise ConfigError(f"host {name}: ip = {text!r}: is another host's")
        found[name] = str(address)
    return found


class Wiretune(Network):
    """The network of a Topo, by links of ours: its hosts are ``nodes``, by name."""

    def __init__(
        self,
        topo: Topo,
        *,
        server: str | None = None,
        links: str = "auto",
        certify: bool = False,
        strict: bool = False,
    ) -> None:
        """Build it; raises what Network does, and ConfigError as ``plan_of``."""
        self._build(plan_of(topo, server), links, certify=certify, strict=strict)


class MininetNetwork:
    """A running Mininet, whose links are probed as ours are; owns descriptors of its namespaces."""

    def __init__(self, net: Any, server: str | None = None) -> None:
        """``net``: a mininet.net.Mininet that has been started, or what is alike (``Running``).

        Raises:
            ConfigError: a host does not run, or as ``plan_of``.
        """
        self.facts: dict[str, object] = {"backend": "mininet"}
        self.record: dict[str, object] = {}
        self.plan = plan_of(net.topo, server)
        pids = {host.name: host.pid for host in net.hosts}
        self._handles: list[int] = []
        for node in self.plan.nodes:
            try:
                path = f"/proc/{pids[node.name]}/ns/net"
                self._handles.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            except (KeyError, OSError) as error:
                self.down()
                raise ConfigError(f"host {node.name}: does not run in a Mininet here") from error

    def certificate(self) -> Certificate:
        """Hold what comes through each host's link, and the server's, against the Topo."""
        server, *clients = self.plan.nodes
        found: list[Certificate] = []
        for client in clients:
            assert client.profile is not None
            profile = client.profile
            if server.profile is not None:
                # Neither limit can be lifted, so they are probed as one, alone.
                up = _through(profile.up, server.profile.down)
                down = _through(profile.down, server.profile.up)
                profile = LinkProfile(name=client.name, up=up, down=down)
            ends = (
                msgspec.structs.replace(server, profile=None),
                msgspec.structs.replace(client, profile=profile),
            )
            prober = Prober(Plan(ends), self)
            try:
                found.append(prober.certificate())
            finally:
                prober.close()
        every = [check for one in found for check in one.checks]
        left = [each for one in found for each in one.not_probed]
        return checks.certify(every, left)

    def endpoint(self, node: Node) -> Endpoint:
        handle = self._handles[node.index]
        return Endpoint((handle,), self.plan.server.address, self.plan.port)

    def shape(self, node: Node, up: Direction, down: Direction) -> None:
        raise NotImplementedError("a running Mininet's links are its own")

    def counters(self) -> list[LinkCounters]:
        return []

    def fileno(self) -> int:
        return -1

    def failure(self) -> str | None:
        return None

    def halted(self) -> str | None:
        return None

    def down(self) -> dict[str, object]:
        while self._handles:
            os.close(self._handles.pop())
        return {}


def _through(first: Direction, then: Direction) -> Direction:
    """Two lines, one after the other, as one."""
    rates = [each.rate_kbit for each in (first, then) if each.rate_kbit is not None]
    rooms = [each.max_packets for each in (first, then) if each.max_packets is not None]
    kept = (1 - first.loss_percent / 100) * (1 - then.loss_percent / 100)
    return Direction(
        rate_kbit=min(rates, default=None),
        delay_ms=first.delay_ms + then.delay_ms,
        jitter_ms=first.jitter_ms + then.jitter_ms,
        loss_percent=round(100 * (1 - kept), 9),
        max_packets=min(rooms, default=None),
    )


def running_hosts(names: Iterable[str]) -> list["FoundHost"]:
    """Hosts of a Mininet that runs here, by the word that ends their shells' command lines."""
    wanted = {f"mininet:{name}": name for name in names}
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            last = path.read_bytes().rstrip(b"\0").rpartition(b"\0")[2].decode(errors="replace")
        except OSError:
            continue  # It has ended since.
        if last in wanted:
            found.append(FoundHost(wanted[last], int(path.parent.name)))
    return found


class FoundHost(NamedTuple):
    """A Host as it is found from outside."""

    name: str
    pid: int


def topology(text: str) -> Topo:
    """The Topo that ``FILE.py:NAME`` makes: of the file's ``topos``, as ``mn --custom`` has them.

    Raises:
        ConfigError: there is no such file or name, or the file fails.
    """
    import runpy

    file, _, name = text.rpartition(":")
    if not file or not os.path.isfile(file):
        raise ConfigError(f"mininet = {text!r}: must be FILE.py:NAME, of a file that is there")
    try:
        topos = runpy.run_path(file).get("topos")
        if not isinstance(topos, dict) or not topos:
            raise ConfigError(
                f"mininet = {text!r}: the file has no topologies; as for `mn --custom` it says "
                "topos = {'NAME': CLASS}"
            )
        choose("topology", name, map(str, topos))
        found: Topo = topos[name]()
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # The file may end the program that runs it.
        raise ConfigError(f"mininet = {text!r}: {known_or_named(error)}") from error
    return found
