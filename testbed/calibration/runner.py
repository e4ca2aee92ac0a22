"""The runner of schedules of probes over a network: starts processes, collects observations."""

import contextlib
import selectors
import time
from typing import Any, NamedTuple

from testbed.calibration import datagrams, transfers
from testbed.calibration.datagrams import Body
from testbed.calibration.observations import Arrived, Moved, Pinged, Seen
from testbed.calibration.probes import STAGES, Pings, Probe, Schedule, Stream, Transfer, Trips
from testbed.links.interface import Counters, LinkCounters, LinkError, Network
from testbed.network.topology import Node, Plan
from testbed.processes.worker import Go, Kind, NoAnswer, Ready, Result, Stop, Worker

READY_LIMIT_S = 20.0
PATIENCE_S = 10.0
"""How long a process may take beyond what its probe should."""
FIRST_PORT = 7000
_LISTENER = 0


class Job(NamedTuple):
    """One profile's schedule and the two clients whose links it measures."""

    schedule: Schedule
    clients: tuple[Node, ...]


class _Part(NamedTuple):
    """A probe on its way: which process begins it, and the tag of the one that takes it."""

    seen: Seen
    probe: Probe
    tag: int
    begins: Worker

    @property
    def taker(self) -> int:
        return _taker(self.probe, self.tag)


def conduct(layout: Plan, network: Network, jobs: list[Job]) -> list[Seen]:
    """Carry out all schedules, stage by stage; one Seen a job.

    A link that lets nothing through takes the time of its probes and no more.

    Raises:
        LinkError: the network itself has failed, or a process that measures it.
    """
    found = [Seen() for _ in jobs]
    for stage in STAGES:
        probes = [
            (job, seen, probe)
            for job, seen in zip(jobs, found, strict=True)
            for step in job.schedule.steps
            if step.stage == stage
            for probe in step.probes
        ]
        if probes:
            before = network.counters()
            try:
                _carry_out(layout, network, probes)
            except LinkError as error:
                raise LinkError(_why_it_carries_nothing(network) or str(error)) from None
            reason = _why_it_carries_nothing(network)
            if reason is not None:
                raise LinkError(reason)
            after = network.counters()
            for job, seen in zip(jobs, found, strict=True):
                index = job.clients[0].index
                seen.counted[stage] = _less(after[index], before[index])
    return found


def _why_it_carries_nothing(network: Network) -> str | None:
    return network.failure() or network.halted()


def _carry_out(layout: Plan, network: Network, probes: list[tuple[Job, Seen, Probe]]) -> None:
    """Run all the probes at once, and note in each one's Seen what came of it."""
    with contextlib.ExitStack() as owned:

        def start(name: str, body: Body) -> Worker:
            worker = Worker(name, body)
            owned.callback(worker.close)
            return worker

        # 1. Those that take must be there first.
        bodies = [
            _bodies(layout, network, job, probe, tag)
            for tag, (job, _, probe) in enumerate(probes, start=1)
        ]
        takers: dict[int, Worker] = {}
        for tag, ((_, _, probe), (_, takes)) in enumerate(zip(probes, bodies, strict=True), 1):
            if _taker(probe, tag) not in takers:
                takers[_taker(probe, tag)] = start("taker", takes)
        for worker in takers.values():
            _receive(worker, Ready, READY_LIMIT_S)
        parts = [
            _Part(seen, probe, tag, start("beginner", begins))
            for tag, ((_, seen, probe), (begins, _)) in enumerate(
                zip(probes, bodies, strict=True), start=1
            )
        ]
        for part in parts:
            _receive(part.begins, Ready, READY_LIMIT_S)
        # 2. All at once, until each has ended and its line is empty again.
        for part in parts:
            part.begins.tell(Go())
        gave = _until_ended(parts)
        # 3. What came.
        for worker in takers.values():
            worker.tell(Stop())
        took = {taker: _result(worker) for taker, worker in takers.items()}
        for part, found in zip(parts, gave, strict=True):
            _note(part, found, took[part.taker])


def _receive(worker: Worker, kind: type[Kind], limit_s: float) -> Kind:
    """The next line of a process; raises LinkError where it has ended, or takes too long.

    Nothing can be said of links that nobody measures.
    """
    try:
        return worker.receive(kind, limit_s)
    except NoAnswer:
        child = worker.child
        reason = f"a process that measures (the {child.name}) {child.condition()}"
        raise LinkError(reason) from None


def _result(worker: Worker) -> Any:
    return _receive(worker, Result, PATIENCE_S).value


def _taker(probe: Probe, tag: int) -> int:
    """One process takes all transfers of a stage, since they come to one port; other probes have
    one each."""
    return _LISTENER if isinstance(probe, Transfer | Trips) else tag


def _bodies(layout: Plan, network: Network, job: Job, probe: Probe, tag: int) -> tuple[Body, Body]:
    """The bodies that begin a probe, and that take or answer it."""
    server, client = layout.server, job.clients[probe.client]
    port = FIRST_PORT + client.index
    if isinstance(probe, Pings):
        return (
            datagrams.pinger(network, client, (server.address, port), tag, probe),
            datagrams.echo(network, server, port, tag),
        )
    if isinstance(probe, Stream):
        near, far = (client, server) if probe.way == "up" else (server, client)
        return (
            datagrams.sender(network, near, (far.address, port), tag, probe),
            datagrams.receiver(network, far, port, tag),
        )
    endpoint, listener = network.endpoint(client), transfers.listener(network.endpoint(server))
    if isinstance(probe, Transfer):
        return transfers.caller(endpoint, tag, probe), listener
    return transfers.tripper(endpoint, tag, probe), listener


def _until_ended(parts: list[_Part]) -> list[dict[str, Any]]:
    """Wait until every probe has ended and what it left in its line is gone; bounded."""
    found: list[dict[str, Any]] = [{} for _ in parts]
    began_s = empty_s = time.monotonic()
    with selectors.DefaultSelector() as selector:
        for index, part in enumerate(parts):
            selector.register(part.begins.channel, selectors.EVENT_READ, index)
        limit_s = began_s + max(part.probe.seconds for part in parts) + 2 * PATIENCE_S
        while selector.get_map() and (left_s := limit_s - time.monotonic()) > 0:
            for key, _ in selector.select(left_s):
                selector.unregister(key.fileobj)
                part = parts[key.data]
                found[key.data] = _result(part.begins)
                if isinstance(part.probe, Stream | Transfer):
                    empty_s = max(empty_s, time.monotonic() + part.probe.settle_s)
        for key in selector.get_map().values():
            found[key.data] = _result(parts[key.data].begins)
    time.sleep(max(0.0, empty_s - time.monotonic()))
    return found


def _note(part: _Part, gave: dict[str, Any], took: dict[str, Any]) -> None:
    """Put what a probe's two processes found into its Seen; nothing where they ended badly."""
    probe, seen = part.probe, part.seen
    if isinstance(probe, Pings):
        trips = [(up, down) for up, down in gave.get("trips_ns", ())]
        seen.pinged = Pinged(gave.get("sent", 0), gave.get("came", 0), trips)
    elif isinstance(probe, Trips):
        seen.trips_ns = gave.get("trips_ns", [])
    elif isinstance(probe, Stream):
        lists = [took.get(name, []) for name in ("numbers", "delays_ns", "arrived_ns")]
        counts = [took.get(name, 0) for name in ("corrupt", "overflowed")]
        seen.streams[probe.purpose, probe.client, probe.way] = Arrived(
            gave.get("sent", 0), *lists, *counts
        )
    else:
        uploads = took.get("uploads", {})
        notes = uploads.get(str(part.tag), []) if probe.way == "up" else gave.get("notes", [])
        seen.moved[probe.purpose, probe.client, probe.way] = Moved(
            gave.get("ended_ns", 0),
            [(time_ns, size) for time_ns, size in notes],
            gave.get("congestion"),
        )


def _less(after: LinkCounters, before: LinkCounters) -> LinkCounters:
    ways = zip(after, before, strict=True)
    return LinkCounters(
        *(Counters(*(b - a for b, a in zip(late, early, strict=True))) for late, early in ways)
    )
