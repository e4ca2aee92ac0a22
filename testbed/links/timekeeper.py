"""Timekeepers of a link process: the machine's clock, or one that stands still for computing nodes.

An elastic clock is held where a node that computes may be late otherwise: as soon as it could be
done, and before that while more nodes compute than there are cores and no packet is on its way.
TCP has timers of its own, to which a packet that is on its way while the clock stands still takes
as much longer; so computing is done ahead, in the gaps between messages, as far as it is known how
long it takes. Each node then waits for what is left of its device's time.

As many nodes compute at once as there are cores, those first that could be done first; of a crowd
none while time goes on, for what packets need of a core is no device's time. Where threads wait for
a core all the same, whoever's they are, time pauses for a moment: a busy machine then makes a run
longer, and less its rounds.
"""

import contextlib
import os
import sys
import time
from typing import Protocol

import psutil

from testbed import clock
from testbed.links.queueing.lateness import Lateness
from testbed.processes import cores, states
from testbed.virtual_time import BESIDE, Computing, Spell, VirtualTime

LENT_S = 0.0005
"""Beyond when its keeper means to look again an elastic clock goes on: what it takes to wake."""
PAUSE_S = 0.002
"""Longest pause in which threads that wait for a core may have one, before time goes on."""
LOOK_S = 0.001
"""How often to look at the nodes while any of them computes."""
IDLE_LOOK_S = 0.003
CHECK_S = 0.5
"""Of holding, after which to look whether those who compute still do."""
MOST_HELD_S = 3600.0
"""Of standing still for the same nodes, after which they are waited for no longer: what computes
for so long without an end has none."""
_AT_WORK = "RSD"
"""States of a process (proc(5)) that will go on by itself."""
_NOT_AT_WORK = (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


class Timekeeper(Protocol):
    """Clock that lines go by, and how late packets left them on it."""

    lateness: Lateness
    """To add to now."""

    def facts(self) -> dict[str, float | int]:
        """Lateness for the closing facts of a run."""

    def now(self) -> float:
        """Seconds."""

    def wait_s(self, due: float) -> float:
        """Seconds of the machine's until ``due``, or until ``look`` is wanted before."""

    def look(self, in_flight: bool) -> None:
        """See to the clock. ``in_flight``: whether anything is in the lines."""


class MachineTime:
    """The machine's clock, to which nobody has to see."""

    def __init__(self) -> None:
        self.lateness = Lateness()

    def facts(self) -> dict[str, float | int]:
        return self.lateness.facts()

    now = staticmethod(time.monotonic)

    def wait_s(self, due: float) -> float:
        return due - time.monotonic()

    def look(self, in_flight: bool) -> None:
        pass


class ElasticTime:
    """Holds and releases a run's virtual time; of a run there is one."""

    def __init__(self, virtual: VirtualTime, cores: int, machine_cores: int | None = None) -> None:
        """``cores`` of the ``machine_cores`` are for this run."""
        self._virtual = virtual
        self._cores, self._machine_cores = cores, machine_cores or cores
        self._outside, self._followed = Lateness(), Lateness()
        self.lateness = self._outside
        self._look_at = 0.0
        self._check_at = 0.0
        self._paused_since = self._goes_until = 0.0
        self._load = _open_load()
        self._catches_up = False
        self._holds = self._holds_in_flight = self._crowded = 0
        self._held_since = self._longest_in_flight_s = 0.0
        self._ignored: set[Spell] = set()
        """Of processes that do not go on."""
        self._given_up: set[Spell] = set()
        self._awaited: set[Spell] = set()
        """Those that are waited for, as long as none of them is over."""
        self._awaited_since = 0.0

    def facts(self) -> dict[str, float | int]:
        """Lateness while it was followed, for before no time waits for who carries the packets;
        how often it was held, and how often and how long with packets on their way; and how long it
        went on though threads waited for a core."""
        return {
            **self._followed.facts(),
            "holds": self._holds,
            "holds_in_flight": self._holds_in_flight,
            "longest_hold_in_flight_ms": 1000 * self._longest_in_flight_s,
            "crowded_ms": 1000 * LOOK_S * self._crowded,
        }

    def now(self) -> float:
        return self._virtual.now_ns() / 1e9

    def wait_s(self, due: float) -> float:
        until_look_s = self._look_at - time.monotonic()
        if self._virtual.is_held:
            return until_look_s
        left_s = min(due - self.now(), until_look_s)
        if self._virtual.follows:
            # Where lines have fallen behind, less: a packet is late by as much at most.
            self._virtual.lend(max(0.0, left_s + LENT_S))
            self.lateness = self._followed
        elif self.lateness is self._followed:
            self._virtual.give()
            self.lateness = self._outside
        return left_s

    def look(self, in_flight: bool) -> None:
        host_s = time.monotonic()
        virtual = self._virtual
        if host_s < self._look_at and not (in_flight and virtual.is_held):
            return
        computing = virtual.computing() if virtual.follows else []
        self._look_at = host_s + (LOOK_S if computing or in_flight else IDLE_LOOK_S)
        if host_s >= self._check_at:
            self._check_at = host_s + CHECK_S
            self._ignored = self._without_end(computing, host_s)
            self._ignored |= {node.spell for node in computing if not _goes_on(node.pid)}
        if self._ignored:
            computing = [node for node in computing if node.spell not in self._ignored]
        if self._is_late(computing, in_flight):
            self._hold(host_s, in_flight)
        elif in_flight and virtual.follows and self._pauses(host_s):
            virtual.hold()
        else:
            virtual.release()
        self._give_turns(computing)

    def _hold(self, host_s: float, in_flight: bool) -> None:
        if not self._virtual.is_held:
            self._virtual.hold()
            self._holds += 1
            self._holds_in_flight += in_flight
            self._held_since = host_s
        if in_flight:
            held_s = host_s - self._held_since
            self._longest_in_flight_s = max(self._longest_in_flight_s, held_s)

    def _without_end(self, computing: list[Computing], host_s: float) -> set[Spell]:
        """Spells that have been waited for too long."""
        present = {node.spell for node in computing}
        self._given_up &= present
        awaited = present - self._given_up
        if not awaited or not awaited >= self._awaited or not self._virtual.is_held:
            self._awaited, self._awaited_since = awaited, host_s
        elif host_s - self._awaited_since > MOST_HELD_S:
            self._given_up |= awaited
        return set(self._given_up)

    def _pauses(self, host_s: float) -> bool:
        """Whether time stands still for a moment, since somebody waits for a core."""
        if host_s < self._goes_until or self._runnable() <= self._machine_cores:
            self._paused_since = host_s
            return False
        if host_s - self._paused_since < PAUSE_S:
            return True
        self._goes_until = self._paused_since = host_s + LOOK_S
        self._crowded += 1
        return False

    def _runnable(self) -> int:
        """Threads of the whole machine that are on a core or ready for one; 0: it does not tell."""
        if self._load is None:
            return 0
        return int(os.pread(self._load, 64, 0).split()[3].partition(b"/")[0])

    def _give_turns(self, computing: list[Computing]) -> None:
        """Let as many compute as there are cores; of a crowd none beside packets on their way, to
        whose senders and receivers the cores belong."""
        turns = [node for node in computing if node.waits or node.takes_turn]
        if len(turns) > self._cores and not self._virtual.is_held:
            return
        free = self._cores - sum(node.takes_turn for node in turns)
        for node in computing:
            if free <= 0:
                return
            if node.waits:
                self._virtual.give_turn(node)
                free -= 1

    def _is_late(self, computing: list[Computing], in_flight: bool) -> bool:
        """Whether a node could be late if time went on."""
        by_device = [node for node in computing if node.until_ns < BESIDE]
        crowded = len(by_device) > self._cores
        late = bool(by_device) and by_device[0].until_ns <= self._virtual.now_ns()
        # Once packets have to stand still, others are not sent off to do so too.
        self._catches_up = late or (self._catches_up and crowded)
        beside = len(by_device) < len(computing)
        return self._catches_up or (not in_flight and (crowded or beside))


def _open_load() -> int | None:
    with contextlib.suppress(OSError):
        return os.open("/proc/loadavg", os.O_RDONLY | os.O_CLOEXEC)
    return None


def _goes_on(pid: int) -> bool:
    """Whether a process is neither stopped nor dead."""
    if sys.platform != "linux":
        with contextlib.suppress(psutil.Error):
            return psutil.Process(pid).status() not in _NOT_AT_WORK
        return False
    return (states.letter(pid) or " ") in _AT_WORK


def of_run() -> Timekeeper:
    """The timekeeper that the present run's clock asks for."""
    virtual = clock.virtual()
    if virtual is None:
        return MachineTime()
    return ElasticTime(virtual, cores.usable(), os.cpu_count())
