"""The supervisor, from a run's plan to its summary: build, start, watch, stop."""

import contextlib
import functools
import selectors
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from testbed import clock, files
from testbed.fidelity.checks import Certificate
from testbed.links import dilation
from testbed.links.interface import Backend, LinkError, Network
from testbed.metering import meter
from testbed.network import underlay
from testbed.network.topology import Node, Plan
from testbed.processes import signals
from testbed.processes.channel import Channel, ChannelClosed, Garbled
from testbed.processes.worker import Refusal
from testbed.record import events, host_load, strangers
from testbed.record.events import Event
from testbed.record.host_clocks import HostClocks
from testbed.record.reading import SUPERVISOR
from testbed.record.recorder import Recorder
from testbed.record.run_summary import Status, Summary
from testbed.run.config import RunConfig, write
from testbed.run.dynamics import Dynamics, away_since
from testbed.run.feasible import Traffic, refusal
from testbed.run.hosts.driver import Hosts
from testbed.run.hosts.far_host import FarChannel
from testbed.run.hosts.probing import certificate
from testbed.run.hosts.timing import HostsDynamics
from testbed.run.hosts.whole import HostsZygote
from testbed.run.ledger import Ledger, Progress, RunFailed, hindrance
from testbed.run.meters import Meters
from testbed.run.standstill import Standstill
from testbed.run.stops import Stops
from testbed.run.zygote import Forked, NodeFailed, Program, Reaped, Told, Zygote

Zygotes = Zygote | HostsZygote
PREPARE_LIMIT_S = 300.0
"""Imports from a cold disk can take minutes; nothing else waits this long."""
LEAVE_LIMIT_S = 10.0
"""How long nodes get to leave once the server is done."""
_BY_LIBRARIES = ("killed by SIGABRT", "killed by SIGSEGV")
"""How a node ends in which one does not look what it was given."""


def run(
    config: RunConfig,
    plan: Plan,
    backend: Backend,
    program: Program,
    recorder: Recorder,
    facts: dict[str, Any],
    progress: Progress,
    past: Iterable[Event] | None = None,
    hosts: Hosts | None = None,
) -> Summary:
    """Carry out a run and return its summary, which is then also on disk.

    ``facts`` goes into the "run" event as it is. ``past``: the events that count of a killed run
    that goes on; then ``facts`` goes into the "resumed" event instead. ``hosts``: the others of a
    run on several, which ``plan`` places its nodes on. Whatever happens, no process, namespace or
    device of the run is left when this returns; after a SIGKILL the kernel sees to that.
    """
    return _Run(config, plan, backend, program, recorder, progress, hosts).execute(facts, past)


class _Run:
    def __init__(
        self,
        config: RunConfig,
        plan: Plan,
        backend: Backend,
        program: Program,
        recorder: Recorder,
        progress: Progress,
        hosts: Hosts | None = None,
    ) -> None:
        self._config = config
        self._plan = plan
        self._backend = backend
        self._program = program
        self._hosts = hosts
        self._host_clocks: HostClocks | None = None
        """Once there are links between several."""
        self._ledger = Ledger(recorder, progress)
        self._meters: Meters | None = None
        """Once there is a network."""
        self._dynamics = self._changes()
        self._channels: dict[int, Channel | FarChannel] = {}
        self._ended: dict[int, str] = {}
        self._server_done = False
        self._stops = Stops(self._ledger.record)
        self._failures: dict[int, str] = {}
        self._reasons: dict[int, str] = {}
        """A node's own words for its end."""
        self._limited: dict[int, str] = {}
        """Whose memory is held to how much."""
        self._rounds_began_s = self._rounds_ended_s = 0.0
        self._busy_s = 0.0
        """Of all cores, between the two."""

    def execute(self, facts: dict[str, Any], past: Iterable[Event] | None) -> Summary:
        status: Status = "failed"
        reason = "unknown"
        closing: dict[str, Any] = {}
        asked = signals.Interruption()
        time = clock.emulated(self._config.dilation, len(self._plan.nodes))
        with asked.heard(), time:
            try:
                # What was made is removed after ``raised``: no signal interrupts that.
                with contextlib.ExitStack() as owned, asked.raised():
                    if past is None:
                        origin = {"origin_ns": self._ledger.recorder.origin_ns}
                        begun = msgspec.convert({**origin, **facts}, events.Run)
                        self._ledger.record(SUPERVISOR, begun)
                        write(self._config, self._ledger.recorder.folder / files.CONFIG)
                    else:
                        self._go_on(past, facts)
                    self._ledger.write_summary()
                    self._carry_out(owned, closing)
                self._judge_host(closing)
                if nothing := self._ledger.tally.without_updates():
                    raise RunFailed(nothing)
                status, reason = "ok", ""
            except signals.Interrupted as signal_name:
                status, reason = "interrupted", f"stopped by {signal_name}"
            except (RunFailed, LinkError, NodeFailed, Garbled) as error:
                reason = str(error)
            except OSError as error:
                reason = hindrance(error)
            self._ledger.close(status, reason, closing)
        return self._ledger.tally.summary()

    def _go_on(self, past: Iterable[Event], facts: dict[str, Any]) -> None:
        for event in past:
            self._ledger.tally.take(event)
        self._dynamics = self._changes(self._ledger.tally.trained_s)
        self._ledger.record(SUPERVISOR, msgspec.convert(facts, events.Resumed))

    def _changes(self, trained_s: float = 0.0) -> Dynamics:
        if self._hosts is None:
            return Dynamics(self._plan, trained_s=trained_s)
        return HostsDynamics(self._hosts, self._plan, trained_s)

    def _judge_host(self, closing: dict[str, Any]) -> None:
        seconds = clock.host_s(self._rounds_ended_s - self._rounds_began_s) + clock.held_s()
        busy_cores = round(self._busy_s / seconds, 2) if seconds > 0 else None
        gone = {} if self._hosts is None else self._hosts.gone()
        found = host_load.judge(self._ledger.tally.summary(), closing, busy_cores, gone)
        self._ledger.record(SUPERVISOR, msgspec.convert(found, events.Host, from_attributes=True))
        called = strangers.judge(self._ledger.tally.summary().dropped_messages, closing)
        wrong = [part.reason for part in (found, called) if part.verdict == "fail"]
        if self._config.strict and wrong:
            raise RunFailed(f"--strict: {wrong[0]}")

    def _carry_out(self, owned: contextlib.ExitStack, closing: dict[str, Any]) -> None:
        deadline = clock.monotonic() + self._config.time_limit_s
        # 1. The zygote imports and loads while the network is built and probed.
        log = owned.enter_context(files.appended(self._ledger.recorder.folder / "nodes.log"))
        zygote = self._zygote(log.fileno())
        owned.callback(zygote.down)
        owned.callback(self._record_hosts)
        network = dilation.up(self._backend, self._plan, clock.dilation())
        owned.callback(lambda: closing.update(network.down()))
        self._meters = meters = Meters(self._plan, network, self._ledger, owned)
        owned.callback(self._record_last_wire)
        start_capture = meters.prepare_capture(self._config.pcap, of_hosts=self._hosts)
        probe = self._prober_of_hosts(network)
        finish_probing = meters.probe_links(self._config.calibrate, self._config.strict, probe)
        meters.record_links()
        self._refuse_what_hosts_cannot_carry()
        self._refuse_what_cannot_end(self._prepared(zygote, deadline))
        finish_probing()
        start_capture()
        if self._hosts is not None:
            self._hosts.refuse_gone()
        # 2. Every node is forked into its place, the server first.
        for node in self._plan.nodes:
            self._channels[node.index] = zygote.spawn(node, network.endpoint(node))
            owned.callback(self._channels[node.index].close)
            # It says who has started; unread, that would fill its channel and stop it.
            self._hear_zygote(zygote)
        for node in self._plan.nodes:
            # Before the first round chooses, which is what begins the clock of all changes.
            since_s = away_since(node, self._ledger.tally.trained_s)
            if since_s is not None:
                self._tell_server(events.Away(node=node.name, at_s=since_s, actual_s=since_s))
        # 3. The rounds run in the nodes; here they are watched and recorded, and links change.
        self._watch(zygote, network, deadline, lambda: False)
        # 4. The nodes leave.
        leave_by = clock.monotonic() + LEAVE_LIMIT_S
        self._watch(zygote, network, leave_by, lambda: len(self._ended) == len(self._plan.nodes))

    def _zygote(self, log: int) -> Zygotes:
        secure = self._config.secure is not False
        if self._hosts is None:
            return Zygote(self._plan, self._program, log, secure)
        self._hosts.log, self._hosts.among_clients = log, self._program.peer_to_peer
        seed = self._hosts.seed
        return HostsZygote(
            self._hosts, lambda into: Zygote(self._plan, self._program, into, secure, seed)
        )

    def _refuse_what_hosts_cannot_carry(self) -> None:
        if self._hosts is not None:
            self._ledger.record(SUPERVISOR, self._hosts.about(self._plan))
            places = {node.name: node.host for node in self._plan.nodes}
            self._host_clocks = self._ledger.recorder.clocks = HostClocks(places)
            slower = dilation.plan(self._plan, clock.dilation())
            among_clients = self._program.peer_to_peer
            if reason := underlay.refusal(slower, self._hosts.paths, among_clients):
                raise RunFailed(reason)

    def _prober_of_hosts(self, network: Network) -> Callable[[], Certificate] | None:
        """The prober of links of several hosts."""
        if self._hosts is None:
            return None
        asked = self._hosts, network, self._plan, clock.dilation()
        return functools.partial(certificate, *asked, among_clients=self._program.peer_to_peer)

    def _record_clocks(self) -> None:
        """Tell what is put right of other hosts' times."""
        clocks = self._host_clocks
        for name, known in () if clocks is None else clocks.clocks.items():
            event = events.HostClock(
                host=name, behind_s=round(known.behind_s, 9), error_s=round(known.error_s, 9)
            )
            self._ledger.record(SUPERVISOR, event)

    def _record_hosts(self) -> None:
        """Tell of hosts that are gone, and once all is down how the others' links ended."""
        if self._hosts is not None:
            if self._host_clocks is not None:
                self._host_clocks.clocks = self._hosts.clocks()
            for event in (*self._hosts.news(), *self._hosts.left()):
                self._ledger.record(SUPERVISOR, event)

    def _prepared(self, zygote: Zygotes, deadline: float) -> Traffic | None:
        remaining_s = max(0.0, clock.host_s(deadline - clock.monotonic()))
        try:
            return zygote.wait_ready(min(PREPARE_LIMIT_S, remaining_s))
        except NodeFailed:
            if clock.monotonic() < deadline:
                raise
            raise RunFailed(self._too_long()) from None

    def _too_long(self) -> str:
        return f"not finished within time_limit_s = {self._config.time_limit_s:g}"

    def _refuse_what_cannot_end(self, traffic: Traffic | None) -> None:
        run = self._config
        if traffic is not None:
            limits = (run.rounds, run.round_timeout_s, run.time_limit_s, run.deadline_s)
            reason = refusal(self._plan, traffic, *limits)
            if reason is not None:
                raise RunFailed(reason)

    def _watch(
        self,
        zygote: Zygotes,
        network: Network,
        deadline: float,
        finished: Callable[[], bool],
    ) -> None:
        leaving, standstill = self._server_done, Standstill()
        with selectors.DefaultSelector() as selector:
            selector.register(network, selectors.EVENT_READ, None)
            selector.register(zygote.channel, selectors.EVENT_READ, None)
            for index, channel in self._channels.items():
                if not channel.closed:
                    selector.register(channel, selectors.EVENT_READ, index)
            while self._server_done == leaving and not finished():
                remaining_s = deadline - clock.monotonic()
                if remaining_s <= 0 and not leaving:
                    raise RunFailed(self._too_long())
                standstill.check(network)
                if leaving and (remaining_s <= 0 or network.failure() or zygote.failure()):
                    return
                self._ledger.recorder.keep_summary()
                self._stops.look()
                due_s = min(
                    remaining_s, self._dynamics.wait_s, self._ledger.recorder.summary_wait_s
                )
                due_s = min(clock.host_s(due_s), standstill.wait_s, self._stops.wait_s)
                for key, _ in selector.select(due_s):
                    if isinstance(key.data, int):
                        self._hear_node(key.data)
                        if self._channels[key.data].closed:
                            selector.unregister(key.fileobj)
                self._hear_zygote(zygote)
                if not self._server_done:
                    self._check(zygote, network)
                    self._change_links(network)

    def _hear_node(self, index: int) -> None:
        node = self._plan.nodes[index]
        for event in self._channels[index].drain():
            self._ledger.record(node.name, event)
            if isinstance(event, events.Failed):
                if reason := events.known(event.reason):
                    self._reasons[index] = reason
                self._failures[index] = reason or event.traceback.strip().splitlines()[-1]
            elif isinstance(event, events.Limited):
                self._limited[index] = f"the {event.whose} {event.memory_mb:g} MB"
            elif isinstance(event, events.Joined):
                self._dynamics.begin()
                self._stops.begin()
                self._rounds_began_s, self._busy_s = clock.monotonic(), -meter.busy_cores_s()
            elif isinstance(event, events.Round):
                self._record_wire(event.round)
                self._record_clocks()
                self._ledger.recorder.keep_summary(self._ledger.tally.summary)
            elif isinstance(event, events.Done):
                self._server_done = True
                self._dynamics.end()
                self._stops.end()
                self._rounds_ended_s = clock.monotonic()
                self._busy_s += meter.busy_cores_s()

    def _change_links(self, network: Network) -> None:
        # A link process that has gone is for _check to name.
        with contextlib.suppress(ChannelClosed):
            for name, event in self._dynamics.apply(network):
                self._ledger.record(name, event)
                if isinstance(event, events.Away | events.Back):
                    self._tell_server(event)

    def _tell_server(self, event: Told) -> None:
        with contextlib.suppress(ChannelClosed):
            self._channels[self._plan.server.index].send(event)

    def _hear_zygote(self, zygote: Zygotes) -> None:
        lines = zygote.channel.drain()
        for line in lines:
            if isinstance(line, Refusal):
                raise RunFailed(line.reason)
            if isinstance(line, Reaped):
                # A node's own last words, and the server's "done", came before its end.
                self._hear_node(line.node)
                self._hear_node(self._plan.server.index)
        for line in lines:
            if isinstance(line, Forked):
                node = self._plan.nodes[line.node]
                self._ledger.record(node.name, events.Started(pid=line.pid))
                if self._hosts is None or self._hosts.of(node) is None:
                    self._stops.watch(node.name, line.pid)
            elif isinstance(line, Reaped):
                self._on_end(self._plan.nodes[line.node], line.pid, line.how)

    def _on_end(self, node: Node, pid: int, how: str) -> None:
        self._ended[node.index] = how
        self._stops.forget(node.name)
        self._ledger.record(node.name, events.Ended(pid=pid, how=how))
        if self._server_done or node is self._plan.server:
            return
        failure = self._failures.get(node.index)
        reason = self._reasons.get(node.index) or (f"{how}: {failure}" if failure else how)
        if how in _BY_LIBRARIES and node.index in self._limited:
            reason += f", as by a library that gets no more memory than {self._limited[node.index]}"
        lost = events.Lost(peer=node.name, reason=reason)
        self._ledger.record(SUPERVISOR, lost)
        self._tell_server(lost)

    def _check(self, zygote: Zygotes, network: Network) -> None:
        """Raise where the run cannot go on."""
        self._record_hosts()
        reason = network.failure() or zygote.failure()
        server = self._ended.get(self._plan.server.index)
        if server is not None:
            reason = reason or f"the server {server} before the last round"
        if self._hosts is not None:
            reason = reason or self._hosts.missing(self._config)
        if reason is None and self._ended.keys() >= {node.index for node in self._plan.clients}:
            reason = "no client is left"
        if reason is not None:
            for index in self._channels:
                self._hear_node(index)
            if self._server_done:
                return
            failures = [f"{self._plan.nodes[i].name}: {why}" for i, why in self._failures.items()]
            raise RunFailed("; ".join([reason, *failures[:3]]))

    def _record_wire(self, number: int | None) -> None:
        if self._meters is not None:
            self._meters.record_wire(number)

    def _record_last_wire(self) -> None:
        """Bytes since the last whole round, however the run ends; before rounds, only probes'."""
        with contextlib.suppress(OSError, LinkError):  # What has gone has been named already.
            if self._rounds_began_s:
                self._record_wire(None)
