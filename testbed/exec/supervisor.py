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
from testbed.exec.jobs import Job
from testbed.exec.nodes import Node, views
from testbed.exec.output import Line, Output
from testbed.exec.rounds import Rounds
from testbed.exec.spawner import Reaped, Spawner
from testbed.links.interface import Backend, LinkCounters, LinkError, Network
from testbed.network.topology import SERVER, Plan
from testbed.processes import signals
from testbed.processes.channel import ChannelClosed, Garbled
from testbed.record import events, host_load
from testbed.record.reading import SUPERVISOR
from testbed.record.recorder import Recorder
from testbed.record.run_summary import Status, Summary
from testbed.report import doubts
from testbed.run.dynamics import Dynamics
from testbed.run.ledger import Ledger, Progress, RunFailed
from testbed.run.meters import Meters

TICK_S = 0.1
"""Between two readings of the counters, and of the programs' output."""
MOST_READINGS = 3000
"""From as many ticks on, readings are as much farther apart as the run is longer."""
SUMMARY_S = 1.0
UP_LIMIT_S, UP_LIMIT_A_NODE_S = 30.0, 0.1
END_LIMIT_S = 5.0
SETTLE_LIMIT_S = 0.5
"""How long what programs have left in their sockets gets to cross the links."""

Say = Callable[[Line], None]


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
) -> tuple[Summary, int]:
    """Carry out a run of programs: its summary, which is then also on disk, and exit status.

    ``open_files``: most that a program may open. Whatever happens, no process, namespace or device
    of the run is left when this returns; after a SIGKILL the kernel sees to that.
    """
    return _Run(request, plan, jobs, backend, recorder, progress, say, open_files).execute(facts)


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
    ) -> None:
        self._request, self._links, self._programs = request, request.links, request.programs
        self._plan, self._jobs, self._backend = plan, jobs, backend
        self._say, self._open_files = say, open_files
        self._ledger = Ledger(recorder, progress)
        self._nodes: list[Node] = []
        self._dynamics = Dynamics(plan)
        self._asked = signals.Interruption()
        self._rounds = Rounds(self._programs.round_regex, self._ledger.record, self._clients)
        self._read: list[LinkCounters] | None = None
        """Counters as they were recorded last."""
        self._began_s = self._read_s = self._kept_s = 0.0
        self._kill_at_s = math.inf
        self._over: Ending | None = None
        """Why the run ends, once it does, and how."""
        self._first_failure: Ending | None = None
        """Of a run that goes on after it."""

    def execute(self, facts: dict[str, Any]) -> tuple[Summary, int]:
        status: Status = "failed"
        reason, code = "unknown", 1
        closing: dict[str, Any] = {}
        with signals.handled(self._asked.take):
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
                reason = f"write the results: {error}"
            self._ledger.close(status, reason, closing)
        summary = self._ledger.tally.summary()
        return summary, code if summary.status == status else 1

    def _judge(self, closing: dict[str, Any]) -> None:
        found = host_load.judge(self._ledger.tally.summary(), closing)
        self._record(SUPERVISOR, msgspec.convert(found, events.Host, from_attributes=True))
        if not self._links.strict:
            return
        if found.verdict == "fail":
            raise RunFailed(f"--strict: {found.reason}")
        expected = self._programs.expect_bytes
        if less := doubts.less_than_expected(self._ledger.tally.summary(), expected):
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
        spawner = Spawner(self._jobs, seen, self._open_files)
        owned.callback(spawner.down)
        network = self._backend.up(self._plan)
        owned.callback(lambda: closing.update(network.down()))
        meters = Meters(self._plan, network, self._ledger, owned)
        start_capture = meters.prepare_capture(self._links.pcap, server=True)
        finish_probing = meters.probe_links(self._links.calibrate, self._links.strict)
        meters.record_links()
        for node in self._nodes:
            place = network.endpoint(node.job.node).namespaces
            node.channel = spawner.spawn(node.job.node, place, node.output.descriptors)
            owned.callback(node.channel.close)
        self._wait_until_up(network, spawner)
        finish_probing()
        start_capture()
        # 2. Programs start, each once what it waits for is there, and are watched to their end.
        self._began_s = time.monotonic()
        self._dynamics.begin()
        with selectors.DefaultSelector() as selector:
            for source in (network, spawner.channel, *(node.channel for node in self._nodes)):
                assert source is not None
                selector.register(source, selectors.EVENT_READ)
            watch = functools.partial(self._watch, selector, network, spawner, meters, began_s)
            try:
                watch()
                self._settle(network)
            except signals.Interrupted as signal_name:
                number = signal.Signals[str(signal_name)]
                self._stop(Ending(INTERRUPTED, f"stopped by {signal_name}"), number)
                watch()
                raise
            finally:
                with contextlib.suppress(OSError, LinkError, ChannelClosed):
                    self._hear_last_words(meters)

    def _wait_until_up(self, network: Network, spawner: Spawner) -> None:
        deadline = time.monotonic() + UP_LIMIT_S + UP_LIMIT_A_NODE_S * len(self._nodes)
        for node in self._nodes:
            while not node.up:
                if time.monotonic() > deadline:
                    raise LinkError(f"isolate {node.name}: it is not there in time")
                self._check(network, spawner)
                time.sleep(0.002)
                self._hear(node)

    def _watch(
        self,
        selector: selectors.BaseSelector,
        network: Network,
        spawner: Spawner,
        meters: Meters,
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
            self._read_meters(network, meters)

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
                    self._refuse_vain_wait(node, other)
                    continue
            node.asked = True
            node.began_s = time.monotonic()
            node.send(lines.Start())

    def _refuse_vain_wait(self, node: Node, other: Node) -> None:
        after = node.job.after
        text = f"{node.name} waits for {after}"
        if other.ending is not None:
            how = f"{text}, and {other.name} {other.ending.how} before anybody listened there"
            self._stop(Ending(1, how))
        elif other.began and time.monotonic() > other.began_s + self._programs.wait_limit_s:
            local = after is not None and after.number in other.local
            who = "nobody but on 127.0.0.1" if local else "nobody"
            how = (
                f"{text}, and {who} listens there after wait_limit_s = "
                f"{self._programs.wait_limit_s:g}; have the command of {other.name} listen on "
                "0.0.0.0 and that port, or correct --wait-port"
            )
            self._stop(Ending(1, how))

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
        if node.channel.closed and not node.told:
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
        stopped = line.asked
        self._record(
            node.name,
            events.Exited(code=code, how=how, seconds=line.seconds, stopped=stopped),
        )
        if code and not stopped:
            failed = Ending(code, f"{node.name} {how}")
            if self._programs.on_failure == "stop":
                self._stop(failed)
            elif self._first_failure is None:
                self._first_failure = failed

    def _check(self, network: Network, spawner: Spawner) -> None:
        reason = network.failure() or spawner.failure()
        if reason is not None:
            raise RunFailed(reason)
        for line in spawner.channel.drain():
            if isinstance(line, Reaped) and not self._nodes[line.node].told:
                # Its own last words come first.
                node = self._nodes[line.node]
                self._hear(node)

    def _read_output(self, *, last: bool = False) -> None:
        for node in self._nodes:
            found = node.output.lines()
            self._take_lines(node, found)
            while last and found:
                found = node.output.lines()
                self._take_lines(node, found)
            if last:
                self._take_lines(node, node.output.lines(last=True))

    def _take_lines(self, node: Node, found: list[Line]) -> None:
        for line in node.output.shown(found):
            self._say(line)
        for line in found:
            self._rounds.take(line)

    def _clients(self) -> tuple[int, int]:
        """How many have not failed, and how many have."""
        clients = [node for node in self._nodes if node.name != SERVER]
        failed = sum(node.ending is not None and bool(node.ending.code) for node in clients)
        return len(clients) - failed, failed

    def _read_meters(self, network: Network, meters: Meters) -> None:
        now_s = time.monotonic()
        apart_s = max(TICK_S, (now_s - self._began_s) / MOST_READINGS)
        if now_s - self._read_s >= apart_s and (found := network.counters()) != self._read:
            self._read, self._read_s = found, now_s
            meters.record_wire(self._rounds.open)
        if now_s - self._kept_s >= SUMMARY_S:
            self._kept_s = now_s
            self._ledger.recorder.keep_summary(self._ledger.tally.summary)

    def _settle(self, network: Network) -> None:
        deadline = time.monotonic() + SETTLE_LIMIT_S
        before = None
        while (now := network.counters()) != before and time.monotonic() < deadline:
            before = now
            time.sleep(TICK_S)

    def _hear_last_words(self, meters: Meters) -> None:
        self._read_output(last=True)
        meters.record_wire(self._rounds.open)
        self._rounds.end()
        for node in self._nodes:
            node.send(lines.Finish())
        deadline = time.monotonic() + END_LIMIT_S
        for node in self._nodes:
            while not node.told and node.up and time.monotonic() < deadline:
                time.sleep(0.002)
                self._hear(node)
