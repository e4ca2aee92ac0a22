"""The supervisor of programs, from a plan to a summary: isolate, start, watch, stop."""

import contextlib
import functools
import math
import selectors
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from testbed import files
from testbed.exec import config as configuration
from testbed.exec import lines
from testbed.exec.config import Request
from testbed.exec.endings import INTERRUPTED, TIMED_OUT, Ending, code_of, how_of
from testbed.exec.hosts import links as hosts_links
from testbed.exec.hosts.spawner import HostsSpawner
from testbed.exec.jobs import Job
from testbed.exec.nodes import Node, views
from testbed.exec.output import Line, Output
from testbed.exec.readings import TICK_S, Readings
from testbed.exec.rounds import Rounds
from testbed.exec.spawner import Reaped, Spawner
from testbed.links.interface import Backend, LinkError, Network
from testbed.network.topology import SERVER, Plan
from testbed.processes import signals
from testbed.processes.channel import ChannelClosed, Garbled
from testbed.record import events, host_load
from testbed.record.reading import SUPERVISOR
from testbed.record.recorder import Recorder
from testbed.record.run_summary import Status, Summary
from testbed.report.page import doubts
from testbed.run import zygote
from testbed.run.dynamics import Dynamics
from testbed.run.hosts.driver import Hosts
from testbed.run.hosts.timing import HostsDynamics
from testbed.run.ledger import Ledger, Progress, RunFailed, hindrance
from testbed.run.meters import Meters

UP_LIMIT_S, UP_LIMIT_A_NODE_S = 30.0, 0.1
END_LIMIT_S = 5.0

Say = Callable[[Line], None]
Spawners = Spawner | HostsSpawner


def run(
    request: Request,
    plan: Plan,
    jobs: Sequence[Job],
    backend: Backend,
    recorder: Recorder,
    facts: dict[str, Any],
    progress: Progress,
    say: Say,
    open_files: int,
    hosts: Hosts | None = None,
) -> tuple[Summary, int]:
    """Carry out a run of programs: its summary, which is then also on disk, and exit status.

    ``open_files``: most that a program may open. ``hosts``: the others of a run on several, which
    ``plan`` places its nodes on. Whatever happens, no process, namespace or device of the run is
    left when this returns; after a SIGKILL the kernel sees to that.
    """
    told = request, plan, jobs, backend, recorder, progress, say, open_files, hosts
    return _Run(*told).execute(facts)


class _Run:
    def __init__(
        self,
        request: Request,
        plan: Plan,
        jobs: Sequence[Job],
        backend: Backend,
        recorder: Recorder,
        progress: Progress,
        say: Say,
        open_files: int,
        hosts: Hosts | None,
    ) -> None:
        self._request, self._links, self._programs = request, request.links, request.programs
        self._plan, self._jobs, self._backend = plan, jobs, backend
        self._say, self._open_files, self._hosts = say, open_files, hosts
        self._ledger = Ledger(recorder, progress)
        self._nodes: list[Node] = []
        self._dynamics = Dynamics(plan) if hosts is None else HostsDynamics(hosts, plan)
        self._asked = signals.Interruption()
        self._rounds = Rounds(self._programs.round_regex, self._ledger.record, self._clients)
        self._kill_at_s = math.inf
        self._over: Ending | None = None
        """Why the run ends, once it does, and how."""
        self._first_failure: Ending | None = None
        """Of a run that goes on after it."""

    def execute(self, facts: dict[str, Any]) -> tuple[Summary, int]:
        status: Status = "failed"
        reason, code = "unknown", 1
        closing: dict[str, Any] = {}
        with self._asked.heard():
            try:
                with contextlib.ExitStack() as owned, self._asked.raised():
                    origin = {"origin_ns": self._ledger.recorder.origin_ns}
                    self._record(SUPERVISOR, msgspec.convert({**origin, **facts}, events.Run))
                    configuration.write(self._request, self._ledger.recorder.folder / files.CONFIG)
                    self._ledger.write_summary()
                    self._carry_out(owned, closing)
                self._judge(closing)
                status, reason, code = "ok", "", 0
                if self._over is not None and self._over.code:
                    status, reason, code = "failed", self._over.how, self._over.code
            except signals.Interrupted as signal_name:
                status, reason, code = "interrupted", f"stopped by {signal_name}", INTERRUPTED
            except (RunFailed, LinkError, Garbled) as error:
                reason = str(error)
            except OSError as error:
                reason = hindrance(error)
            self._ledger.close(status, reason, closing)
        summary = self._ledger.tally.summary()
        return summary, code if summary.status == status else 1

    def _judge(self, closing: dict[str, Any]) -> None:
        gone = {} if self._hosts is None else self._hosts.gone()
        found = host_load.judge(self._ledger.tally.summary(), closing, gone=gone)
        self._record(SUPERVISOR, msgspec.convert(found, events.Host, from_attributes=True))
        if not self._links.strict:
            return
        if found.verdict == "fail":
            raise RunFailed(f"--strict: {found.reason}")
        summary, expected = self._ledger.tally.summary(), self._programs.expect_bytes
        if less := doubts.less_than_expected(summary, expected):
            raise RunFailed(f"--strict: {less}")

    def _record(self, node: str, event: events.Event) -> None:
        self._ledger.record(node, event)

    def _carry_out(self, owned: contextlib.ExitStack, closing: dict[str, Any]) -> None:
        began_s = time.monotonic()
        # 1. Every node's init is forked into its place while the links are probed.
        seen = views(self._plan, self._jobs, self._ledger.recorder.folder / "nodes")
        for job in self._jobs:
            output = Output(job.node.name, Path(job.own_folder))
            owned.callback(output.close)
            self._nodes.append(Node(job, output))
        own = Spawner(self._jobs, seen, self._open_files)
        spawner = own if self._hosts is None else HostsSpawner(self._hosts, own)
        owned.callback(spawner.down)
        owned.callback(self._record_hosts)
        network = self._backend.up(self._plan)
        owned.callback(lambda: closing.update(network.down()))
        meters = Meters(self._plan, network, self._ledger, owned)
        start_capture = meters.prepare_capture(self._links.pcap, True, self._hosts)
        probe = hosts_links.prober(self._hosts, network, self._plan)
        finish_probing = meters.probe_links(self._links.calibrate, self._links.strict, probe)
        meters.record_links()
        self._refuse_what_hosts_cannot_carry()
        for node in self._nodes:
            place = network.endpoint(node.job.node).namespaces
            node.channel = spawner.spawn(node.job.node, place, node.output.descriptors)
            owned.callback(node.channel.close)
        self._wait_until_up(network, spawner)
        finish_probing()
        start_capture()
        # 2. Programs start, each once what it waits for is there, and are watched to their end.
        readings = Readings(network, meters, self._ledger, self._rounds)
        self._dynamics.begin()
        with selectors.DefaultSelector() as selector:
            for source in (network, spawner.channel, *(node.channel for node in self._nodes)):
                assert source is not None
                selector.register(source, selectors.EVENT_READ)
            watch = functools.partial(self._watch, selector, network, spawner, readings, began_s)
            try:
                watch()
                readings.settle()
            except signals.Interrupted as signal_name:
                number = signal.Signals[str(signal_name)]
                self._stop(Ending(INTERRUPTED, f"stopped by {signal_name}"), number)
                watch()
                raise
            finally:
                with contextlib.suppress(OSError, LinkError, ChannelClosed):
                    self._hear_last_words(readings, spawner)

    def _refuse_what_hosts_cannot_carry(self) -> None:
        if self._hosts is not None:
            self._record(SUPERVISOR, self._hosts.about(self._plan))
            if reason := hosts_links.refusal(self._hosts, self._plan):
                raise RunFailed(reason)

    def _record_hosts(self) -> None:
        """Tell of hosts that are gone, and once all is down how the others' links ended."""
        if self._hosts is not None:
            for event in (*self._hosts.news(), *self._hosts.left()):
                self._record(SUPERVISOR, event)

    def _wait_until_up(self, network: Network, spawner: Spawners) -> None:
        deadline = time.monotonic() + UP_LIMIT_S + UP_LIMIT_A_NODE_S * len(self._nodes)
        for node in self._nodes:
            while not node.up:
                if time.monotonic() > deadline:
                    raise LinkError(f"isolate {node.name}: it is not there in time")
                self._check(network, spawner)
                if self._hosts is not None:
                    self._hosts.refuse_gone()
                time.sleep(0.002)
                self._hear(node)

    def _watch(
        self,
        selector: selectors.BaseSelector,
        network: Network,
        spawner: Spawners,
        readings: Readings,
        began_s: float,
    ) -> None:
        limit_s = self._links.time_limit_s
        while True:
            self._start_those_ready()
            if self._is_over():
                return
            self._look_at_limits(began_s + limit_s)
            due_s = min(self._dynamics.wait_s, TICK_S)
            for key, _ in selector.select(due_s):
                node = next((n for n in self._nodes if n.channel is key.fileobj), None)
                if node is not None:
                    self._hear(node)
                    if node.channel is not None and node.channel.closed:
                        selector.unregister(key.fileobj)
            self._check(network, spawner)
            with contextlib.suppress(ChannelClosed):
                for name, event in self._dynamics.apply(network):
                    self._record(name, event)
            self._read_output()
            readings.take()

    def _start_those_ready(self) -> None:
        by_name = {node.name: node for node in self._nodes}
        for node in self._nodes:
            if node.asked or node.ending is not None or self._over is not None:
                continue
            after = node.job.after
            if after is not None:
                other = by_name[after.node]
                if after.number not in other.ports:
                    other.ports[after.number] = False
                    other.send(lines.Await(after.number))
                if not other.ports[after.number]:
                    if how := node.waits_in_vain(other, self._programs.wait_limit_s):
                        self._stop(Ending(1, how))
                    continue
            node.asked = True
            node.began_s = time.monotonic()
            node.send(lines.Start())

    def _is_over(self) -> bool:
        """Whether nothing runs any more that is waited for; has the others end where so."""
        waited = [
            node
            for node in self._nodes
            if self._programs.until == "all"
            or (node.name == SERVER) == (self._programs.until == "server")
        ]
        if self._over is None and all(node.ending is not None for node in waited):
            self._stop(self._first_failure or Ending(0, ""))
        left = [node for node in self._nodes if node.running]
        if self._over is not None and not left:
            return True
        if time.monotonic() > self._kill_at_s + END_LIMIT_S:
            raise RunFailed(f"{left[0].name}: does not end, not even by SIGKILL")
        return False

    def _look_at_limits(self, deadline_s: float) -> None:
        now_s = time.monotonic()
        if self._over is None and now_s > deadline_s:
            limit = f"not finished within time_limit_s = {self._links.time_limit_s:g}"
            self._stop(Ending(TIMED_OUT, limit))
        if self._over is not None and (now_s > self._kill_at_s or self._asked.times > 1):
            self._kill_at_s = min(self._kill_at_s, now_s)
            for node in self._nodes:
                if node.running:
                    node.send(lines.Signal(signal.SIGKILL))

    def _stop(self, ending: Ending, number: int = signal.SIGTERM) -> None:
        """Ask every program that runs to end; what has not begun does not begin."""
        self._over = self._over or ending
        self._kill_at_s = min(self._kill_at_s, time.monotonic() + self._programs.grace_s)
        for node in self._nodes:
            if node.running:
                node.send(lines.Signal(number))

    def _hear(self, node: Node) -> None:
        if node.channel is None:
            return
        for line in node.channel.drain():
            if isinstance(line, lines.Up):
                node.up = True
                self._record(node.name, events.Isolated(missing=line.missing))
            elif isinstance(line, lines.Began):
                node.began = True
                self._record(node.name, events.Started(pid=line.pid))
            elif isinstance(line, lines.Opened):
                node.ports[line.port] = not line.locally
                node.local.add(line.port)
            elif isinstance(line, lines.Over):
                self._on_over(node, line)
            elif isinstance(line, lines.Closing):
                node.told = True
                self._record(node.name, msgspec.convert(line, events.Carried, from_attributes=True))
            elif isinstance(line, lines.Broken):
                raise LinkError(f"isolate {node.name}: {line.reason}")
            elif isinstance(line, events.Shaped):
                self._record(node.name, line)
        # Of a host that is gone it is said elsewhere.
        if node.is_cut_off and not (self._hosts and node.job.node.host in self._hosts.gone()):
            raise RunFailed(f"{node.name}: the first process of its namespaces was killed")

    def _on_over(self, node: Node, line: lines.Over) -> None:
        self._read_output()
        code, how = code_of(line.status, line.reason), how_of(line.status, line.reason)
        node.ending = Ending(code, how)
        usage = events.Usage(
            pid=0,
            private_mb=line.private_mb,
            peak_private_mb=line.peak_private_mb,
            cpu_s=line.cpu_s,
            run_delay_s=line.run_delay_s,
        )
        self._record(node.name, usage)
        if line.held_s:
            self._record(SUPERVISOR, events.Stopped(peer=node.name, seconds=line.held_s))
        stopped = line.asked
        exited = events.Exited(code=code, how=how, seconds=line.seconds, stopped=stopped)
        self._record(node.name, exited)
        if code and not stopped:
            self._fail(Ending(code, f"{node.name} {how}"))

    def _on_lost(self, node: Node, reason: str) -> None:
        """Take a node for ended whose host is gone, after what it has said before."""
        self._hear(node)
        node.told = True
        if node.ending is not None:
            return
        node.ending = Ending(1, f"was lost: {reason}")
        if node.name != SERVER:
            self._record(SUPERVISOR, events.Lost(peer=node.name, reason=reason))
        self._record(node.name, events.Exited(code=1, how=node.ending.how))
        self._fail(Ending(1, f"{node.name} {node.ending.how}"))

    def _fail(self, failed: Ending) -> None:
        if self._programs.on_failure == "stop":
            self._stop(failed)
        elif self._first_failure is None:
            self._first_failure = failed

    def _check(self, network: Network, spawner: Spawners) -> None:
        reason = network.failure() or spawner.failure()
        if reason is not None:
            raise RunFailed(reason)
        said = spawner.channel.drain()
        self._record_hosts()
        for line in said:
            if isinstance(line, Reaped) and not self._nodes[line.node].told:
                # Its own last words come first.
                self._hear(self._nodes[line.node])
            elif isinstance(line, zygote.Reaped):
                self._on_lost(self._nodes[line.node], line.how)
        if self._hosts is not None and (reason := self._hosts.missing(self._links)) is not None:
            raise RunFailed(reason)

    def _read_output(self, *, last: bool = False) -> None:
        for node in self._nodes:
            node.output.pass_on(self._say, self._rounds.take, last=last)

    def _clients(self) -> tuple[int, int]:
        """How many have not failed, and how many have."""
        clients = [node for node in self._nodes if node.name != SERVER]
        failed = sum(node.ending is not None and bool(node.ending.code) for node in clients)
        return len(clients) - failed, failed

    def _hear_last_words(self, readings: Readings, spawner: Spawners) -> None:
        self._read_output(last=True)
        readings.record()
        self._rounds.end()
        if isinstance(spawner, HostsSpawner):
            spawner.bring(self._nodes, self._record, lambda: self._asked.times > 1)
        for node in self._nodes:
            node.send(lines.Finish())
        deadline = time.monotonic() + END_LIMIT_S
        for node in self._nodes:
            while not node.told and node.up and time.monotonic() < deadline:
                time.sleep(0.002)
                # What other hosts say comes this way.
                spawner.channel.drain()
                self._hear(node)
                if node.is_cut_off:
                    break
