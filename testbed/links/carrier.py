"""The packet loop between TUN devices: read, queue, release.

Every IP packet that a node sends passes through the sender's uplink and then the receiver's
downlink, client to client as well: routing is by destination address. Delay, queue and loss are
per packet; only the queue is ours and not the kernel's, as in Mahimahi (Netravali et al., USENIX
ATC 2015).
"""

import contextlib
import ctypes
import gc
import heapq
import os
import select
import socket
import time

import msgspec

from testbed.channel import Channel
from testbed.links.process import BYTES, DOWN, FRAMES, LOSSES, QUEUE_DROPS, UP, CounterTable
from testbed.links.queue import FOREVER, LATE_S, LinkQueue
from testbed.profiles import FRAME_OVERHEAD_BYTES, MTU_BYTES, Direction
from testbed.topology import Plan

READS_PER_TURN = 64
"""Packets taken from one device before the others and the releases get their turn."""
REALTIME_PRIORITY = 10
_PR_SET_TIMERSLACK = 29


def prefer_this_process() -> bool:
    """Ask for precise timers and, where allowed, real-time scheduling; whether that was given."""
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(REALTIME_PRIORITY))
    except PermissionError:
        return False
    return True


def carry(plan: Plan, devices: list[int], channel: Channel, counters: CounterTable) -> None:
    """Carry packets between ``devices`` (one a node) until ``channel`` says stop or closes."""
    gc.freeze()
    gc.disable()
    _Carrier(plan, devices, counters).run(channel)


class _Line:
    """One direction of a node's access link, with where its counters stand."""

    __slots__ = ("counter", "node", "queue", "sequence", "up")

    def __init__(self, node: int, direction: int, shape: Direction | None, table: CounterTable):
        self.node = node
        self.up = direction == UP
        self.queue: LinkQueue[bytes] = LinkQueue(shape, seed=2 * node + direction)
        self.counter = table.offset(node, direction)
        self.sequence = 2 * node + direction


class _Carrier:
    def __init__(self, plan: Plan, devices: list[int], counters: CounterTable) -> None:
        self._devices = devices
        self._words = counters.words
        # The plan numbers its nodes from 0, so that a node's index is its place in every list.
        profiles = [(node.index, node.profile) for node in plan.nodes]
        self._up = [_Line(i, UP, p.up if p else None, counters) for i, p in profiles]
        self._down = [_Line(i, DOWN, p.down if p else None, counters) for i, p in profiles]
        self._node_at = {
            socket.inet_aton(node.address): index for index, node in enumerate(plan.nodes)
        }
        self._due: list[tuple[float, int, _Line]] = []
        self._releases = 0
        self._late = 0
        self._lateness_sum_s = 0.0
        self._lateness_max_s = 0.0
        self._unroutable = 0
        self._write_errors = 0

    def run(self, channel: Channel) -> None:
        # epoll_wait counts in milliseconds; select on the epoll descriptor waits in microseconds.
        epoll = select.epoll()
        for device in self._devices:
            epoll.register(device, select.EPOLLIN)
        node_of = {device: index for index, device in enumerate(self._devices)}
        epoll.register(channel.fileno(), select.EPOLLIN)
        waited = [epoll.fileno()]
        due = self._due
        while True:
            wait_s = max(0.0, due[0][0] - time.monotonic()) if due else None
            select.select(waited, [], [], wait_s)
            for descriptor, _ in epoll.poll(0):
                node = node_of.get(descriptor)
                if node is not None:
                    self._read(node, descriptor)
                elif self._obey(channel):
                    return
            self._release()

    def _read(self, node: int, device: int) -> None:
        """Take what the node has sent and put it into its uplink."""
        line, words = self._up[node], self._words
        now = time.monotonic()
        for _ in range(READS_PER_TURN):
            try:
                packet = os.read(device, MTU_BYTES)
            except BlockingIOError:
                return
            words[line.counter + FRAMES] += 1
            words[line.counter + BYTES] += len(packet) + FRAME_OVERHEAD_BYTES
            self._offer(line, now, packet)

    def _offer(self, line: _Line, now: float, packet: bytes) -> None:
        queue = line.queue
        if not queue.offer(now, len(packet) + FRAME_OVERHEAD_BYTES, packet):
            self._words[line.counter + QUEUE_DROPS] = queue.queue_drops
            self._words[line.counter + LOSSES] = queue.losses
        elif len(queue) == 1:
            heapq.heappush(self._due, (queue.due, line.sequence, line))

    def _release(self) -> None:
        """Move on every packet whose time has come, by the model's time and not the clock's."""
        due = self._due
        now = time.monotonic()
        while due and due[0][0] <= now:
            _, _, line = heapq.heappop(due)
            release, packet = line.queue.pop()
            if line.queue.due != FOREVER:
                heapq.heappush(due, (line.queue.due, line.sequence, line))
            if line.up:
                receiver = self._node_at.get(packet[16:20])
                if receiver is None:
                    self._unroutable += 1
                else:
                    self._offer(self._down[receiver], release, packet)
            else:
                self._deliver(line, now - release, packet)

    def _deliver(self, line: _Line, late_s: float, packet: bytes) -> None:
        try:
            os.write(self._devices[line.node], packet)
        except OSError:
            self._write_errors += 1
            return
        self._words[line.counter + FRAMES] += 1
        self._words[line.counter + BYTES] += len(packet) + FRAME_OVERHEAD_BYTES
        self._releases += 1
        self._lateness_sum_s += late_s
        self._lateness_max_s = max(self._lateness_max_s, late_s)
        self._late += late_s > LATE_S

    def _obey(self, channel: Channel) -> bool:
        """Do what the supervisor says; True where it says stop or is gone."""
        stop = False
        for order in channel.drain():
            if "shape" in order:
                for lines, key in ((self._up, "up"), (self._down, "down")):
                    shape = msgspec.convert(order[key], Direction)
                    lines[order["shape"]].queue.shape(shape)
            stop = stop or "stop" in order
        if stop:
            with contextlib.suppress(ConnectionError):
                channel.send({"closing": self._closing_facts()})
        return stop or channel.closed

    def _closing_facts(self) -> dict[str, float | int]:
        return {
            "releases": self._releases,
            "late_releases": self._late,
            "lateness_mean_ms": 1000 * self._lateness_sum_s / max(1, self._releases),
            "lateness_max_ms": 1000 * self._lateness_max_s,
            "unroutable_packets": self._unroutable,
            "write_errors": self._write_errors,
        }
