"""The line of a traced direction: an HTB class whose rate follows the trace.

netem fixes a packet's time when it comes in, so a rate that changes while packets queue would hold
for later packets only: a slow step's queue would still leave slowly in the next, fast one. HTB
charges each packet when it leaves. netem stands below it, as its leaf, and keeps delay, jitter,
loss and limit.
"""

import heapq
import socket
import struct
import time
from collections.abc import Callable

from testbed.links.linux import netlink
from testbed.links.netem.qdisc import UNLIMITED_BYTES, trace_rate_bytes
from testbed.network import traces

ROOT_HANDLE = 0x10000
CLASS_HANDLE = 0x10001
LEAF_HANDLE = 0x20000
BURST_S = 0.005
"""What the line may make up for where its timer was late."""
LATE_S = 0.01
"""A step later than this counts as late; steps are ten times as long."""

_NEWTCLASS = 40
_REPLACE, _CREATE = 0x100, 0x600
_KIND, _OPTIONS, _HTB_PARMS = 1, 2, 1
_TICK_NS = 64
"""PSCHED_SHIFT of include/net/pkt_sched.h."""
_ETHERNET = 1
_QUANTUM_BYTES = 1514
_TCMSG = struct.Struct("=BxxxiIII")
_RATE = struct.Struct("=BBHhHI")


def class_message(device: int, rate_bytes: int) -> bytes:
    """The body of the message that makes or changes the class of ``device``."""
    rate = _RATE.pack(0, _ETHERNET, 0, 0, 0, rate_bytes)
    burst = round(BURST_S * 1e9 / _TICK_NS)
    parameters = rate + rate + struct.pack("=IIIII", burst, burst, _QUANTUM_BYTES, 0, 0)
    return (
        _TCMSG.pack(0, device, CLASS_HANDLE, ROOT_HANDLE, 0)
        + netlink.attribute(_KIND, b"htb\0")
        + netlink.nest(_OPTIONS, netlink.attribute(_HTB_PARMS, parameters))
    )


def make_class(route: socket.socket, device: int) -> None:
    """Make the class of a device's HTB, fast until a trace says otherwise."""
    message = class_message(device, UNLIMITED_BYTES)
    netlink.change(route, _NEWTCLASS, _CREATE, message)


class _Line:
    def __init__(self, device: int, trace: traces.Trace, began_s: float) -> None:
        self.device = device
        self.steps = [(from_ms / 1000, trace_rate_bytes(kbit)) for from_ms, kbit in trace.steps()]
        self.period_s = trace.period_ms / 1000
        self.cycle_s = began_s
        self.next = 0
        self.rate_bytes: int | None = None


class Pacer:
    """Steps the rate of every traced line when its time comes."""

    def __init__(self, route: socket.socket, now: Callable[[], float] = time.monotonic) -> None:
        """``route`` is a netlink socket of the namespace with the lines' devices."""
        self._route = route
        self._now = now
        self._due: list[tuple[float, int]] = []
        self._lines: dict[int, _Line] = {}
        self.steps = 0
        self.late_steps = 0
        self.late_max_s = 0.0

    def start(self, device: int, trace: traces.Trace) -> None:
        """Have ``device`` follow the trace from its first line on; its class must exist."""
        self.stop(device)
        self._lines[device] = _Line(device, trace, self._now())
        heapq.heappush(self._due, (self._lines[device].cycle_s, device))

    def stop(self, device: int) -> None:
        """Leave the device's class as it is."""
        if self._lines.pop(device, None):
            self._due = [entry for entry in self._due if entry[1] != device]
            heapq.heapify(self._due)

    def wait_s(self) -> float | None:
        """How long until the next step; None where there is none."""
        return max(0.0, self._due[0][0] - self._now()) if self._due else None

    def step(self) -> None:
        """Set every rate whose time has come.

        Raises:
            OSError: the kernel refuses one.
        """
        now = self._now()
        while self._due and self._due[0][0] <= now:
            due, device = heapq.heappop(self._due)
            line = self._lines[device]
            self.steps += 1
            self.late_max_s = max(self.late_max_s, now - due)
            self.late_steps += now - due > LATE_S
            _, rate_bytes = line.steps[line.next]
            line.next += 1
            if line.next == len(line.steps):
                line.next = 0
                line.cycle_s += line.period_s
            following = line.cycle_s + line.steps[line.next][0]
            heapq.heappush(self._due, (following, device))
            # Steps that are past already are passed over: only the last of them holds.
            if rate_bytes != line.rate_bytes and following > now:
                netlink.change(self._route, _NEWTCLASS, _REPLACE, class_message(device, rate_bytes))
                line.rate_bytes = rate_bytes
