"""Hosts of a run, and which of them has each node. Pure data.

``server=a,client-1:100=b`` places nodes by hand, both numbers included. The others go by cores and
memory: the server to the first host, which is the driver's, and clients in proportion to cores as
far as memory reaches.
"""

import heapq
import re
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from testbed.config_error import ConfigError, closest
from testbed.network.topology import SERVER, Node, Plan, client_name

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_CLIENTS = re.compile(r"client-([0-9]{1,9})(?::([0-9]{1,9}))?")
_FORM = "write server=HOST, client-3=HOST or client-1:100=HOST, parted by commas"


class Host(msgspec.Struct, frozen=True):
    """One machine of a run."""

    name: str
    cores: int
    memory_bytes: int
    """Free for nodes."""


class Needs(NamedTuple):
    """Memory that nodes take of a host, in bytes."""

    client: int
    server: int = 0
    shared: int = 0
    """Once a host that has any node, for what its nodes share."""


NOTHING = Needs(0)


def placed(
    plan: Plan, hosts: Sequence[Host], needs: Needs = NOTHING, place: str | None = None
) -> Plan:
    """The plan with a host for each node.

    Raises:
        ConfigError: hosts or ``place`` are none, or memory does not suffice; with the arithmetic.
    """
    _refuse_wrong(hosts)
    names = [host.name for host in hosts]
    by_hand = {} if place is None else parsed(place, names, len(plan.clients))
    where = {SERVER: by_hand.pop(SERVER, names[0])}
    where.update(by_hand)
    _refuse_too_much(hosts, needs, where)
    left = [node.name for node in plan.clients if node.name not in where]
    for name, count in _shares(hosts, needs, where, len(left)).items():
        where.update(dict.fromkeys(left[:count], name))
        del left[:count]
    nodes = (msgspec.structs.replace(node, host=where[node.name]) for node in plan.nodes)
    return msgspec.structs.replace(plan, nodes=tuple(nodes))


def parsed(place: str, hosts: Sequence[str], clients: int) -> dict[str, str]:
    """The host of each node that ``place`` names, by the node's name.

    Raises:
        ConfigError: naming the piece, and what would be right.
    """
    found: dict[str, str] = {}
    for piece in (each.strip() for each in place.split(",")):
        wrong = f"place = {place!r}: {piece!r}"
        which, equals, host = (part.strip() for part in piece.partition("="))
        if not equals:
            raise ConfigError(f"{wrong}: {_FORM}")
        if host not in hosts:
            raise ConfigError(
                f"{wrong}: there is no host {host!r}{closest(host, hosts) or '.'} "
                f"Hosts are {', '.join(hosts)}"
            )
        for name in _named(wrong, which, clients):
            if name in found:
                raise ConfigError(f"{wrong}: {name} is placed already, on {found[name]}")
            found[name] = host
    return found


def _named(wrong: str, which: str, clients: int) -> list[str]:
    if which == SERVER:
        return [SERVER]
    match = _CLIENTS.fullmatch(which)
    if match is None:
        raise ConfigError(f"{wrong}: {which!r} names no nodes; {_FORM}")
    first = int(match[1])
    last = first if match[2] is None else int(match[2])
    if not 1 <= first <= last <= clients:
        raise ConfigError(f"{wrong}: the run's clients are client-1:{clients}, counted upwards")
    return [client_name(number) for number in range(first, last + 1)]


def written(plan: Plan) -> str:
    """The placement as text, from which ``placed`` makes the same again."""
    pieces: list[tuple[Node, Node]] = []
    for node in plan.nodes:
        if pieces and pieces[-1][0].index and pieces[-1][0].host == node.host:
            pieces[-1] = (pieces[-1][0], node)
        else:
            pieces.append((node, node))
    return ",".join(
        f"{first.name}{'' if first is last else f':{last.index}'}={first.host}"
        for first, last in pieces
    )


def of_host(plan: Plan, host: str) -> tuple[Node, ...]:
    """The nodes that a host has, in the plan's order."""
    return tuple(node for node in plan.nodes if node.host == host)


def _refuse_wrong(hosts: Sequence[Host]) -> None:
    if not hosts:
        raise ConfigError("hosts: there is none; a run needs one at least")
    seen = set()
    for host in hosts:
        if not _NAME.fullmatch(host.name):
            raise ConfigError(
                f"host {host.name!r}: a name has letters, digits, '.', '_' and '-', 63 at most, "
                "and begins with a letter or a digit"
            )
        if host.name in seen:
            raise ConfigError(f"host {host.name!r}: there are two of that name")
        if host.cores < 1:
            raise ConfigError(f"host {host.name}: cores = {host.cores}: must be 1 or more")
        seen.add(host.name)


def _taken(needs: Needs, clients: int, has_server: bool) -> int:
    """Bytes that so many nodes take of a host."""
    if not clients and not has_server:
        return 0
    return needs.shared + has_server * needs.server + clients * needs.client


def _sum(needs: Needs, clients: int, has_server: bool) -> str:
    """ "2 GB that nodes share + 1 GB for the server + 10 clients x 0.1 GB = 4 GB" """
    parts = [f"{_gb(needs.shared)} that nodes share"] if needs.shared else []
    parts += [f"{_gb(needs.server)} for the server"] if has_server else []
    parts += [f"{clients} clients x {_gb(needs.client)}"] if clients else []
    return f"{' + '.join(parts)} = {_gb(_taken(needs, clients, has_server))}"


def _refuse_too_much(hosts: Sequence[Host], needs: Needs, where: dict[str, str]) -> None:
    """Refusal of a host whose nodes, as placed already, are more than its memory holds."""
    for host in hosts:
        clients = sum(at == host.name for name, at in where.items() if name != SERVER)
        has_server = where[SERVER] == host.name
        if _taken(needs, clients, has_server) > host.memory_bytes:
            raise ConfigError(
                f"host {host.name} has {_gb(host.memory_bytes)} free, and what is placed there "
                f"takes {_sum(needs, clients, has_server)}; place fewer nodes there"
            )


def _shares(
    hosts: Sequence[Host], needs: Needs, where: dict[str, str], clients: int
) -> dict[str, int]:
    """How many more clients each host gets: the next one goes where most cores are left for it."""
    placed = [sum(at == h.name for name, at in where.items() if name != SERVER) for h in hosts]
    rooms = [
        _room(host, needs, had, where[SERVER] == host.name)
        for host, had in zip(hosts, placed, strict=True)
    ]
    if sum(min(room, clients) for room in rooms) < clients:
        each = (
            f"{host.name} has room for {room} more, with {_gb(host.memory_bytes)} free"
            for host, room in zip(hosts, rooms, strict=True)
        )
        raise ConfigError(
            f"{clients} clients of {_gb(needs.client)} each do not fit into the hosts' memory: "
            f"{'; '.join(each)}. Take fewer clients, or more hosts"
        )
    shares = [0] * len(hosts)
    crowds = [
        ((had + 1) / host.cores, number)
        for number, (host, had, room) in enumerate(zip(hosts, placed, rooms, strict=True))
        if room
    ]
    heapq.heapify(crowds)
    for _ in range(clients):
        number = crowds[0][1]
        shares[number] += 1
        if shares[number] == rooms[number]:
            heapq.heappop(crowds)
        else:
            more = (placed[number] + shares[number] + 1) / hosts[number].cores
            heapq.heapreplace(crowds, (more, number))
    return {host.name: share for host, share in zip(hosts, shares, strict=True)}


def _room(host: Host, needs: Needs, clients: int, has_server: bool) -> int:
    """How many more clients its memory has room for."""
    free = host.memory_bytes - needs.shared - has_server * needs.server - clients * needs.client
    if not needs.client:
        return 10**9 if free >= 0 else 0
    return max(0, free // needs.client)


def _gb(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
