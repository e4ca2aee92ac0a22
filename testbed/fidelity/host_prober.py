"""The probers of a run of several hosts: each has its own nodes' ends, and one judges what came.

Pings and bursts need no clock that two hosts share (``udp_probe``), but they need to be done at
once: every step is an order to the probers of all hosts, and the next comes when all have done it.
"""

import contextlib
import functools
import socket
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from testbed.fidelity import checks as fidelity
from testbed.fidelity import paths as probe_paths
from testbed.fidelity import saturation_probe
from testbed.fidelity.checks import Certificate, Check, NotProbed
from testbed.fidelity.paths import Arrivals, Path
from testbed.fidelity.prober import FOR_NAMESPACES, PATIENCE_S, best_of_tries, judged, probe_s
from testbed.fidelity.udp_probe import Ends
from testbed.links.interface import Endpoint, LinkError, Network
from testbed.network.direction import Direction
from testbed.network.topology import Node, Plan
from testbed.probing.saturation import Note
from testbed.probing.timestamps import enter, listen
from testbed.processes import confinement
from testbed.processes.channel import Channel
from testbed.processes.worker import NoAnswer, Refusal, Result, Stop, Worker

_UNLIMITED = Direction()


class Open(msgspec.Struct, tag="probe_open"):
    """An order to be ready to probe some paths."""

    of_server: bool
    """The server's own path, and not those of clients."""
    places: list[int]
    """Which of the paths, of which the plan gives the same to all hosts."""


class Ping(msgspec.Struct, tag="probe_ping"):
    """An order to ping over all of them."""


class Burst(msgspec.Struct, tag="probe_burst"):
    """An order to fill some of them at once."""

    group: list[int]
    """By their places among those that are open."""


class Fill(msgspec.Struct, tag="probe_fill"):
    """An order to fill one way of one by TCP."""

    place: int
    way: str


class Finish(msgspec.Struct, tag="probe_finish"):
    """An order to take what is on its way, and to tell."""


class Did(msgspec.Struct, tag="probe_did"):
    """A prober's word that it has done what it was told."""


class Came(msgspec.Struct, tag="probe_came"):
    """Arrivals at the ends of a host, by the paths that were open."""

    arrivals: list[Arrivals]


Order = Open | Ping | Burst | Fill | Finish
Answer = Did | Came


class HostProber:
    """A process with the ends of one host's nodes; owns it."""

    def __init__(self, plan: Plan, network: Network, host: str, dilation: float = 1.0) -> None:
        def run(channel: Channel) -> None:
            confinement.give_up_capabilities(FOR_NAMESPACES)
            with contextlib.closing(_Body(plan, network, host, dilation)) as body:
                body.obey(channel)

        self._worker = Worker("prober", run, orders=Order | Stop, answers=Answer | Result | Refusal)

    def tell(self, order: Order) -> None:
        self._worker.tell(order)

    def fileno(self) -> int:
        """Readable where there is anything to drain."""
        return self._worker.channel.fileno()

    def drain(self) -> list[Answer]:
        """Its answers that nobody has taken.

        Raises:
            LinkError: its process has ended.
        """
        lines = [line for line in self._worker.channel.drain() if isinstance(line, Answer)]
        if self._worker.channel.closed:
            raise LinkError(f"not probed: the prober {self._worker.child.condition()}")
        return lines

    def answer(self, order: Order, limit_s: float) -> Answer:
        """Its answer to the order that it was told.

        Raises:
            NoAnswer: none within ``limit_s``, or its process has ended.
        """
        if isinstance(order, Finish):
            return self._worker.receive(Came, limit_s)
        return self._worker.receive(Did, limit_s)

    def close(self) -> None:
        self._worker.close()


class _Open(NamedTuple):
    paths: list[Path]
    ends: Ends
    listener: socket.socket | None
    """Where the server is here."""
    fills: list[dict[str, list[Note]]]


class _Body:
    """Work of the process."""

    def __init__(self, plan: Plan, network: Network, host: str, dilation: float) -> None:
        self._plan, self._network, self._host = plan, network, host
        self._paths = paths_of(plan, dilation)
        self._open: _Open | None = None

    def obey(self, channel: Channel) -> None:
        """Do what is ordered until told to stop; in between pings are answered."""
        while True:
            # The next order comes once this one's answer has.
            order = channel.receive()
            if isinstance(order, Stop):
                return
            channel.send(self._do(order))
            if self._open is not None:
                self._open.ends.serve(channel.fileno())

    def _do(self, order: Order) -> Answer:
        if isinstance(order, Open):
            self.close()
            paths = [self._paths[order.of_server][place] for place in order.places]
            ends = Ends(self._plan, self._network, paths, self._host)
            self._open = _Open(paths, ends, self._listen(), [{} for _ in paths])
            return Did()
        assert self._open is not None
        if isinstance(order, Ping):
            self._open.ends.ping()
        elif isinstance(order, Burst):
            self._open.ends.burst(order.group)
        elif isinstance(order, Fill):
            # Where nothing gets through there are no notes.
            with contextlib.suppress(OSError):
                self._fill(self._open, order)
        else:
            self._open.ends.wait()
            seen = zip(self._open.ends.arrivals(), self._open.fills, strict=True)
            return Came([one._replace(fills=notes) for one, notes in seen])
        return Did()

    def _listen(self) -> socket.socket | None:
        if self._plan.server.host != self._host:
            return None
        endpoint = self._server()
        enter(endpoint)
        listener = listen(endpoint)
        listener.settimeout(saturation_probe.CONNECT_LIMIT_S)
        return listener

    def _server(self) -> Endpoint:
        return self._network.endpoint(self._plan.server)

    def _fill(self, is_open: _Open, order: Fill) -> None:
        path, listener = is_open.paths[order.place], is_open.listener
        lines = sum(len(each.fast_ways) for each in is_open.paths)
        planned = saturation_probe.planned_fill(path, order.way, lines)
        calls = path.client.host == self._host
        if calls and listener is not None:
            endpoint = self._network.endpoint(path.client)
            enter(endpoint)
            notes = saturation_probe.fill_between(endpoint, listener, order.way, planned)
            is_open.fills[order.place][order.way] = notes
            return
        if calls:
            end = saturation_probe.call(self._network.endpoint(path.client))
        elif listener is not None:
            end = listener.accept()[0]
        else:
            return
        with end:
            if calls == (order.way == "up"):
                saturation_probe.send(end, planned)
            else:
                is_open.fills[order.place][order.way] = saturation_probe.take(end, planned)

    def close(self) -> None:
        if self._open is not None:
            self._open.ends.close()
            if self._open.listener is not None:
                self._open.listener.close()
            self._open = None


Ask = Callable[[Order, float], list[Answer]]
"""Gives an order to the probers of all hosts; their answers within so many seconds, or NoAnswer."""


def paths_of(plan: Plan, dilation: float) -> tuple[list[Path], list[Path]]:
    """The clients' paths, and the server's own if it has one."""
    server = probe_paths.server_path(plan, False, dilation)
    return probe_paths.client_paths(plan, False, dilation), [server] if server else []


def certificate(
    plan: Plan,
    shape: Callable[[Node, Direction, Direction], None],
    ask: Ask,
    more: list[Check],
    dilation: float = 1.0,
) -> Certificate:
    """Probe every link of a run of several hosts and judge it, with ``more`` that was checked.

    ``shape`` has a node's link take other parameters; what is lifted is put back.

    Raises:
        LinkError: a prober gave no answer.
    """
    clients, servers = paths_of(plan, dilation)
    checks, not_probed = list(more), list[NotProbed]()
    rounds: list[tuple[bool, list[Path], Node | None]] = [
        (False, clients, plan.server if servers else None)
    ]
    if servers:
        rounds.append((True, servers, plan.clients[0]))
    for of_server, paths, lifted in rounds:
        if lifted is not None:
            shape(lifted, _UNLIMITED, _UNLIMITED)
        try:
            seen = best_of_tries(paths, functools.partial(_once, ask, of_server, paths))
        except NoAnswer as error:
            raise LinkError(f"probe links of several hosts: {error}") from error
        finally:
            if lifted is not None:
                assert lifted.profile is not None
                shape(lifted, lifted.profile.up, lifted.profile.down)
        found = judged(paths, seen)
        checks, not_probed = checks + found[0], not_probed + found[1]
    return fidelity.certify(checks, not_probed)


def _once(ask: Ask, of_server: bool, paths: list[Path], places: list[int]) -> list[Arrivals]:
    """One try of the paths at some places."""
    some = [paths[place] for place in places]
    limit_s = probe_s(some) + PATIENCE_S
    ask(Open(of_server, places), limit_s)
    ask(Ping(), limit_s)
    for group in probe_paths.groups(some):
        ask(Burst(group), limit_s)
    for place, path in enumerate(some):
        for way in path.fast_ways:
            ask(Fill(place, way), limit_s)
    told = [answer.arrivals for answer in ask(Finish(), limit_s) if isinstance(answer, Came)]
    return [merged(each) for each in zip(*told, strict=True)]


def merged(parts: tuple[Arrivals, ...]) -> Arrivals:
    """Arrivals at both ends of a path, each of which is on one host."""
    bursts: dict[str, list[int]] = {}
    fills: dict[str, list[Note]] = {}
    for part in parts:
        bursts |= {way: times for way, times in part.bursts_ns.items() if times}
        fills |= {way: notes for way, notes in (part.fills or {}).items() if notes}
    return Arrivals([trip for part in parts for trip in part.round_trips_ms], bursts, fills)
