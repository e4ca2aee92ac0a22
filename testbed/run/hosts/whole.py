"""All hosts' networks as one, and their zygotes: what the supervisor of a run on several has.

It sees no difference from those of one host but by what ``Hosts`` says.
"""

import functools
import select
import time
from collections.abc import Callable

import msgspec

from testbed.links.interface import Endpoint, LinkCounters, LinkError
from testbed.links.process import Facts, Shape
from testbed.links.userspace import backend as userspace
from testbed.metering import meter
from testbed.network.direction import Direction
from testbed.network.topology import Node, Plan
from testbed.processes.channel import Channel
from testbed.processes.worker import Stop
from testbed.run.feasible import Traffic
from testbed.run.hosts import waits
from testbed.run.hosts.driver import Hosts, plain
from testbed.run.hosts.far_host import FarChannel
from testbed.run.hosts.log import NodesLog
from testbed.run.hosts.messages import Count, Logged
from testbed.run.zygote import Forked, NodeFailed, Zygote

COUNT_LIMIT_S = 20.0
"""Of waiting for who is there, but busy."""
LEAVE_LIMIT_S = 10.0
"""For a host to take its part down."""


class HostsBackend:
    """The backend of links on several hosts, each of which makes its own nodes'."""

    name = userspace.name

    def __init__(self, all_hosts: Hosts) -> None:
        self._hosts = all_hosts

    def probe(self) -> str | None:
        return userspace.probe()

    def up(self, plan: Plan) -> "HostsNetwork":
        """Build every host's part, all at once.

        Raises:
            LinkError: naming the host and the step that failed.
        """
        meeting = self._hosts.begin(plan)
        try:
            local = userspace.up(plan, meeting, functools.partial(waits.for_own, self._hosts))
        except LinkError:
            self._hosts.pump()
            self._hosts.refuse_gone()
            raise
        finally:
            meeting.listener.close()
        self._hosts.readings = local.clocks
        network = HostsNetwork(self._hosts, local, plan)
        try:
            waits.for_links(self._hosts, local.facts)
        except BaseException:
            network.down()
            raise
        return network


class HostsNetwork:
    """The networks of all hosts as one; owns the driver's own."""

    def __init__(self, all_hosts: Hosts, local: userspace.UserspaceNetwork, plan: Plan) -> None:
        self._hosts, self._local, self._plan = all_hosts, local, plan
        self.facts: dict[str, object] = plain(local.facts)
        self.record: dict[str, object] = {}
        self._busy_s, self._since_s = -meter.busy_cores_s(), time.monotonic()
        all_hosts.links = local

    def endpoint(self, node: Node) -> Endpoint:
        if self._hosts.of(node) is None:
            return self._local.endpoint(node)
        return Endpoint((), self._plan.server.address, self._plan.port)

    def shape(self, node: Node, up: Direction, down: Direction) -> None:
        far = self._hosts.of(node)
        if far is None:
            self._local.shape(node, up, down)
        else:
            self._hosts.say(far, Shape(node.index, up, down))

    def counters(self) -> list[LinkCounters]:
        """The same of every host; of one that is gone what it said last."""
        everyone = self._hosts
        for far in everyone.others:
            far.awaits_counters = far.gone is None
            everyone.say(far, Count())
        waits.for_all(everyone, lambda far: not far.awaits_counters, COUNT_LIMIT_S, "no counters")
        found = self._local.counters()
        for node in self._plan.nodes:
            host = everyone.of(node)
            if host is not None and host.counters is not None:
                found[node.index] = host.counters[node.index]
        return found

    def fileno(self) -> int:
        return self._local.fileno()

    def failure(self) -> str | None:
        self._hosts.hear_links()
        return self._local.failure() or self._hosts.failure()

    def halted(self) -> str | None:
        return self._local.halted()

    def down(self) -> dict[str, object]:
        for far in self._hosts.others:
            self._hosts.say(far, Stop())
        self._hosts.links = None
        took_s = time.monotonic() - self._since_s
        busy_cores = round((self._busy_s + meter.busy_cores_s()) / took_s, 2) if took_s > 0 else 0.0
        self._hosts.closing = {**self._local.down(), "busy_cores": busy_cores}
        found = plain(self._hosts.closing)
        waits.for_all(self._hosts, lambda far: far.closing is not None, LEAVE_LIMIT_S, "no end")
        for far in self._hosts.others:
            _merge(found, far.closing or {})
        return found


class HostsZygote:
    """The zygotes of all hosts as one; owns the driver's own, and what its nodes write."""

    def __init__(self, all_hosts: Hosts, forks: Callable[[int], Zygote]) -> None:
        """``forks``: makes the driver's own, whose nodes have that as their standard error."""
        self._hosts, self._log = all_hosts, NodesLog()
        try:
            self._local = forks(self._log.into)
        except BaseException:
            self._log.close()
            raise
        finally:
            self._log.release()
        self.channel = _ZygotesChannel(all_hosts, self._local.channel, self._log)

    def wait_ready(self, timeout_s: float) -> Traffic | None:
        until = time.monotonic() + timeout_s
        try:
            if not waits.for_own(self._hosts, self._local.channel, timeout_s):
                raise NodeFailed(f"the zygote did not become ready within {timeout_s:g} s")
            found = self._local.wait_ready(max(0.0, until - time.monotonic()))
            left_s = max(0.0, until - time.monotonic())
            waits.for_all(self._hosts, lambda far: far.is_ready, left_s, "not ready", without=False)
        except LinkError as error:
            raise NodeFailed(str(error)) from error
        return found

    def spawn(self, node: Node, endpoint: Endpoint) -> Channel | FarChannel:
        far = self._hosts.of(node)
        if far is None:
            return self._local.spawn(node, endpoint)
        channel = FarChannel(far, node.index)
        self._hosts.spawn(far, node.index, channel)
        return channel

    def failure(self) -> str | None:
        return self._local.failure()

    def down(self) -> None:
        self._local.down()
        self.channel.end_log()


class HostsChannel:
    """The channel of all zygotes, or spawners of programs, to be read."""

    def __init__(self, all_hosts: Hosts, local: Channel) -> None:
        self._hosts, self._local = all_hosts, local
        all_hosts.poll.register(local, select.EPOLLIN)

    def fileno(self) -> int:
        return self._hosts.poll.fileno()

    def drain(self) -> list[msgspec.Struct]:
        self._hosts.pump()
        self._hosts.bell.mute()
        found = [*self._heard(), *self._hosts.said]
        self._hosts.said.clear()
        return found

    def _heard(self) -> list[msgspec.Struct]:
        """Words of the driver's own."""
        return self._local.drain()


class _ZygotesChannel(HostsChannel):
    """It takes what the driver's own nodes write, too."""

    def __init__(self, all_hosts: Hosts, local: Channel, log: NodesLog) -> None:
        super().__init__(all_hosts, local)
        self._log = log
        all_hosts.poll.register(log, select.EPOLLIN)
        self._is_logging = True

    def _heard(self) -> list[msgspec.Struct]:
        own = super()._heard()
        self._log.nodes |= {said.pid: said.node for said in own if isinstance(said, Forked)}
        if self._is_logging:
            self._write(self._log.take())
            if self._log.ended:
                self._end_watching()
        return own

    def end_log(self) -> None:
        """Take the last words, once who writes has been ended. Idempotent."""
        if self._is_logging:
            self._write(self._log.rest())
            self._end_watching()

    def _write(self, words: list[Logged]) -> None:
        for each in words:
            self._hosts.write_log(self._hosts.own.name, each)

    def _end_watching(self) -> None:
        self._is_logging = False
        self._hosts.poll.unregister(self._log)
        self._log.close()


def _merge(into: Facts, more: Facts) -> None:
    """The worst lateness of both."""
    for name, value in more.items():
        mine = into.get(name)
        if name.startswith("lateness") and isinstance(mine, int | float):
            into[name] = max(mine, value)
