"""The summary of a run, built from its events: totals a round, a client and a message kind.

Bytes stand at three levels that are never mixed: payload (tensor bytes), message (ZeroMQ frames)
and wire (interface counters: headers, acknowledgements and retransmissions included). Up is
client to server, down is to a client; a message counts where it arrives. Payload and message
bytes belong to the round in their header. Wire bytes belong to the round that was running.
"""

import operator
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from msgspec import UNSET

from testbed.network.capacity import Access
from testbed.network.direction import WAYS
from testbed.network.topology import SERVER, client_address
from testbed.processes.confinement import Confined
from testbed.record import events, host_load, round_times, strangers
from testbed.record.events import Event, Facts, UpDown, known
from testbed.record.host_summary import HostRows
from testbed.record.program_summary import BroughtFiles, Program
from testbed.record.run_summary import (
    Busiest,
    Bytes,
    Captures,
    Changes,
    Checkpoints,
    ClientSummary,
    Compute,
    Computed,
    Dropped,
    Evaluated,
    Host,
    InitialFinal,
    Miss,
    Process,
    Resent,
    ResentUpDown,
    Resumed,
    RoundSummary,
    StagedBytes,
    Summary,
    Times,
)
from testbed.record.spans import Timeline

_COMPUTED = ("flops", "modelled_s", "cpu_s", "device_s")
"""What adds up of "computed" events."""

MOST_DROPS = 1000
"""Rows of dropped messages, each of one receiver, sender and reason; the rest is summed up."""

# Where one direction's counters stand in a "wire" event.
_FRAMES, _BYTES, _QUEUE_DROPS, _LOSSES = range(4)


def _resent(figures: Iterable[list[int]]) -> Resent:
    """The sum of [segments, bytes]."""
    found = list(figures)
    return Resent(sum(f[0] for f in found), sum(f[1] for f in found))


def _most(*figures: float | None) -> float | None:
    """The largest of those that are known."""
    return max((figure for figure in figures if figure is not None), default=None)


def _each(number: Callable[[int, int], int], counters: list[Any], others: list[Any]) -> list[Any]:
    """``number`` of both lists' counters, one by one."""
    return [
        [[number(*pair) for pair in zip(*ways, strict=True)] for ways in zip(*links, strict=True)]
        for links in zip(counters, others, strict=True)
    ]


class _Round:
    """A round, and what else its times are worked out from."""

    def __init__(self, number: int) -> None:
        self.row = RoundSummary(
            round=number, finished=False, seconds=None, bytes=Bytes.none(), metrics={}, missed=[]
        )
        self.links: list[Access] = []
        """Of every node, the server first, as the round began."""
        self.taken = -1
        """How many messages it had when its times were worked out."""


class _Rounds(dict[int, _Round]):
    """Rounds by their number, each made when it is first asked for."""

    def __missing__(self, number: int) -> _Round:
        self[number] = _Round(number)
        return self[number]


class SummaryBuilder:
    """Takes every event of a run as it happens; ``summary`` is whole at any moment."""

    def __init__(self) -> None:
        self._run = events.Run(client_names=[], client_profiles=[], config={})
        self._backend: str | None = None
        self._link_facts: Facts = {}
        self._ready = events.Ready()
        """The server's."""
        self._host_gflops: float | None = None
        self._bytes = Bytes.none()
        self._carried: dict[str, UpDown] = defaultdict(lambda: UpDown(0, 0))
        """Payload bytes that each node sent (up) and received (down)."""
        self._rounds = _Rounds()
        self._timeline = Timeline()
        self._hosts = HostRows()
        self._links: list[Access] = []
        """Of every node, the server first, as it is now."""
        self._clients: dict[str, ClientSummary] = {}
        self._processes: dict[str, Process] = {}
        self._programs: dict[str, Program] = {}
        self._computed: dict[str, Computed] = {}
        self._flops_of: dict[str, list[float]] = {}
        """Of each client, those of the rounds that it has told of."""
        self._connections: dict[str, int] = defaultdict(int)
        self._confined: dict[str, int] = defaultdict(int)
        self._dropped: dict[tuple[str, str, str], Dropped] = {}
        """By receiver, sender and reason."""
        self._stopped: dict[str, float] = defaultdict(float)
        self._resent: dict[str, dict[str, list[int]]] = {}
        """By node and the peer's address: [segments, bytes], of its present process."""
        self._resent_earlier: dict[str, dict[str, list[int]]] = {}
        """The same of the processes that a resumed run had before."""
        self._captures: Captures | None = None
        self._staged = StagedBytes()
        self._counters: list[Any] = []
        self._earlier: list[Any] | None = None
        """Counters of the links that a resumed run had before."""
        self._before: list[Any] | None = None
        self._fidelity = events.Fidelity(
            verdict="skipped", reason="the run ended before its links were probed", checks=[]
        )
        self._host = Host("skipped", "the run did not end as it should")
        self._calibration_s = 0.0
        self._held_s = self._held_earlier_s = self._held_at_start_s = 0.0
        """Seconds of this machine that the clock stood still: by now in the run's present process,
        in those before, and until the first round began."""
        self._changes = 0
        self._late_s = self._latest_s = 0.0
        """Of all changes of links together, and of one at most."""
        self._metrics = InitialFinal(initial={}, final={})
        self._evaluated = Evaluated()
        self._last_begun = 0
        self._training_began_s: float | None = None
        self._trained_s: float | None = None
        """Up to the end of the last round that is over; None: none is."""
        self._untold_since_s: float | None = None
        """From when on training is not in that; None: it has yet to begin, or to go on."""
        self._resumed: list[Resumed] = []
        self._kept = Checkpoints()
        self._startup_s = 0.0
        self._ended: events.Because | None = None
        self._closed = events.Closed(
            status="interrupted",
            reason="the run was not closed: its supervisor ended before it could",
        )
        self._last_t = 0.0
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            events.Run: self._on_run,
            events.Links: self._on_links,
            events.Certified: self._on_certified,
            events.Host: self._on_host,
            events.Ready: self._on_ready,
            events.Connection: self._on_connection,
            events.Confined: self._on_confined,
            events.Message: self._on_message,
            events.Staged: self._on_staged,
            events.Reduced: self._on_reduced,
            events.Dropped: self._on_dropped,
            events.Lost: self._on_lost,
            events.Stopped: self._on_stopped,
            events.Missed: self._on_missed,
            events.Evaluated: self._on_evaluated,
            events.Joined: self._on_joined,
            events.RoundStarted: self._on_round_started,
            events.Resumed: self._on_resumed,
            events.Saved: self._on_saved,
            events.Unsaved: self._on_unsaved,
            events.Round: self._on_round,
            events.Wire: self._on_wire,
            events.Shaped: self._on_shaped,
            events.Usage: self._on_usage,
            events.Computed: self._on_computed,
            events.HostRate: self._on_host_rate,
            events.Captured: self._on_captured,
            events.Done: self._on_done,
            events.Isolated: self._on_isolated,
            events.Exited: self._on_exited,
            events.Brought: self._on_brought,
            events.Carried: self._on_carried,
            events.Closed: self._on_closed,
        }

    def take(self, event: Event) -> None:
        """Account for one event as the recorder wrote it; unknown kinds change nothing."""
        self._last_t = event.t
        self._timeline.take(event)
        self._hosts.take(event)
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)

    def _on_run(self, event: events.Run) -> None:
        self._run = event
        for name, profile in zip(event.client_names, event.client_profiles, strict=True):
            self._clients[name] = ClientSummary(name=name, profile=profile, bytes=Bytes.none())
        for node, command in (known(event.programs) or {}).items():
            self._programs[node] = Program(node=node, command=command)

    def _on_links(self, event: events.Links) -> None:
        self._backend, self._link_facts = str(event.facts["backend"]), event.facts
        self._links = event.lines

    def _on_certified(self, event: events.Certified) -> None:
        self._fidelity = event.fidelity
        self._calibration_s = event.seconds
        self._held_s = event.held_s
        if not self._resumed:
            self._held_at_start_s = event.held_s
        self._before = event.counters

    def _on_host(self, event: events.Host) -> None:
        self._host = Host(*(getattr(event, field) for field in Host.__struct_fields__))

    def _on_ready(self, event: events.Ready) -> None:
        if event.trainable_parameters is not UNSET:
            self._ready = event
        if event.samples is not UNSET:
            self._clients[event.node].samples = event.samples
            self._clients[event.node].round_flops = known(event.round_flops)

    def _on_connection(self, event: events.Connection) -> None:
        self._connections[str(event.congestion)] += 1

    def _on_confined(self, event: events.Confined) -> None:
        held = msgspec.convert(event, Confined, from_attributes=True)
        self._confined[held.words()] += 1

    def _on_message(self, event: events.Message) -> None:
        amounts = event.kind, event.payload_bytes, event.message_bytes
        self._add(event.round, event.peer, event.node, *amounts)

    def _add(
        self, number: int, sender: str, receiver: str, kind: str, payload: int, message: int
    ) -> None:
        """Bytes that went from one node to another."""
        self._carried[sender].up += payload
        self._carried[receiver].down += payload
        for direction, client in (("up", sender), ("down", receiver)):
            if client in self._clients:
                round_, own = self._rounds[number].row, self._clients[client]
                for sums in (self._bytes, round_.bytes, own.bytes):
                    sums.add(direction, kind, payload, message)

    def _on_staged(self, event: events.Staged) -> None:
        self._staged.add("up" if event.node == SERVER else "down", event.sizes)

    def _on_reduced(self, event: events.Reduced) -> None:
        # TCP's stream is all that is known of what gloo carries: it counts at both levels.
        for peer, size in event.received.items():
            self._add(event.round, peer, event.node, "allreduce", size, size)

    def _on_dropped(self, event: events.Dropped) -> None:
        key = (event.node, event.peer, event.reason)
        if key not in self._dropped and len(self._dropped) >= MOST_DROPS:
            key = (event.node, "others", "various")
        node, peer, reason = key
        row = self._dropped.setdefault(
            key, Dropped(node=node, peer=peer, reason=reason, count=0, bytes=0)
        )
        row.count += known(event.count) or 1
        row.bytes += event.bytes

    def _on_lost(self, event: events.Lost) -> None:
        self._clients[event.peer].lost = event.reason

    def _on_stopped(self, event: events.Stopped) -> None:
        self._stopped[event.peer] = round(self._stopped[event.peer] + event.seconds, 3)

    def _on_missed(self, event: events.Missed) -> None:
        self._rounds[event.round].row.missed.append(Miss(event.peer, event.reason))

    def _on_evaluated(self, event: events.Evaluated) -> None:
        self._metrics.initial = event.metrics
        self._evaluated = Evaluated(known(event.images), known(event.of), event.split)

    def _on_joined(self, event: events.Joined) -> None:
        self._begin_training(event.t)

    def _on_round_started(self, event: events.RoundStarted) -> None:
        self._last_begun = event.round
        self._rounds[event.round].links = self._links
        self._begin_training(event.t)

    def _begin_training(self, t: float) -> None:
        """Training begins or goes on; of each start only the first call counts."""
        again = self._resumed[-1] if self._resumed else None
        if again is not None and again.startup_s is None:
            again.startup_s = round(t - again.at_s, 6)
        if self._untold_since_s is None:
            self._untold_since_s = t
        if self._training_began_s is None:
            self._training_began_s = t
            self._startup_s = t - (again.at_s if again else 0.0)

    def _on_resumed(self, event: events.Resumed) -> None:
        verdict = self._fidelity.verdict
        self._resumed.append(Resumed(event.round, event.at_s, None, event.lost, verdict))
        self._held_earlier_s, self._held_s = self._held_earlier_s + self._held_s, 0.0
        self._untold_since_s = None
        if self._trained_s is None:
            # It begins with the first round that counts.
            self._training_began_s = None
        self._earlier, self._before = self._counters or None, None
        self._resent_earlier = {node: self._resent_by(node) or {} for node in self._resent}
        self._resent = {node: {} for node in self._resent}
        for client in self._clients.values():
            # All are started again.
            client.lost = None

    def _on_saved(self, event: events.Saved) -> None:
        self._kept.bytes += event.bytes

    def _on_unsaved(self, event: events.Unsaved) -> None:
        self._kept.failure = self._kept.failure or event.reason

    def _on_round(self, event: events.Round) -> None:
        self._last_begun = max(self._last_begun, event.round)
        row = self._rounds[event.round].row
        row.finished, row.seconds, row.metrics = True, event.seconds, event.metrics
        row.evaluation_s = known(event.evaluation_s)
        row.clients_ok, row.clients_failed = event.clients_ok, event.clients_failed
        self._metrics.final = event.metrics
        if self._untold_since_s is not None:
            self._trained_s = self.trained_s + event.t - self._untold_since_s
            self._untold_since_s = event.t

    def _on_wire(self, event: events.Wire) -> None:
        self._held_s = event.held_s
        counters: list[Any] = event.counters
        if self._before is not None:
            # What probing sent is not the run's.
            counters = _each(operator.sub, counters, self._before)
        if self._earlier is not None:
            counters = _each(operator.add, counters, self._earlier)
        before, now = self._wire(), self._wire(counters)
        self._counters = counters
        if event.round is not None:
            wire = self._rounds[event.round].row.bytes.wire
            wire.up += now.up - before.up
            wire.down += now.down - before.down

    def _on_shaped(self, event: events.Shaped) -> None:
        late_s = event.actual_s - event.at_s
        self._latest_s = max(late_s, self._latest_s) if self._changes else late_s
        self._late_s += late_s
        self._changes += 1
        if self._links and event.line is not UNSET:
            place = [SERVER, *self._clients].index(event.node)
            # A new list: rounds hold the one before.
            self._links = [*self._links]
            self._links[place] = event.line

    def _on_usage(self, event: events.Usage) -> None:
        node = event.node
        row = Process(
            node=node,
            pid=event.pid,
            private_mb=event.private_mb,
            cpu_s=event.cpu_s,
            run_delay_s=event.run_delay_s,
            peak_private_mb=event.peak_private_mb,
            peak_accelerator_mb=event.peak_accelerator_mb,
        )
        before = self._processes.get(node)
        if before is not None:
            row.peak_private_mb = _most(row.peak_private_mb, before.peak_private_mb)
            row.peak_accelerator_mb = _most(row.peak_accelerator_mb, before.peak_accelerator_mb)
            if row.pid == before.pid:
                # What only grows: a thread that has ended is not in a later reading.
                row.cpu_s = max(row.cpu_s, before.cpu_s)
                row.run_delay_s = _most(row.run_delay_s, before.run_delay_s)
        self._processes[node] = row
        if event.retransmitted is not None:
            resent = self._resent.setdefault(node, {})
            for address, figures in event.retransmitted.items():
                told = resent.get(address, [0, 0])
                resent[address] = [max(pair) for pair in zip(told, figures, strict=True)]

    def _resent_by(self, node: str) -> dict[str, list[int]] | None:
        """[segments, bytes] by the peer's address, of all processes of a node that has told."""
        if node not in self._resent:
            return None
        found = dict(self._resent_earlier.get(node, {}))
        for address, figures in self._resent[node].items():
            before = found.get(address, [0, 0])
            found[address] = [one + more for one, more in zip(before, figures, strict=True)]
        return found

    def _on_computed(self, event: events.Computed) -> None:
        node = event.node
        row = self._computed.setdefault(node, Computed(node=node, late_s=0))
        for field in _COMPUTED:
            if (more := getattr(event, field)) is not UNSET:
                before = known(getattr(row, field)) or 0
                setattr(row, field, round(before + more, 6))
        before, more = row.late_s, event.late_s
        row.late_s = None if before is None or more is None else round(before + more, 6)
        if node in self._clients and event.flops is not UNSET:
            told = self._flops_of.setdefault(node, [])
            told.append(event.flops)
            self._clients[node].round_flops = sum(told) / len(told)

    def _on_host_rate(self, event: events.HostRate) -> None:
        self._host_gflops = event.gflops

    def _on_captured(self, event: events.Captured) -> None:
        nodes = known(event.nodes) or list(self._clients)
        names = zip(nodes, event.dropped, strict=False)
        self._captures = Captures(
            packets=sum(event.packets),
            dropped_packets=sum(event.dropped),
            incomplete=[name for name, dropped in names if dropped],
            failure=event.failure,
        )

    def _on_done(self, event: events.Done) -> None:
        self._ended = known(event.because)

    def _on_isolated(self, event: events.Isolated) -> None:
        self._programs[event.node].missing = event.missing

    def _on_exited(self, event: events.Exited) -> None:
        row = self._programs[event.node]
        row.code, row.how = event.code, event.how
        row.seconds, row.stopped = event.seconds, event.stopped

    def _on_brought(self, event: events.Brought) -> None:
        self._programs[event.node].brought = msgspec.convert(
            event, BroughtFiles, from_attributes=True
        )

    def _on_carried(self, event: events.Carried) -> None:
        row = self._programs[event.node]
        row.flows, row.lookups, row.sockets = event.flows, event.lookups, event.sockets
        resent = self._resent.setdefault(event.node, {})
        for flow in event.flows:
            before = resent.get(flow.peer, [0, 0])
            resent[flow.peer] = [before[0] + flow.resent_segments, before[1] + flow.resent_bytes]

    def _on_closed(self, event: events.Closed) -> None:
        self._closed = event

    def _wire(self, counters: list[Any] | None = None) -> UpDown:
        """Bytes at the clients' interfaces, since the start."""
        clients = (self._counters if counters is None else counters)[1:]
        return UpDown(*(sum(link[way][_BYTES] for link in clients) for way in range(len(WAYS))))

    def _finished(self) -> list[RoundSummary]:
        return [entry.row for entry in self._rounds.values() if entry.row.finished]

    def rounds_done(self) -> int:
        return len(self._finished())

    def without_updates(self) -> str | None:
        """Why the rounds that are over came to nothing: no client did its part in any of them."""
        done = self._finished()
        if not done or any(row.clients_ok for row in done):
            return None
        misses = [miss for row in done for miss in row.missed]
        first = f"; the first: {misses[0].client}: {misses[0].reason}" if misses else ""
        rounds = "the round" if len(done) == 1 else f"any of {len(done)} rounds"
        return f"no update was taken in {rounds}{first}"

    def bytes(self) -> Bytes:
        """Totals so far."""
        self._bytes.wire = self._wire()
        return self._bytes

    def summary(self) -> Summary:
        """summary.json as it stands; parts of it go on growing with the run."""
        run = self._run
        startup_s = self._last_t if self._training_began_s is None else self._startup_s
        since_s = self._untold_since_s
        first_s = 0.0 if since_s is None else self._last_t - since_s
        held_s = self._held_earlier_s + self._held_s
        return Summary(
            run_id=run.run_id,
            command=run.command,
            method=run.method,
            asynchronous=run.asynchronous,
            transport=run.transport,
            model=run.model,
            dataset=run.dataset,
            profile=run.profile,
            server_profile=run.server_profile,
            profile_versions=run.profile_versions,
            links=self._backend,
            congestion=self._congestion(),
            congestion_asked=run.congestion,
            staged=self._staged,
            secure=run.secure,
            target=self._target(),
            budget_mb=self._budget_mb(),
            ended=self._ended,
            clients=len(self._clients),
            rounds_done=self.rounds_done(),
            seed=run.seed,
            status=self._closed.status,
            reason=self._closed.reason,
            seconds=Times(
                startup=startup_s,
                calibration=self._calibration_s,
                training=first_s if self._trained_s is None else self._trained_s,
                total=self._last_t,
                host_startup=run.dilation * startup_s + self._held_at_start_s,
                host_total=run.dilation * self._last_t + held_s,
                held=round(held_s, 6),
            ),
            dilation=run.dilation,
            elastic=run.elastic,
            dilation_found=known(run.dilation_found),
            bytes=self.bytes(),
            busiest=self._busiest(),
            rounds=[self.round_summary(number) for number in range(1, self._last_begun + 1)],
            metrics=self._metrics,
            evaluated=self._evaluated,
            trainable_parameters=known(self._ready.trainable_parameters),
            total_parameters=known(self._ready.total_parameters),
            per_client=self._per_client(),
            hosts=self._hosts.rows(),
            processes=list(self._processes.values()),
            programs=list(self._programs.values()),
            compute=Compute(
                mode=run.compute,
                device_class=run.device_class,
                server_device_class=run.server_device_class,
                accelerator=run.accelerator,
                server_accelerator=run.server_accelerator,
                accelerators=run.accelerators,
                host_gflops=self._host_gflops,
                nodes=list(self._computed.values()),
            ),
            connections=self._connections,
            confined=self._confined,
            captures=self._captures,
            resumed=self._resumed,
            checkpoints=self._kept,
            dropped_messages=list(self._dropped.values()),
            stopped=dict(self._stopped),
            link_facts={**self._link_facts, **self._closed.links},
            dynamics=self._dynamics(),
            fidelity=host_load.combined(
                self._fidelity,
                self._host,
                strangers.judge(self._dropped.values(), self._closed.links),
            ),
            environment=run.environment,
        )

    def _target(self) -> str | None:
        told, share = (self._run.config.get(name) for name in ("target", "target_accuracy"))
        # A share is what older versions had.
        return str(told) if told else None if share is None else f"accuracy={share}"

    def _budget_mb(self) -> float | None:
        told = self._run.config.get("budget_mb")
        return float(told) if isinstance(told, int | float) else None

    def _busiest(self) -> Busiest | None:
        node, own = max(self._carried.items(), key=lambda each: each[1].both, default=(None, None))
        return Busiest(node, own.up, own.down) if node and own and own.both else None

    def _congestion(self) -> str | None:
        """Congestion control really used; None over loopback links, and where nobody tells."""
        if self._backend == "loopback":
            return None
        return ", ".join(sorted(self._connections.keys() - {"None"})) or None

    @property
    def trained_s(self) -> float:
        """Seconds of training up to the end of the last round that is over."""
        return self._trained_s or 0.0

    def _dynamics(self) -> Changes:
        """How many changes links have taken, and how long after their times."""
        return Changes(
            changes=self._changes,
            lateness_mean_ms=round(1000 * self._late_s / max(1, self._changes), 3),
            lateness_max_ms=round(1000 * self._latest_s, 3),
        )

    def round_summary(self, number: int) -> RoundSummary:
        """One entry of the summary's "rounds"."""
        entry = self._rounds[number]
        timeline = self._timeline.rounds[number]
        if entry.taken != timeline.taken:
            entry.taken = timeline.taken
            round_times.fill(
                entry.row,
                timeline,
                list(self._clients),
                entry.links,
                asynchronous=self._timeline.asynchronous,
            )
        return entry.row

    def _per_client(self) -> list[ClientSummary]:
        by = {node: self._resent_by(node) or {} for node in self._resent}
        to: dict[str, list[list[int]]] = defaultdict(list)
        for resent in by.values():
            for address, figures in resent.items():
                to[address].append(figures)
        for number, client in enumerate(self._clients.values(), start=1):
            if self._counters:
                ways = self._counters[number]
                client.bytes.wire = UpDown(*(way[_BYTES] for way in ways))
                client.queue_drops = UpDown(*(way[_QUEUE_DROPS] for way in ways))
                client.losses = UpDown(*(way[_LOSSES] for way in ways))
            own = by.get(client.name)
            client.retransmitted = ResentUpDown(
                up=None if own is None else _resent(own.values()),
                down=_resent(to[client_address(number)]) if SERVER in by else None,
            )
        return list(self._clients.values())
