"""The packet loop between TUN devices: read, queue, release.

Every IP packet that a node sends passes through the sender's uplink and then the receiver's
downlink, client to client as well: routing is by destination address. Delay, queue and loss are
per packet; only the queue is ours and not the kernel's, as in Mahimahi (Netravali et al., USENIX
ATC 2015).

A device hands over a TCP connection's consecutive segments as one burst, and takes them so. In a
line each has its own release; those that are due when the loop gets there leave in one write.
"""

import ctypes
import gc
import heapq
import os
import select
import socket
from random import Random

from testbed.links.process import (
    BYTES,
    DOWN,
    FRAMES,
    LOSSES,
    QUEUE_DROPS,
    UP,
    CounterTable,
    Facts,
    Shape,
)
from testbed.links.queueing.queue import FOREVER, Entry, LinkQueue
from testbed.links.timekeeper import Timekeeper
from testbed.links.userspace.batching import Batching, polled_s
from testbed.links.userspace.bursts import (
    DESTINATION,
    GSO_TYPE,
    MAX_READ_BYTES,
    PACKET_TO_FRAME_BYTES,
    Burst,
    with_flipped_bit,
)
from testbed.links.userspace.receive_steering import backlog_drops
from testbed.network.direction import Direction
from testbed.network.topology import Plan
from testbed.processes.channel import Channel
from testbed.processes.worker import Stop

MOST_ROUNDS = MOST_RELEASES = 64
"""In one turn: how often each device is read that has something, and what is then moved on."""
REALTIME_PRIORITY = 10
_PR_SET_TIMERSLACK = 29

Packet = bytes | Burst


def prefer_this_process() -> bool:
    """Ask for precise timers and, where allowed, real-time scheduling; whether that was given."""
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(REALTIME_PRIORITY))
    except PermissionError:
        return False
    return True


def _corrupted(packet: Packet, number: int, random: Random) -> Packet:
    single = packet.single(number) if isinstance(packet, Burst) else packet
    return with_flipped_bit(single, random)


class Line:
    """One direction of a node's access link, with where its counters stand."""

    __slots__ = ("counter", "device", "polled_s", "queue", "scheduled", "sequence", "up")

    def __init__(
        self,
        node: int,
        direction: int,
        shape: Direction | None,
        device: int,
        table: CounterTable,
        now: float,
    ) -> None:
        self.device = device
        """The node's."""
        self.up = direction == UP
        self.sequence = 2 * node + direction
        self.queue: LinkQueue[Packet] = LinkQueue(shape, self.sequence, now, _corrupted)
        self.counter = table.offset(node, direction)
        self.polled_s = polled_s(shape)
        self.scheduled = FOREVER
        """When its next release stands in the heap; an entry of another time is out of date."""


class Carrier:
    """The loop over the lines of the nodes that have a device here."""

    def __init__(
        self, plan: Plan, devices: dict[int, int], counters: CounterTable, time: Timekeeper
    ) -> None:
        """``devices``: descriptors by the node's index."""
        self._words = counters.words
        ends = [(i, plan.nodes[i].profile, descriptor) for i, descriptor in devices.items()]
        self._time = time
        self._now = now = time.now
        self._up = {i: Line(i, UP, p.up if p else None, fd, counters, now()) for i, p, fd in ends}
        self._down = {
            i: Line(i, DOWN, p.down if p else None, fd, counters, now()) for i, p, fd in ends
        }
        self._line_to = {
            socket.inet_aton(plan.nodes[index].address): line for index, line in self._down.items()
        }
        self._due: list[tuple[float, int, Line]] = []
        self._epoll = select.epoll()
        self._batching = Batching(self._epoll.fileno())
        self._unroutable = 0
        self._write_errors = 0
        self._backlog_drops = backlog_drops()

    def run(self, channel: Channel) -> Facts:
        """Carry packets until ``channel`` says stop or closes."""
        gc.freeze()
        gc.disable()
        line_of = {line.device: line for line in self._up.values()}
        for descriptor in (*line_of, channel.fileno()):
            self._epoll.register(descriptor, select.EPOLLIN)
        due, batching, keeper = self._due, self._batching, self._time
        while True:
            batching.wait(keeper.wait_s(self._next()))
            for _ in range(MOST_ROUNDS if batching.batches else 1):
                ready = self._epoll.poll(0)
                if not ready:
                    break
                now = self._now()
                for descriptor, _ in ready:
                    line = line_of.get(descriptor)
                    if line is not None:
                        self._read(line, now)
                    elif self._hear(descriptor, channel):
                        return self._closing_facts()
            self._release()
            keeper.look(bool(due))

    def _next(self) -> float:
        """When there is something to do next, if nothing comes."""
        due = self._due
        if not due:
            return FOREVER
        return due[0][0] - (due[0][2].polled_s if self._batching.polls else 0.0)

    def _hear(self, descriptor: int, channel: Channel) -> bool:
        """Take what has come from elsewhere than a node; True where it is time to stop."""
        return self._handle(channel)

    def _read(self, line: Line, now: float) -> None:
        """Take one packet or burst that a node has sent."""
        try:
            data = os.read(line.device, MAX_READ_BYTES)
        except BlockingIOError:
            return
        words, counter = self._words, line.counter
        if data[GSO_TYPE]:
            burst = Burst(data)
            count, size, last = burst.frames, burst.frame_bytes, burst.last_frame_bytes
            words[counter + FRAMES] += count
            words[counter + BYTES] += (count - 1) * size + last
            full = count if last == size else count - 1
            if full:
                self._enter(line, (now, burst, 0, full, 0.0, size))
            if full < count:
                self._enter(line, (now, burst, full, 1, 0.0, last))
        else:
            size = len(data) + PACKET_TO_FRAME_BYTES
            words[counter + FRAMES] += 1
            words[counter + BYTES] += size
            self._enter(line, (now, data, 0, 1, 0.0, size))

    def _enter(self, line: Line, segments: Entry[Packet]) -> None:
        """Put segments into a line as they come, or through it where it is clear and empty."""
        queue = line.queue
        if queue.is_clear and queue.due == FOREVER:
            self._leave(line, segments)
            return
        now, packet, first, count, spacing, size = segments
        if queue.offer(now, size, packet, first, count, spacing) != count or queue.impairs:
            self._words[line.counter + QUEUE_DROPS] = queue.queue_drops
            self._words[line.counter + LOSSES] = queue.losses
        if queue.due < line.scheduled:
            line.scheduled = queue.due
            heapq.heappush(self._due, (queue.due, line.sequence, line))

    def _release(self) -> None:
        """Move on what is due, by the model's time and not the clock's."""
        due = self._due
        now = self._now()
        for _ in range(MOST_RELEASES):
            if not due or due[0][0] > now:
                return
            scheduled, sequence, line = due[0]
            if scheduled != line.scheduled:
                heapq.heappop(due)
                continue
            queue = line.queue
            segments = queue.take(now)
            line.scheduled = queue.due
            if queue.due == FOREVER:
                heapq.heappop(due)
            else:
                heapq.heapreplace(due, (queue.due, sequence, line))
            self._leave(line, segments)

    def _leave(self, line: Line, segments: Entry[Packet]) -> None:
        """Have segments that leave a line enter the next one, or reach their receiver."""
        if not line.up:
            self._deliver(line, segments)
            return
        packet = segments[1]
        address = packet[DESTINATION] if isinstance(packet, bytes) else packet.destination
        receiver = self._line_to.get(address)
        if receiver is None:
            self._unroutable += segments[3]
        else:
            self._enter(receiver, segments)

    def _deliver(self, line: Line, segments: Entry[Packet]) -> None:
        release, packet, first, count, step, size = segments
        self._time.lateness.add(self._now() - release, count, step)
        self._batching.frames += count
        try:
            if isinstance(packet, bytes):
                os.write(line.device, packet)
            elif count == packet.frames:
                os.write(line.device, packet.data)
            else:
                os.writev(line.device, packet.buffers(first, count))
        except OSError:
            self._write_errors += count
            return
        words, counter = self._words, line.counter
        words[counter + FRAMES] += count
        words[counter + BYTES] += count * size

    def _handle(self, channel: Channel) -> bool:
        """Do what the supervisor says; True where it says stop or is gone."""
        stop = False
        for order in channel.drain():
            if isinstance(order, Shape):
                now = self._now()
                for lines, direction in ((self._up, order.up), (self._down, order.down)):
                    line = lines[order.node]
                    line.queue.shape(direction, now)
                    line.polled_s = polled_s(direction)
            stop = stop or isinstance(order, Stop)
        return stop or channel.closed

    def _closing_facts(self) -> Facts:
        before, now = self._backlog_drops, backlog_drops()
        return {
            **self._time.facts(),
            "frames_in_turns": self._batching.frames_in_batches,
            "unroutable_packets": self._unroutable,
            "write_errors": self._write_errors,
            "backlog_drops": None if before is None or now is None else now - before,
        }
