"""The packet loop of one host of several: what is for a node elsewhere goes through a tunnel.

A link is shaped wholly on its node's own host. A frame for another host is sent as it enters its
sender's uplink, which is when the model's release of it is known; the other host holds it until
then and has it enter the receiver's downlink at that time. The way between hosts so hides in the
line's own delay. A frame that comes after its time enters at its time all the same, and is late
where it leaves only if the downlink's delay does not make up for it.
"""

import heapq
import select
import socket
from collections.abc import Mapping

from testbed.links.process import UP, CounterTable, Facts, HostGone
from testbed.links.queueing.queue import FOREVER, Entry
from testbed.links.timekeeper import Timekeeper
from testbed.links.tunnel.clock_table import ClockTable
from testbed.links.tunnel.held import Held
from testbed.links.tunnel.messages import Frame
from testbed.links.tunnel.tunnel import Gone, Tunnel
from testbed.links.userspace.bursts import DESTINATION, GSO_TYPE, PACKET_TO_FRAME_BYTES, Burst
from testbed.links.userspace.forwarder import Carrier, Line, Packet
from testbed.network.topology import Plan
from testbed.processes.channel import Channel

MOST_HELD_BYTES = 256 << 20
"""Of one host's frames; more are dropped and counted."""


class _Elsewhere:
    """Another host: its tunnel, and its lines as far as what has yet to leave them concerns us."""

    def __init__(self, tunnel: Tunnel, line: Line) -> None:
        self.tunnel = tunnel
        self.line = line
        self.held = Held()
        line.queue = self.held
        self.gone: str | None = None
        """How it is known that it is, or that it has left, once it is or has."""
        self.watched = select.EPOLLIN
        """For which events its tunnel is registered."""


class SpanningCarrier(Carrier):
    """The loop of one host's nodes."""

    def __init__(
        self,
        plan: Plan,
        devices: dict[int, int],
        counters: CounterTable,
        time: Timekeeper,
        tunnels: Mapping[str, Tunnel],
        clocks: ClockTable,
    ) -> None:
        """``tunnels``: to every other host, by its name; owned from now on. ``clocks``: of each."""
        super().__init__(plan, devices, counters, time)
        now = time.now()
        self._hosts: dict[str, _Elsewhere] = {}
        for number, (name, tunnel) in enumerate(tunnels.items(), start=len(plan.nodes)):
            line = Line(number, UP, None, -1, counters, now)
            self._hosts[name] = _Elsewhere(tunnel, line)
            self._epoll.register(tunnel, select.EPOLLIN)
        self._by_descriptor = {host.tunnel.fileno(): host for host in self._hosts.values()}
        """Those that are not gone."""
        self._host_of = {
            socket.inet_aton(node.address): self._hosts[node.host]
            for node in plan.nodes
            if node.index not in devices
        }
        for line in self._up.values():
            line.queue.entered = self._send_early
        self._unsent: set[_Elsewhere] = set()
        """Hosts for which something waits to be sent."""
        self._clocks = clocks
        self._tend_at = 0.0
        self._channel: Channel | None = None
        self._unsendable = self._overheld = self._odd = 0

    def run(self, channel: Channel) -> Facts:
        self._channel = channel
        try:
            return super().run(channel)
        finally:
            for host in self._hosts.values():
                host.tunnel.close()

    def _next(self) -> float:
        return min(super()._next(), self._tend_at)

    def _hear(self, descriptor: int, channel: Channel) -> bool:
        host = self._by_descriptor.get(descriptor)
        if host is None:
            # A host that went in this very turn has no descriptor any more.
            return descriptor == channel.fileno() and super()._hear(descriptor, channel)
        try:
            for frame in host.tunnel.read(self._now):
                self._take(host, frame)
        except Gone as gone:
            self._let_go(host, str(gone))
        else:
            # It may have been asked, or have room again.
            self._unsent.add(host)
        return False

    def _take(self, host: _Elsewhere, frame: Frame) -> None:
        """Hold what has come from another host until its time."""
        packet, count, size = _packet(frame.data)
        if not count or _destination(packet) not in self._line_to:
            self._odd += max(1, count)
            return
        step = frame.step if count > 1 else 0.0
        host.tunnel.count(self._now() - frame.release, count, step)
        if host.held.bytes > MOST_HELD_BYTES:
            self._overheld += count
            return
        host.held.hold((frame.release, packet, 0, count, step, size))
        line = host.line
        if host.held.due < line.scheduled:
            line.scheduled = host.held.due
            heapq.heappush(self._due, (line.scheduled, line.sequence, line))

    def _release(self) -> None:
        super()._release()
        now = self._now()
        if now >= self._tend_at:
            self._tend(now)
        if self._unsent:
            self._flush()

    def _tend(self, now: float) -> None:
        """Have clocks asked where it is time to."""
        self._tend_at = FOREVER
        for host in list(self._by_descriptor.values()):
            try:
                self._tend_at = min(self._tend_at, host.tunnel.tend(now))
                self._clocks.write(host.tunnel.host, host.tunnel.offset, now)
            except Gone as gone:
                self._let_go(host, str(gone))
            else:
                self._unsent.add(host)

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, set()
        for host in unsent:
            if host.gone is not None:
                continue
            try:
                host.tunnel.flush()
            except Gone as gone:
                self._let_go(host, str(gone))
                continue
            wanted = select.EPOLLIN | (select.EPOLLOUT if host.tunnel.has_more else 0)
            if wanted != host.watched:
                host.watched = wanted
                self._epoll.modify(host.tunnel, wanted)

    def _let_go(self, host: _Elsewhere, reason: str) -> None:
        """Go on without a host, and tell the owner of one that did not leave by itself."""
        host.gone = f"host {host.tunnel.host} has left" if host.tunnel.has_left else reason
        self._epoll.unregister(host.tunnel)
        del self._by_descriptor[host.tunnel.fileno()]
        host.tunnel.close()
        if not host.tunnel.has_left and self._channel is not None:
            self._channel.send(HostGone(host.tunnel.host, reason))

    def _send_early(self, entry: Entry[Packet]) -> None:
        """Send what has just entered an uplink, if its receiver is elsewhere."""
        release, packet, first, count, step, _ = entry
        host = self._host_of.get(_destination(packet))
        if host is None:
            return
        if host.gone is not None:
            self._unsendable += count
            return
        buffers = [packet] if isinstance(packet, bytes) else packet.buffers(first, count)
        host.tunnel.send(release, step, buffers, count)
        self._unsent.add(host)

    def _enter(self, line: Line, segments: Entry[Packet]) -> None:
        queue = line.queue
        if line.up and queue.is_clear and queue.due == FOREVER:
            # It does not stay in the line, and so is not told of.
            self._send_early(segments)
        super()._enter(line, segments)

    def _leave(self, line: Line, segments: Entry[Packet]) -> None:
        if line.up and _destination(segments[1]) in self._host_of:
            # It has been sent as it entered, and takes a turn all the same.
            self._batching.frames += segments[3]
            return
        super()._leave(line, segments)

    def _closing_facts(self) -> Facts:
        if self._channel is not None and not self._channel.closed:
            # Else it is the owner that has gone, and its host with it.
            for host in self._by_descriptor.values():
                host.tunnel.leave()
        now = self._now()
        tunnels = {
            name: {
                **host.tunnel.facts(now),
                "gone": None if host.tunnel.has_left else host.gone,
            }
            for name, host in self._hosts.items()
        }
        return {
            **super()._closing_facts(),
            "tunnels": tunnels,
            "frames_to_hosts_gone": self._unsendable,
            "frames_beyond_what_is_held": self._overheld,
            "frames_for_no_node_here": self._odd,
        }


def _destination(packet: Packet) -> bytes:
    return packet[DESTINATION] if isinstance(packet, bytes) else packet.destination


def _packet(data: bytes) -> tuple[Packet, int, int]:
    """A packet or burst, its segments and each one's frame in bytes; no segments: it is none."""
    if not data[GSO_TYPE]:
        return data, 1, len(data) + PACKET_TO_FRAME_BYTES
    try:
        burst = Burst(data)
    except (IndexError, ZeroDivisionError):
        return data, 0, 0
    return burst, max(0, burst.frames), burst.frame_bytes
